"""The command line: files where they are asked for, one line for what cannot be."""

import json
import sys

import pytest

from benchmarks import __main__ as cli
from benchmarks import kernels, tasks
from kernels import dispatch
from kernels.study.ceilings import Ceilings
from minidl.cli import run_group


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command on small arrays: (status, stdout, stderr)."""
    monkeypatch.setattr(kernels, "SHAPE", (2, 4, 8, 8))
    monkeypatch.setattr(tasks, "measure_ceilings", lambda rounds: Ceilings(1e11, 1e10))
    before = dispatch.get_num_threads()

    def call(*arguments):
        status = run_group(cli.main, [str(a) for a in arguments], "python -m benchmarks")
        return status, *capsys.readouterr()

    yield call
    dispatch.set_num_threads(before)


def test_table_and_files(run, tmp_path):
    out = tmp_path / "out"
    status, stdout, stderr = run(
        "kernels", "--only", "RELU_B*", "--quick", "--threads", 1, "--out", out
    )
    assert status == 0
    assert "| relu_backward | " in stdout and ", 1 threads;" in stdout
    assert "ratio" not in stdout
    stored = json.loads((out / "kernels.json").read_text())
    assert [entry["name"] for entry in stored["figures"]] == ["relu_backward", "bias_relu_backward"]
    assert stored["machine"]["threads"] == 1
    assert str(out / "kernels.png") in stdout and (out / "kernels.png").stat().st_size > 0
    assert stderr.splitlines() == ["relu_backward ...", "bias_relu_backward ..."]


def test_without_torch_there_is_a_hint(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    arguments = "--only", "channel_sums", "--quick", "--out", tmp_path
    status, stdout, stderr = run("kernels", "--against", "torch", *arguments)
    assert status == 0
    assert "pip install -e '.[oracle]'" in stderr.splitlines()[0]
    assert "| channel_sums |" in stdout and "ratio" not in stdout


def test_beside_torch(run, tmp_path):
    pytest.importorskip("torch")
    arguments = "--only", "channel_sums", "--quick", "--out", tmp_path
    status, stdout, _ = run("kernels", "--against", "torch", *arguments)
    assert status == 0 and "ratio" in stdout


def test_interrupted_command_writes_what_is_measured(run, tmp_path, monkeypatch):
    step = tasks._figure

    def first_only(task, plan, ceilings):
        if task.name != "relu_backward":
            raise KeyboardInterrupt
        return step(task, plan, ceilings)

    monkeypatch.setattr(tasks, "_figure", first_only)
    status, _, stderr = run("kernels", "--only", "relu_b*", "--quick", "--out", tmp_path)
    assert status == 130
    assert stderr.splitlines()[-2:] == ["1 of 2 measured.", "Interrupted."]
    assert len(json.loads((tmp_path / "kernels.json").read_text())["figures"]) == 1


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["kernels", "--only", "transformer"], "nothing that is measured matches 'transformer'"),
        (["networks", "--only", "transformer"], "nothing that is measured matches 'transformer'"),
        (["kernels", "--threads", "0"], "--threads"),
        (["kernels", "--threads", "9999"], "threads must be an int from 1 to"),
        (["kernels", "--against", "theano"], "--against"),
        (["kernels", "--only", "lrn", "--out", "FILE"], "--out"),
        (["kernels", "--only", "lrn", "--out", "FILE/below"], "Not a directory"),
        (["models"], "models"),
    ],
)
def test_misuse_is_one_line(run, tmp_path, arguments, expected):
    file = tmp_path / "file"
    file.touch()
    status, stdout, stderr = run(*(a.replace("FILE", str(file)) for a in arguments))
    assert status == 2
    assert stdout == ""
    assert len(stderr.splitlines()) == 1 and expected in stderr
