"""``train --distributed``: what it prints and writes, how it ends, and how it fails."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from architectures.lenet import ARCHITECTURE
from minidl import checkpoint, cli

PROGRAM = Path(__file__).with_name("program.py")
TRAIN = ("-m", "architectures.lenet", "train", "--distributed", "--batch-size", "16")


def rows(folder):
    table = json.loads((folder / "history.json").read_text())
    return [{k: v for k, v in row.items() if k != "samples_per_s"} for row in table]


def fails(capsys, *arguments):
    assert cli.run(ARCHITECTURE, ["train", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    return err


# -- what it does ----------------------------------------------------------------------------------


def test_one_rank_without_mpiexec_is_an_ordinary_run(launch, digits, tmp_path):
    base = ("--data", digits, "--epochs", 1, "--batch-size", 16, "--out")
    shared = launch(0, *TRAIN, *base, tmp_path / "shared")
    assert shared.status == 0, shared.err
    assert launch(0, *TRAIN[:3], *base, tmp_path / "plain").status == 0
    for ours, theirs in zip(rows(tmp_path / "shared"), rows(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_rank_0_alone_reports_and_writes_and_resume_is_exact(launch, digits, tmp_path):
    base = (*TRAIN, "--data", digits, "--epochs", 3)
    straight = launch(2, *base, "--out", tmp_path / "straight")
    assert straight.status == 0, straight.err
    assert straight.out.count("epoch 1/3") == 1 and straight.out.count("test accuracy") == 1
    assert not straight.err
    written = {path.name for path in (tmp_path / "straight").iterdir()}
    assert written == {
        "last.safetensors", "best.safetensors", "history.csv", "history.json", "curves.png",
    }  # fmt: skip
    cut = tmp_path / "cut"
    stopped = launch(2, PROGRAM, "command", "interrupt", *base[2:], "--out", cut)
    assert stopped.status == 130 and stopped.err.count("\n") == 1 and "--resume" in stopped.err
    saved = checkpoint.load(cut / "last.safetensors")
    assert (saved.progress["epoch"], saved.progress["batch"]) == (1, 3)
    resumed = launch(2, *TRAIN[:4], "--data", digits, "--resume", cut)
    assert resumed.status == 0, resumed.err
    assert rows(cut) == rows(tmp_path / "straight")
    # One process goes on where two have stopped.
    alone = launch(0, *TRAIN[:3], "--data", digits, "--resume", cut, "--epochs", 4)
    assert alone.status == 0 and rows(cut)[:3] == rows(tmp_path / "straight"), alone.err


def test_ctrl_c_saves_the_run(begin, digits, tmp_path):
    process = begin(2, *TRAIN, "--data", digits, "--epochs", 500, "--out", tmp_path)
    deadline = time.monotonic() + 200
    while not (tmp_path / "history.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # mpiexec passes it on
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0 and err.count("--resume") == 1 and "Traceback" not in err, err
    assert checkpoint.load(tmp_path / "last.safetensors").progress["epoch"] >= 2


def test_threads_and_workers_of_a_rank(launch, digits, tmp_path):
    base = ("--data", digits, "--epochs", 1, "--out")
    plain = launch(2, *TRAIN, *base, tmp_path / "plain")
    more = launch(2, *TRAIN, "--workers", 1, "--threads", 1, *base, tmp_path / "workers")
    assert plain.status == more.status == 0, more.err
    assert rows(tmp_path / "plain") == rows(tmp_path / "workers")


# -- how it fails ----------------------------------------------------------------------------------


def spoiled(launch, digits, out, wish, *more):
    """Train on two ranks, of which rank 1 comes to grief in step 3."""
    started = time.monotonic()
    done = launch(
        2, PROGRAM, "command", wish, *TRAIN[2:], "--data", digits, "--out", out, *more,
    )  # fmt: skip
    assert done.status != 0
    assert time.monotonic() - started < 300
    return done


def test_an_exception_on_one_rank_ends_all_and_names_it(launch, digits, tmp_path):
    done = spoiled(launch, digits, tmp_path, "raise")
    assert "Error on rank 1 of 2: planted\n" in done.err
    assert 'raise ValueError("planted")' in done.err  # no mistake of the user's: where it was


def test_a_killed_rank_ends_all(launch, digits, tmp_path):
    done = spoiled(launch, digits, tmp_path, "kill")
    assert "signal 9" in done.out + done.err  # mpiexec's own message


def test_a_rank_that_never_comes_is_given_up(launch, digits, tmp_path):
    done = spoiled(launch, digits, tmp_path, "hang", "--timeout", 5)
    assert "Error on rank 0 of 2: waited 5 s for the other ranks at: " in done.err
    assert "losses and counts" in done.err and "Traceback" not in done.err


def test_a_mistake_of_all_ranks_is_told_once(launch, digits, tmp_path):
    for arguments, words in (
        (("--data", tmp_path / "nowhere"), "nowhere"),
        (("--data", digits, "--batch-size", 1), "batch_size must be at least 2, one a rank"),
        (("--data", digits, "--lr", 1e30), "--lr"),
    ):
        done = launch(2, *TRAIN, *arguments, "--out", tmp_path / "out")
        assert done.status == 2, done.err
        assert done.err.startswith("Error: ") and done.err.count("\n") == 1, done.err
        assert words in done.err
    assert not (tmp_path / "out" / "last.safetensors").exists()


def test_ranks_that_do_not_know_of_each_other(launch, digits, tmp_path):
    done = launch(2, *TRAIN[:3], "--data", digits, "--out", tmp_path)
    assert done.status == 2 and "mpiexec started 2 ranks: add --distributed" in done.err
    assert not list(tmp_path.iterdir())


def test_options_that_need_ranks(capsys):
    for option in (["--sync-batch-norm"], ["--bucket-mb", 3], ["--timeout", 3]):
        assert f"{option[0]} is for --distributed only" in fails(capsys, *option)


def test_without_mpi4py(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert "pip install -e '.[distributed]'" in fails(capsys, "--distributed")


def test_without_an_mpi_library(capsys, monkeypatch, tmp_path):
    """An mpi4py that finds no library raises RuntimeError where it is imported."""
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("")
    (tmp_path / "mpi4py" / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')")
    for name in ("mpi4py", "mpi4py.MPI"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "pip install -e '.[distributed]'" in fails(capsys, "--distributed")
