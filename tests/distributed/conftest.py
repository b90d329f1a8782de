"""Launching programs on several ranks, within a time limit."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minidl import data

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = Path(__file__).with_name("program.py")
LIMIT = 400  # seconds in which a job must have ended: a hang, unless the machine is very busy


def mpiexec():
    """The launcher that belongs to this Python; the test is skipped where there is none."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed", exc_type=ImportError)
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("mpiexec is not installed")
    return found


def environment():
    return {**os.environ, "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(arguments):
    return subprocess.Popen(
        [str(a) for a in arguments], cwd=ROOT, env=environment(), text=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    """The status and outputs of a job; the test fails, and the job ends, if it hangs."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"the job hangs:\n{out}\n{err}")
    return SimpleNamespace(status=process.returncode, out=out, err=err)


@pytest.fixture(scope="session")
def program():
    """The module program.py, for what one process is to compute."""
    spec = importlib.util.spec_from_file_location("program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def begin():
    """``begin(ranks, *arguments)`` starts python with `arguments` on so many ranks, as a Popen;
    0 ranks: without mpiexec.
    """
    launcher = mpiexec()

    def run(ranks, *arguments):
        command = [launcher, "-n", ranks] if ranks else []
        return start([*command, sys.executable, *arguments])

    return run


@pytest.fixture(scope="session")
def launch(begin):
    """`begin`, and the end: an object with status, out and err."""
    return lambda ranks, *arguments: finish(begin(ranks, *arguments))


@pytest.fixture(scope="session")
def check(launch):
    """``check(ranks, name, *arguments)``: the function of program.py passes on so many ranks."""

    def run(ranks, name, *arguments):
        done = launch(ranks, PROGRAM, name, *arguments)
        assert done.status == 0, f"{done.out}\n{done.err}"
        return done

    return run


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A directory with 71 of the bundled digits in IDX files, for training and testing alike."""
    train, _ = data.bundled_digits()
    folder = tmp_path_factory.mktemp("digits")
    for stem in ("train", "t10k"):
        arrays = {"images-idx3": train.images[::57, 0], "labels-idx1": train.labels[::57]}
        for kind, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            content = header + array.astype(np.uint8).tobytes()
            (folder / f"{stem}-{kind}-ubyte").write_bytes(content)
    return folder
