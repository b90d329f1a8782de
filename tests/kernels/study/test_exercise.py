"""Exercises: the file that is written, and what the check says of right and of wrong versions."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kernels.study.exercise import command
from kernels.study.exercises import EXERCISES, find
from kernels.study.exercises.check import CheckFailed, examine, mistaken_source
from kernels.study.exercises.differences import central_differences
from kernels.study.exercises.run import check_file
from kernels.study.exercises.template import reference_source, template

NAMES = pytest.mark.parametrize("name", EXERCISES)
MISTAKES = [
    (name, k) for name, exercise in EXERCISES.items() for k in range(len(exercise.mistakes))
]


def failure(name, path, **options):
    with pytest.raises(CheckFailed) as caught:
        examine(find(name), path, **options)
    return str(caught.value)


def write(folder, text):
    path = folder / "mine.py"
    path.write_text(text)
    return path


def edited(name, right, wrong):
    text = reference_source(find(name))
    assert right in text
    return text.replace(right, wrong)


@NAMES
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reference_passes(name, tmp_path, seed):
    exercise = find(name)
    summary = examine(exercise, write(tmp_path, reference_source(exercise)), seed)
    assert "cases against the reference" in summary
    assert ("central differences" in summary) == (exercise.slopes is not None)


@NAMES
def test_the_empty_file_runs_and_fails(name, tmp_path):
    exercise = find(name)
    text = template(exercise, "mine.py")
    assert f"exercise {name} --check mine.py" in text
    first = next(iter(exercise.parts))
    assert f"{first} is still empty" in failure(name, write(tmp_path, text))


@NAMES
def test_the_file_keeps_signatures_docstrings_and_hints_but_no_body(name, tmp_path):
    exercise = find(name)
    names = {}
    exec(template(exercise, "mine.py"), names)
    for function in exercise.parts:
        reference = getattr(import_module(f"kernels.reference.{exercise.module}"), function)
        empty = names[function]
        assert empty.__doc__ == reference.__doc__
        assert empty.__defaults__ == reference.__defaults__
        count = reference.__code__.co_argcount
        assert empty.__code__.co_varnames == reference.__code__.co_varnames[:count]
    blank = " ".join(template(exercise, "mine.py").replace("#", " ").split())
    for part in exercise.parts.values():
        for hint in part.hints:
            assert " ".join(hint.split()) in blank


@pytest.mark.parametrize("name, k", MISTAKES)
def test_every_mistake_is_found_and_named(name, k, tmp_path):
    exercise = find(name)
    mistake = exercise.mistakes[k]
    message = failure(name, write(tmp_path, mistaken_source(exercise, mistake)))
    assert [line for line in message.splitlines() if line.startswith("Hint")] == [
        f"Hint: yours is {mistake.hint}"
    ]


def test_enough_mistakes_are_known():
    for exercise in EXERCISES.values():
        assert len(exercise.mistakes) >= 3, exercise.name


def test_the_first_wrong_index_is_told(tmp_path):
    text = reference_source(find("lrn")) + (
        "\n_right = lrn\n\ndef lrn(x, *settings, **named):\n"
        "    y, scale = _right(x, *settings, **named)\n    y[1, 2, 0, 1] += 1\n"
        "    return y, scale\n"
    )
    message = failure("lrn", write(tmp_path, text))
    assert "case 1 of 10: lrn(x=float64[2, 7, 3, 2], size=5, alpha=0.5" in message
    assert "y differs at 1 of 84 places, first at index [1, 2, 0, 1]:" in message
    assert "expected" in message and "got" in message and "Hint" not in message


def test_a_constant_factor_is_told(tmp_path):
    wrong = edited("lrn", "return x * scale ** -float(beta), scale",
                   "return 3 * x * scale ** -float(beta), scale")  # fmt: skip
    assert "Everywhere yours is 3 times" in failure("lrn", write(tmp_path, wrong))


def test_shape_dtype_type_and_missing_return_are_told(tmp_path):
    for body, message in (
        ("return x[:, :1]", r"y must have shape (2, 3, 4, 5), got (2, 1, 4, 5)"),
        ("return np.maximum(x, 0).astype('f4')", "y must be float64, got float32"),
        ("return [1.0]", "y must be a NumPy array, got list"),
        ("np.maximum(x, 0)", "y is None: is there a `return`?"),
    ):
        text = f"import numpy as np\ndef relu(x):\n    {body}\ndef relu_backward(dy, y): pass\n"
        assert message in failure("relu", write(tmp_path, text))
    text = "def lrn(x, *a, **k):\n    return x\ndef lrn_backward(): pass\n"
    message = failure("lrn", write(tmp_path, text))
    assert "must return the tuple (y, scale), got a ndarray" in message


def test_changed_arguments_are_told(tmp_path):
    wrong = edited("lrn", "check_lrn(size, x=x)\n", "check_lrn(size, x=x)\n    x += 0.5\n")
    assert "lrn changed its argument x" in failure("lrn", write(tmp_path, wrong))
    wrong = edited("sgd", "    values -= lr * gradient", "    values -= lr * gradient\n"
                   "    if velocity is None:\n        gradient *= 2")  # fmt: skip
    assert "sgd_step changed its argument gradient" in failure("sgd", write(tmp_path, wrong))


def test_an_exception_is_shown_from_the_readers_file_on(tmp_path):
    text = "def relu(x):\n    return x @ nonsense\ndef relu_backward(dy, y):\n    pass\n"
    message = failure("relu", write(tmp_path, text))
    assert "relu raised an exception:" in message
    assert 'mine.py", line 2, in relu' in message and "NameError" in message
    assert "check.py" not in message


def test_a_file_that_cannot_be_loaded(tmp_path):
    assert "SyntaxError" in failure("relu", write(tmp_path, "def relu(x:\n"))
    assert "defines no function relu" in failure("relu", write(tmp_path, "x = 1\n"))
    assert "SystemExit" in failure("relu", write(tmp_path, "raise SystemExit(0)\n"))
    other = tmp_path / "mine.txt"
    other.write_text("")
    assert "must end in .py" in failure("relu", other)


def test_a_wrong_gradient_that_the_cases_miss_is_found_by_differences(tmp_path):
    """The reference's gradient is right for its own forward; this forward and it disagree."""
    text = reference_source(find("relu")) + (
        "\n_right = relu\n\ndef relu(x, out=None):\n"
        "    return _right(x, out) if x.ndim != 3 else 2 * _right(x)\n"
    )
    message = failure("relu", write(tmp_path, text))
    assert "central differences" in message and "differences give" in message


def test_central_differences_of_a_known_function():
    x = np.random.default_rng(0).standard_normal((2, 3))
    np.testing.assert_allclose(
        central_differences(lambda x: np.sin(x).sum(), x), np.cos(x), atol=1e-9
    )


def test_a_loop_without_end_is_stopped(tmp_path):
    text = "def relu(x):\n    while True:\n        pass\ndef relu_backward(dy, y):\n    pass\n"
    with pytest.raises(CheckFailed, match=r"no result within 3 seconds, at case 1 of \d+: relu"):
        check_file("relu", write(tmp_path, text), timeout=3)


def test_a_crash_of_the_process_is_told(tmp_path):
    text = "import os\ndef relu(x):\n    os._exit(7)\ndef relu_backward(dy, y):\n    pass\n"
    with pytest.raises(CheckFailed, match="ended with code 7 at case 1"):
        check_file("relu", write(tmp_path, text), timeout=60)


def test_a_loop_without_end_after_a_failure_leaves_the_failure(tmp_path):
    text = (
        "count = 0\ndef relu(x):\n    global count\n    count += 1\n"
        "    while count > 1:\n        pass\n    return abs(x)\n"
        "def relu_backward(dy, y):\n    pass\n"
    )
    with pytest.raises(CheckFailed, match="y differs at"):
        check_file("relu", write(tmp_path, text), timeout=3)


def test_command_writes_checks_and_refuses_to_overwrite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    done = run(command, ["lrn"])
    assert done.exit_code == 0 and "wrote lrn_exercise.py" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["lrn_exercise.py"]
    written = Path("lrn_exercise.py").read_text()

    done = run(command, ["lrn"])
    assert done.exit_code == 1 and "give --force" in done.output
    Path("lrn_exercise.py").write_text("mine")
    assert run(command, ["lrn", "--force"]).exit_code == 0
    assert Path("lrn_exercise.py").read_text() == written

    done = run(command, ["lrn", "--check", "lrn_exercise.py"])
    assert done.exit_code == 1
    assert "not right yet\n" in done.output and "still empty" in done.output
    Path("solved.py").write_text(reference_source(find("lrn")))
    done = run(command, ["lrn", "--check", "solved.py", "--seed", "5"])
    assert done.exit_code == 0 and done.output.startswith("right: 20 cases against the reference")

    done = run(command, ["lrn", "--out", "solved.py/lrn.py"])
    assert done.exit_code == 1 and "cannot write solved.py/lrn.py" in done.output


def test_command_lists_and_knows_its_names():
    run = CliRunner().invoke
    listed = run(command, ["--list"]).output.splitlines()
    assert [line.split()[0] for line in listed] == list(EXERCISES)
    assert all(line.split()[1] in ("*", "**", "***") for line in listed)
    assert "there is no exercise 'lnr'" in run(command, ["lnr"]).output
    assert run(command, []).exit_code == 2
    assert run(command, ["lrn", "--check", "nowhere.py"]).exit_code == 2


def test_the_command_is_one_of_python_m_kernels():
    done = subprocess.run(
        [sys.executable, "-m", "kernels", "exercise", "--list"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "lrn" in done.stdout


def test_a_result_that_is_not_written_to_out_is_told(tmp_path):
    wrong = edited("relu", "x.dtype.type(0), out=out)", "x.dtype.type(0))")
    assert "relu must write its result to `out`" in failure("relu", write(tmp_path, wrong))


def test_a_gradient_that_is_nan_is_found_by_differences(tmp_path):
    text = reference_source(find("relu")) + (
        "\n_right = relu_backward\n\ndef relu_backward(dy, y):\n"
        "    return _right(dy, y) if y.ndim != 3 else np.full_like(y, np.nan)\n"
    )
    assert "your backward    nan" in failure("relu", write(tmp_path, text))


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "GeneratorExit"])
def test_no_exception_shows_the_inside_of_the_check(raised, tmp_path, capfd):
    text = f"def relu(x, out=None):\n    raise {raised}\ndef relu_backward(dy, y):\n    pass\n"
    with pytest.raises(CheckFailed) as caught:
        check_file("relu", write(tmp_path, text), timeout=60)
    assert f"    {raised}" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_signal_that_ends_the_process_is_named(tmp_path):
    text = (
        "import ctypes\ndef relu(x, out=None):\n    ctypes.string_at(0)\n"
        "def relu_backward(dy, y):\n    pass\n"
    )
    with pytest.raises(CheckFailed, match="the process crashed, by SIGSEGV, at case 1"):
        check_file("relu", write(tmp_path, text), timeout=60)


def test_the_file_imports_nothing_that_only_the_reference_needs():
    assert "import operator" not in template(find("lrn"), "mine.py")
    assert "NamedTuple" not in template(find("winograd"), "mine.py")
    assert "import math" in template(find("dropout_mask"), "mine.py")
    assert "of conv2d, conv2d_input_grad and conv2d_weight_grad." in template(find("conv2d"), "m")


def test_options_of_writing_are_refused_in_a_check():
    done = CliRunner().invoke(command, ["lrn", "--check", __file__, "--force"])
    assert done.exit_code == 2 and "--force" in done.output
