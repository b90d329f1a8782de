"""Turns, ceilings and what is made of the figures. No timing is asserted."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import report, tasks
from benchmarks.tasks import Figure, Machine, Plan, Task
from kernels.study import ceilings, timing
from kernels.study.ceilings import Ceilings, measure_ceilings
from kernels.study.timing import Spread

CEILINGS = Ceilings(flops=200e9, bandwidth=10e9)
PNG = b"\x89PNG\r\n\x1a\n"


def figure(name="conv", flops=2_000_000_000, traffic=1_000_000, peer=0.04, memory=None):
    times = {"minidl": Spread(0.018, 0.02, 0.03)}
    if peer:
        times["PyTorch"] = Spread(peer, peer, peer)
    return Figure(name, flops, traffic, times, CEILINGS, memory or {})


def test_candidates_take_turns():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    times = timing.interleaved(runs, rounds=3, warmup=1, turn=0)
    assert called == [*"aabb", *"ababab"]
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_short_candidates_fill_their_turn(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    called = []
    times = timing.interleaved({"a": lambda: called.append(0)}, rounds=2, warmup=0, turn=4.0)
    # Every reading of the clock is a second later: one call takes 1 s, and 4 fill a turn.
    assert len(called) == 1 + 2 * 4
    assert times == {"a": [0.25, 0.25]}


def test_spread_is_by_quartiles():
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == Spread(2.0, 4.0, 6.0)


def test_floor_is_the_ceiling_that_binds():
    assert CEILINGS.floor(400_000_000_000, 10_000_000_000) == 2.0
    assert CEILINGS.bound(400_000_000_000, 10_000_000_000) == "arithmetic"
    assert CEILINGS.floor(400_000_000_000, 30_000_000_000) == 3.0
    assert CEILINGS.bound(400_000_000_000, 30_000_000_000) == "traffic"
    assert CEILINGS.highest(Ceilings(100e9, 20e9)) == Ceilings(200e9, 20e9)


def test_arithmetic_of_a_figure():
    conv = figure()
    assert conv.floor == pytest.approx(0.01)
    assert conv.percent == pytest.approx(50)
    assert conv.ratio == pytest.approx(0.5)
    assert report.speed(conv) == "100.0 GFLOP/s"
    relu = figure(flops=0, traffic=100_000_000)
    assert relu.percent == pytest.approx(50)
    assert report.speed(relu) == "5.0 GB/s"
    assert figure(peer=None).ratio is None


def test_ceilings_are_measured(monkeypatch):
    monkeypatch.setattr("kernels.study.ceilings._SIDE", 64)
    monkeypatch.setattr("kernels.study.ceilings._VALUES", 1 << 12)
    measured = measure_ceilings(rounds=2)
    assert measured.flops > 0 and measured.bandwidth > 0


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_the_measured_product_is_one(shares):
    a, b = np.random.default_rng(0).random((2, 32, 32))
    y = np.empty_like(a)
    ceilings._product(a, b, y, shares)
    np.testing.assert_allclose(y, a @ b, rtol=1e-13)


def task(name, step=lambda: None):
    return Task(
        name, 10, 20, lambda peer: {"minidl": step, **({"PyTorch": step} if peer else {})},
        lambda peer: {"minidl": 1 << 20},
    )  # fmt: skip


@pytest.fixture
def fixed_ceilings(monkeypatch):
    ceilings = iter([Ceilings(1e9, 3e9), Ceilings(2e9, 2e9)])
    monkeypatch.setattr(tasks, "measure_ceilings", lambda rounds: next(ceilings))


def test_run_takes_the_higher_ceilings(fixed_ceilings):
    named = []
    figures, _ = tasks.run([task("one"), task("two")], Plan(2, True, Machine(1)), named.append)
    assert named == [f.name for f in figures] == ["one", "two"]
    assert {f.ceilings for f in figures} == {Ceilings(2e9, 3e9)}
    assert list(figures[0].times) == ["minidl", "PyTorch"]
    assert figures[0].memory == {"minidl": 1 << 20}


def test_a_task_under_ceilings_counts_against_its_own(fixed_ceilings, monkeypatch):
    own = Ceilings(5e9, 7e9)
    monkeypatch.setattr(
        tasks, "timed_under_ceilings",
        lambda runs, rounds: ({name: [1.0] * rounds for name in runs}, own),
    )  # fmt: skip
    todo = [task("one"), replace(task("two"), under_ceilings=True)]
    figures, _ = tasks.run(todo, Plan(2, False, Machine(1)), lambda name: None)
    assert [f.ceilings for f in figures] == [Ceilings(2e9, 3e9), own]
    assert own.sentence() in report.table(figures, report.taken_on(Machine(1)), [])


def interrupt():
    raise KeyboardInterrupt


def test_interrupted_run_keeps_what_is_measured(fixed_ceilings):
    plan = Plan(2, False, Machine(1))
    figures, error = tasks.run([task("one"), task("two", interrupt)], plan, lambda name: None)
    assert [f.name for f in figures] == ["one"] and isinstance(error, KeyboardInterrupt)


def test_table():
    figures = [figure(memory={"minidl": 3 << 20, "PyTorch": 5 << 20}), figure("relu", 0, 100000000)]
    lines = report.table(figures, report.taken_on(Machine(2)), ["A note."]).splitlines()
    (row,) = (line for line in lines if line.startswith("| conv"))
    assert row == (
        "| conv | 20 (18 to 30) | 40 (40 to 40) | 0.50 | 10 | 100.0 GFLOP/s | 50 % of arithmetic "
        "| 3 MiB | 5 MiB |"
    )
    assert "2 threads" in lines[0] and "numpy" in lines[0] and lines[0].endswith("; float32.")
    assert lines[-1] == "- A note."
    header = next(line for line in lines if line.startswith("|  |"))
    assert "ratio" in header
    captured = replace(
        figure(), times={**figure().times, "minidl captured": Spread(0.01, 0.01, 0.01)}
    )
    lines = report.table([captured, figure("relu")], report.taken_on(Machine(2)), []).splitlines()
    assert "|  | minidl ms | minidl captured ms | PyTorch ms | ratio | ratio captured |" in "".join(
        line for line in lines if line.startswith("|  |")
    )
    assert any("| 0.50 | 0.25 |" in line for line in lines)
    alone = report.table([figure(peer=None)], report.taken_on(Machine(2)), [])
    assert "PyTorch ms" not in alone and "ratio" not in alone


@pytest.mark.parametrize("peer", [0.04, None])
def test_files(tmp_path, peer):
    about = report.taken_on(Machine(2))
    paths = report.save(tmp_path / "new", "layers", [figure(peer=peer)], about, ["A note."])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "layers.json", "layers.md", "layers.png",
    ]  # fmt: skip
    assert paths[0].read_text().startswith("# Speed of layers\n")
    stored = json.loads(paths[1].read_text())
    assert {"cpu", "cores", "threads", "python", "numpy", "numba", "torch", "date"} <= set(
        stored["machine"]
    )
    (entry,) = stored["figures"]
    assert entry["ratio"] == (0.5 if peer else None)
    assert entry["seconds"]["minidl"] == [0.018, 0.02, 0.03]
    assert entry["percent_of_bound"] == pytest.approx(50)
    assert stored["ceilings"] == {"flops_per_s": 200e9, "bytes_per_s": 10e9}
    assert paths[2].read_bytes().startswith(PNG)
