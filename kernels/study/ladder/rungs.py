"""What a ladder is made of, and the climb: every rung is checked, then timed beside the others."""

import inspect
import statistics
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kernels import dispatch
from kernels.study.cases import as_tuple
from kernels.study.ceilings import Ceilings, timed_under_ceilings

# The largest error of a plain sum in float32, over the largest result.
TOLERANCE = 2e-5


class Problem(Protocol):
    """The arrays and settings that a rung computes from."""

    @property
    def work(self) -> int:
        """What the time of a rung is proportional to, such as the multiply-adds."""

    def part(self, work: int) -> "Problem":
        """A problem of about so much work at most, whose result is a corner of this one's."""


@dataclass(frozen=True)
class Rung:
    """One version of a kernel: ``run(problem)`` gives the result or results, and its docstring says
    why it is faster than the version before.

    A version so slow that nobody would wait is timed on a part of the problem: `most_work`. One
    that stands `aside` is another way, no step on the way up: the next rung builds on the one
    before it.
    """

    name: str
    run: Callable[[Problem], np.ndarray | tuple[np.ndarray, ...]]
    most_work: int | None = None
    aside: bool = False
    tolerance: float = TOLERANCE

    @property
    def why(self) -> str:
        """The paragraphs that explain the rung."""
        return inspect.cleandoc(self.run.__doc__)


@dataclass(frozen=True)
class Ladder:
    """The rungs that apply to a problem, the results they are held to, and what it costs at least.

    `flops` are float operations, two a multiply-add; `traffic` the bytes of all operands and
    results, each moved once. `note` tells what of this the kernel itself would choose.
    """

    title: str
    problem: Problem
    expected: np.ndarray | tuple[np.ndarray, ...]
    rungs: tuple[Rung, ...]
    flops: int
    traffic: int
    note: str


@dataclass(frozen=True)
class Step:
    """A rung climbed: seconds for the whole problem, the share of it that was timed, and the
    largest error over the largest result."""

    rung: Rung
    seconds: float
    share: float
    error: float


class WrongRung(RuntimeError):
    """A rung whose result is not that of the reference."""


def climb(
    ladder: Ladder, rounds: int, progress: Callable[[str], None]
) -> tuple[list[Step], Ceilings]:
    """(a Step a rung, the machine's ceilings): medians of turns in which all of them run.

    `progress(name)` is called before a rung is checked, which compiles it. Raises WrongRung where
    a result is wrong: nothing is timed then.
    """
    runs, shares, errors = {}, {}, {}
    for rung in ladder.rungs:
        progress(rung.name)
        problem = ladder.problem
        if rung.most_work is not None and rung.most_work < problem.work:
            problem = problem.part(rung.most_work)
        errors[rung.name] = _checked(rung, problem, ladder.expected)
        shares[rung.name] = problem.work / ladder.problem.work
        runs[rung.name] = lambda rung=rung, problem=problem: rung.run(problem)
    progress(f"{rounds} round{'s' * (rounds > 1)}")
    times, ceilings = timed_under_ceilings(runs, rounds)
    steps = [
        Step(
            rung, statistics.median(times[rung.name]) / shares[rung.name], shares[rung.name],
            errors[rung.name],
        )
        for rung in ladder.rungs
    ]  # fmt: skip
    return steps, ceilings


def _checked(rung, problem, expected) -> float:
    """The error of the rung's results, each of which must be a corner of what is expected."""
    results = as_tuple(rung.run(problem))
    return max(_error(rung, *pair) for pair in zip(results, as_tuple(expected), strict=True))


def _error(rung, result, expected):
    corner = expected[tuple(slice(size) for size in result.shape)]
    if corner.shape != result.shape or (expected.size and not result.size):
        raise WrongRung(f"{rung.name}: its result has shape {result.shape}, not {expected.shape}")
    if result.dtype.kind != "f":
        if not np.array_equal(result, corner):
            raise WrongRung(f"{rung.name}: its {result.dtype} result is wrong")
        return 0.0
    largest = np.abs(corner).max(initial=0) or 1
    error = float(np.abs(result - corner).max(initial=0) / largest)
    if not error <= rung.tolerance:
        raise WrongRung(
            f"{rung.name}: its result is wrong by {error:.1e} of the largest value, more than "
            f"{rung.tolerance:.0e}"
        )
    return error


@contextmanager
def one_thread():
    """Kernels run on one thread for the enclosed block."""
    before = dispatch.get_num_threads()
    dispatch.set_num_threads(1)
    try:
        yield
    finally:
        dispatch.set_num_threads(before)
