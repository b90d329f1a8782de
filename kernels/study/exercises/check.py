"""A reader's version of an exercise against the reference, case by case, with a diagnosis.

Every function is called with copies of the arguments of its cases; its results are compared in
type, shape, dtype and value, and its arguments with what they were; an argument `out` must be the
result. Where they differ, every known mistake, a wrong version of the reference, is tried on the
same cases: the one that gives the reader's results throughout explains them. Last come the central
differences.
"""

import copy
import importlib.util
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from kernels.study.exercises.differences import central_differences
from kernels.study.exercises.model import Case, Exercise, Mistake, Part
from kernels.study.exercises.template import reference_source

# Results may differ by this much, times the largest expected one or 1.
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-9}
SLOPE_TOLERANCE = 1e-5
_TRACEBACK_LINES = 12


class CheckFailed(Exception):
    """The reader's version is not right yet; the message says where, and if possible why."""


def examine(
    exercise: Exercise, path: Path, seed: int = 0, report: Callable[[str, str], None] | None = None
) -> str:
    """What was checked of the file at `path`, in one line; CheckFailed where it is wrong.

    `report(kind, text)` hears of the "case" that is tried next, and what has "failed" so far.
    """
    report = report or (lambda kind, text: None)
    reference = import_module(f"kernels.reference.{exercise.module}")
    report("case", f"loading {path.name}")
    code = load(path)
    for name in exercise.parts:
        if not callable(getattr(code, name, None)):
            raise CheckFailed(f"{path.name} defines no function {name}")
    count = 0
    for name, part in exercise.parts.items():
        cases = list(part.cases(np.random.default_rng(seed)))
        for k, case in enumerate(cases):
            label = f"case {k + 1} of {len(cases)}: {describe(name, case)}"
            report("case", label)
            problem = _problem(code, reference, name, part, case, path)
            if problem:
                problem = f"{label}\n{problem}"
                report("failed", problem)
                hint = _diagnosis(exercise, code, reference, name, cases, k)
                raise CheckFailed(problem + hint)
            count += 1
    slopes = _check_slopes(exercise, code, seed, report, path)
    gradients = "1 gradient" if slopes == 1 else f"{slopes} gradients"
    differences = f" and {gradients} by central differences" if slopes else ""
    return f"{count} cases against the reference{differences}"


def load(path: Path) -> ModuleType:
    """The module in the file at `path`; CheckFailed with the traceback where it cannot run."""
    spec = importlib.util.spec_from_file_location(f"exercise_{path.stem}", path)
    if spec is None:
        raise CheckFailed(f"{path.name} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise CheckFailed(f"{path.name} cannot be loaded:\n{_last_lines(error, path)}") from None
    return module


def describe(name: str, case: Case) -> str:
    """The call, with arrays as dtype and shape."""
    return f"{name}({', '.join(f'{key}={_brief(value)}' for key, value in case.items())})"


def _brief(value):
    if isinstance(value, tuple):
        return f"({', '.join(map(_brief, value))})"
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)


def outcome(code, name: str, part: Part, case: Case) -> tuple[tuple, Case]:
    """(results, arguments afterwards) of the function `name` of `code`, called with copies."""
    arguments = copy.deepcopy(case)
    with np.errstate(all="ignore"):
        results = getattr(code, name)(**arguments)
    if part.writes:
        results = tuple(arguments[key] for key in part.writes if case[key] is not None)
    elif len(part.results) == 1:
        results = (results,)
    return results, arguments


def _names(part, case):
    """The results' names; of the arguments written to, without those that are None."""
    return [key for key in part.writes if case[key] is not None] or list(part.results)


def _problem(code, reference, name, part, case, path):
    """What is wrong with this case, or None."""
    expected, _ = outcome(reference, name, part, case)
    try:
        got, after = outcome(code, name, part, case)
    except NotImplementedError:
        return f"{name} is still empty: write its body in {path.name}"
    except BaseException as error:
        return f"{name} raised an exception:\n{_last_lines(error, path)}"
    names = _names(part, case)
    if not isinstance(got, tuple) or len(got) != len(expected):
        what = f"a tuple of {len(got)}" if isinstance(got, tuple) else f"a {type(got).__name__}"
        return f"{name} must return the tuple ({', '.join(names)}), got {what}"
    for key, value in case.items():
        if key not in (*part.writes, "out") and not _unchanged(after[key], value):
            return f"{name} changed its argument {key}: work on a copy"
    for label, mine, right in zip(names, got, expected, strict=True):
        difference = compare(label, mine, right)
        if difference:
            return difference
    if "out" in case and got[0] is not after["out"]:
        return f"{name} must write its result to `out`, where one is given, and return that"
    return None


def _unchanged(after, before):
    if isinstance(before, tuple):
        return all(map(_unchanged, after, before))
    return not isinstance(before, np.ndarray) or np.array_equal(after, before, equal_nan=True)


def compare(label: str, got, expected: np.ndarray) -> str | None:
    """How `got` differs from `expected` in type, shape, dtype or, first of all, at which index."""
    if got is None:
        return f"{label} is None: is there a `return`?"
    if not isinstance(got, (np.ndarray, np.generic)):
        return f"{label} must be a NumPy array, got {type(got).__name__}"
    if got.shape != expected.shape:
        return f"{label} must have shape {expected.shape}, got {got.shape}"
    if got.dtype != expected.dtype:
        return f"{label} must be {expected.dtype}, got {got.dtype}"
    wrong = ~_close(got, expected)
    if not wrong.any():
        return None
    first = tuple(int(n) for n in np.argwhere(wrong)[0])
    return (
        f"{label} differs at {int(wrong.sum())} of {wrong.size} places, first at index "
        f"{list(first)}:\n    expected {expected[first]!s}\n    got      {got[first]!s}"
        f"{_proportion(got, expected)}"
    )


def _close(got, expected):
    tolerance = TOLERANCE.get(expected.dtype, 0)
    finite = np.abs(expected[np.isfinite(expected)])
    allowed = tolerance * max(1.0, float(finite.max(initial=0)))
    return np.isclose(got, expected, rtol=0, atol=allowed, equal_nan=True)


def _proportion(got, expected):
    """A line where `got` is the same multiple of `expected` everywhere, else nothing."""
    if expected.dtype.kind != "f" or not np.isfinite(got).all() or not expected.any():
        return ""
    ratio = float((got * expected).sum() / (expected * expected).sum())
    if ratio and _close(got / expected.dtype.type(ratio), expected).all():
        return f"\nEverywhere yours is {ratio:.6g} times what is expected."
    return ""


def _diagnosis(exercise, code, reference, name, cases, failed):
    """The hints of the mistakes that give the reader's results in all cases, or in this one."""
    part = exercise.parts[name]
    expected = [_quiet(reference, name, part, case) for case in cases]
    mine = [_quiet(code, name, part, case) for case in cases]
    if mine[failed] is None:
        return ""
    everywhere, here = [], []
    for mistake in exercise.mistakes:
        wrong = wrong_version(exercise, mistake)
        theirs = [_quiet(wrong, name, part, case) for case in cases]
        if _agree(theirs[failed], expected[failed]) or not _agree(mine[failed], theirs[failed]):
            continue
        here.append(mistake.hint)
        if all(map(_agree, mine, theirs)):
            everywhere.append(mistake.hint)
    hints = everywhere or here
    if not hints:
        return ""
    where = "yours" if everywhere else "in this case yours"
    return "\n" + "\n".join(f"Hint: {where} is {hint}" for hint in hints)


def wrong_version(exercise: Exercise, mistake: Mistake) -> ModuleType:
    """The reference module with the mistake in it. ValueError where it no longer applies."""
    module = ModuleType(f"mistaken_{exercise.module}")
    exec(compile(mistaken_source(exercise, mistake), module.__name__, "exec"), module.__dict__)
    return module


def mistaken_source(exercise: Exercise, mistake: Mistake) -> str:
    """The reference's source with the mistake's edits. ValueError where one no longer applies."""
    text = reference_source(exercise)
    for right, wrong in mistake.edits.items():
        if right not in text:
            raise ValueError(f"exercise {exercise.name}: the reference does not hold {right!r}")
        text = text.replace(right, wrong)
    return text


def _quiet(code, name, part, case):
    """The results, or None where the function fails: a diagnosis looks at what there is."""
    try:
        return outcome(code, name, part, case)[0]
    except BaseException:
        return None


def _agree(a, b):
    """True where two outcomes are the same in shape and value, or both failed."""
    if not isinstance(a, tuple) or not isinstance(b, tuple):
        return a is b
    return len(a) == len(b) and all(
        np.shape(x) == np.shape(y) and compare("", x, np.asarray(y)) is None
        for x, y in zip(a, b, strict=True)
    )


def _check_slopes(exercise, code, seed, report, path):
    """The number of gradients that central differences confirm; CheckFailed at the first other."""
    if exercise.slopes is None:
        return 0
    count = 0
    report("case", "central differences")
    try:
        for what, f, x, gradient in exercise.slopes(code, np.random.default_rng(seed)):
            report("case", f"central differences: {what}")
            _check_slope(what, gradient, central_differences(f, x))
            count += 1
    except CheckFailed:
        raise
    except BaseException as error:
        lines = _last_lines(error, path)
        raise CheckFailed(f"the central differences raised an exception:\n{lines}") from None
    return count


def _check_slope(what, gradient, numerical):
    wrong = ~(np.abs(gradient - numerical) <= SLOPE_TOLERANCE * (1 + np.abs(numerical)))
    if wrong.any():
        first = tuple(int(n) for n in np.argwhere(wrong)[0])
        raise CheckFailed(
            f"{what}, by central differences of your own forward: differs at {int(wrong.sum())} "
            f"of {wrong.size} places, first at index {list(first)}:\n"
            f"    differences give {numerical[first]:.9g}\n"
            f"    your backward    {gradient[first]:.9g}"
        )


def _last_lines(error, path):
    """The traceback from the reader's file on, its last lines, indented."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [k for k, frame in enumerate(frames) if Path(frame.filename) == path]
    shown = frames[own[0] :] if own else []
    text = "".join([*traceback.format_list(shown), *traceback.format_exception_only(error)])
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-_TRACEBACK_LINES:])
