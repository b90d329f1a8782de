"""The command line: files where they are asked for, one line for what cannot be."""

import contextlib
import gc
import itertools
import json
import sys
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest

from benchmarks import __main__ as cli
from benchmarks import cuda, kernels, networks, tasks
from benchmarks.subjects import Subject, by_name, torch_run
from kernels import dispatch
from kernels.study.ceilings import Ceilings
from minidl.cli import run_group
from tests.emulator import HAS_COMPILER, NO_COMPILER
from tests.emulator.stand_in import stand_in


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command on small arrays: (status, stdout, stderr)."""
    monkeypatch.setattr(kernels, "SHAPE", (2, 4, 8, 8))
    monkeypatch.setattr(tasks, "measure_ceilings", lambda rounds: Ceilings(1e11, 1e10))
    monkeypatch.setattr("kernels.study.ceilings._SIDE", 64)
    monkeypatch.setattr("kernels.study.ceilings._VALUES", 1 << 12)
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


@pytest.mark.parametrize(
    "error, expected, line",
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (RuntimeError("illegal address"), 2, "Error: illegal address"),
    ],
)
def test_a_command_that_ends_early_writes_what_is_measured(
    run, tmp_path, monkeypatch, error, expected, line
):
    step = tasks._figure

    def first_only(task, plan, ceilings):
        if task.name != "relu_backward":
            raise error
        return step(task, plan, ceilings)

    monkeypatch.setattr(tasks, "_figure", first_only)
    status, _, stderr = run("kernels", "--only", "relu_b*", "--quick", "--out", tmp_path)
    assert status == expected
    assert stderr.splitlines()[-2:] == ["1 of 2 measured.", line]
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
        (["networks", "--precision", "tf32"], "--precision tf32 needs --backend cuda"),
        (["kernels", "--backend", "cuda"], "--backend"),
    ],
)
def test_misuse_is_one_line(run, tmp_path, arguments, expected):
    file = tmp_path / "file"
    file.touch()
    status, stdout, stderr = run(*(a.replace("FILE", str(file)) for a in arguments))
    assert status == 2
    assert stdout == ""
    assert len(stderr.splitlines()) == 1 and expected in stderr


def test_without_a_gpu_there_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, stdout, stderr = run("networks", "--backend", "cuda", "--out", tmp_path)
    assert status == 2 and not stdout
    assert len(stderr.splitlines()) == 1 and "pip install -e '.[cuda12]'" in stderr


def cuda_of(clock):
    """What benchmarks.cuda asks of CuPy beside arrays, with a clock that the test turns."""
    runtime = mock.Mock()
    runtime.getDeviceProperties.return_value = {"name": b"A GPU"}
    runtime.runtimeGetVersion.return_value = runtime.driverGetVersion.return_value = 12080

    class Event:
        def record(self):
            self.time = next(clock)

        def synchronize(self):
            assert self.time is not None

    return SimpleNamespace(
        Event=Event, get_elapsed_time=lambda start, stop: stop.time - start.time,
        runtime=runtime, Device=lambda: SimpleNamespace(id=0, compute_capability="90"),
    )  # fmt: skip


@pytest.mark.skipif(not HAS_COMPILER, reason=NO_COMPILER)
def test_networks_on_a_gpu(run, tmp_path, monkeypatch):
    """On a stand-in for CuPy, whose clock goes 50 ms from one event to the next."""
    subjects = [replace(by_name("LeNet-5"), batch=2)]
    monkeypatch.setattr(networks, "tasks", partial(networks.tasks, subjects=subjects))
    made = []
    monkeypatch.setattr(cuda, "made", lambda who, make: (made.append(who) or make(), 5 << 20))
    monkeypatch.setattr("kernels.study.device.SIDE", 8)
    monkeypatch.setattr("kernels.study.device.VALUES", 1000)
    with stand_in():
        import cupy

        fake = cuda_of(itertools.count(step=50))
        fake.runtime.streamCaptureModeRelaxed = cupy.cuda.runtime.streamCaptureModeRelaxed
        vars(cupy.cuda).update(vars(fake))
        cupy.__version__ = "15.0"
        status, stdout, stderr = run(
            "networks", "--backend", "cuda", "--only", "lenet*", "--quick", "--out", tmp_path
        )
    assert status == 0, stderr
    assert stdout.startswith("A GPU, CUDA 12080, driver 12080, cupy 15.0; beside it ")
    times = "| 50 (50 to 50) | 50 (50 to 50) |"
    assert f"| LeNet-5 (2), training step {times}" in stdout and "5 MiB | 5 MiB" in stdout
    assert f"| LeNet-5 (2), inference {times}" in stdout
    assert made == ["minidl", "minidl captured"] * 2
    machine = json.loads((tmp_path / "networks.json").read_text())["machine"]
    assert machine["gpu"] == "A GPU" and machine["precision"] == "float32"


@pytest.mark.parametrize("training", [True, False])
def test_what_a_graph_of_pytorch_reads_lives_as_long_as_it(monkeypatch, training):
    torch = pytest.importorskip("torch")
    subject = replace(by_name("LeNet-5"), batch=2)
    drawn = [subject.draw()]
    images = weakref.ref(drawn[0][0])
    monkeypatch.setattr(Subject, "draw", lambda self: drawn.pop())
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, mock.Mock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    run = torch_run(subject, training, captured=True)
    gc.collect()
    run()
    assert images() is not None
    del run
    gc.collect()
    assert images() is None


def test_memory_of_a_gpu(monkeypatch):
    """The most that is held after one of the calls: a recording gives back what was cached."""
    monkeypatch.setitem(sys.modules, "cupy", cupy := mock.Mock())
    totals = [number << 20 for number in (1, 2, 5, 4)]
    cupy.get_default_memory_pool().total_bytes.side_effect = totals
    called = []
    run, taken = cuda.made("minidl", lambda: lambda: called.append(0))
    assert taken == 4 << 20 and len(called) == 3
    assert run() is None and len(called) == 4
    torch = pytest.importorskip("torch")
    for name, result in {
        "empty_cache": None, "reset_peak_memory_stats": None, "memory_reserved": 1 << 20,
        "max_memory_reserved": 3 << 20,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda result=result: result)
    assert cuda.made("PyTorch captured", lambda: lambda: None)[1] == 2 << 20
