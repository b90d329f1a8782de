"""The loader's worker processes: the same batches, and no process left behind."""

import gc
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minidl import data
from minidl.data.transforms import Compose, Normalize, RandomCrop, RandomResizedCrop, Resize
from minidl.data.workers import WorkerPool

# What the workers run must be importable there: it lies in a module of its own.
MODULE = '''
import os
import signal
import sys
import threading

import numpy as np


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__("two arguments")


def fail(images, rng):
    raise KeyError("broken transform")


def fail_unpicklable(images, rng):
    raise Unpicklable(1, 2)


def die(images, rng):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(images, rng):
    sys.exit(3)


def surroundings(images, rng):
    """1 where Numba is loaded, the threads of the process, 1 where Ctrl-C is blocked, the pid."""
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    np.ones((300, 300)) @ np.ones((300, 300))
    threads = len(os.listdir("/proc/self/task"))
    return np.array([[("numba" in sys.modules), threads, blocked, os.getpid()]], np.float64)


def echo(value):
    return value
'''


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    (folder / "minidl_remote.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    import minidl_remote

    yield minidl_remote
    sys.path.remove(str(folder))


@pytest.fixture
def digits():
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (23, 3, 8, 8)).astype(np.uint8)
    return data.ArrayDataset(images, np.arange(23) % 5, 5)


def loader_processes():
    return [child for child in active_children() if child.name == "minidl-loader"]


@pytest.fixture(autouse=True)
def no_process_stays():
    yield
    gc.collect()
    assert not loader_processes()


def assert_same(ours, theirs):
    for (a, i), (b, j) in zip(ours, theirs, strict=True):
        assert a.dtype == np.float32 and i.dtype == np.int64
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(i, j)


def test_batches_do_not_depend_on_the_workers(digits):
    transform = Compose(RandomCrop(8, padding=2), Normalize(0.5, 0.25))
    plain, one, two = (
        data.DataLoader(digits, 3, shuffle=True, seed=7, transform=transform, workers=n, prefetch=p)
        for n, p in ((0, 2), (1, 0), (2, 2))
    )
    for epoch in (0, 4):
        for loader in (plain, one, two):
            loader.set_epoch(epoch)
        whole = list(plain)
        assert_same(one, whole)
        assert_same(two, whole)
    pids = {child.pid for child in loader_processes()}
    assert len(pids) == 3
    for start in (0, 5, len(plain)):
        assert_same(two.iter_from(start), whole[start:])
    one.seed = plain.seed = 8  # as a resumed run sets it
    assert_same(one, list(plain))
    assert {child.pid for child in loader_processes()} == pids  # they have persisted
    one.transform = plain.transform = Normalize(0, 1)
    assert_same(one, list(plain))
    one.close()
    one.close()
    assert len(loader_processes()) == 2
    assert_same(one, list(plain))  # starts anew


def test_two_iterations_at_a_time(digits):
    loader = data.DataLoader(digits, 8, workers=1)
    whole = list(data.DataLoader(digits, 8))
    for ours, theirs, expected in zip(loader, loader, whole, strict=True):
        assert_same([ours, theirs], [expected, expected])
    assert len(loader_processes()) == 1


def test_batches_can_be_kept_and_written(digits):
    batches = list(data.DataLoader(digits, 8, workers=1))
    expected = [images.copy() for images, _ in data.DataLoader(digits, 8)]
    batches[0][0][:] = 0
    assert (batches[0][0] == 0).all()
    for (images, _), other in zip(batches[1:], expected[1:], strict=True):
        assert (images == other).all()


def write_pictures(root, broken=()):
    draw = np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir()
        for i in range(6):
            path = root / name / f"{i}.jpg"
            pixels = draw.integers(0, 256, (20 + i, 30 - i, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
            if f"{name}{i}" in broken:
                path.write_bytes(b"nothing that decodes")


def test_pictures_and_skipped_ones(tmp_path):
    write_pictures(tmp_path, broken=("a1", "b2", "b3"))
    plain, spread = (
        data.DataLoader(data.ImageFolder(tmp_path, "skip"), 2, workers=n,
                        transform=RandomResizedCrop(16))
        for n in (0, 2)
    )  # fmt: skip
    with pytest.warns(UserWarning, match="3 unreadable images"):
        expected = list(plain)
    assert len(expected) == 5  # b2 and b3 were a batch
    with pytest.warns(UserWarning, match="3 unreadable images"):
        assert_same(spread, expected)
    assert spread.dataset.skipped == plain.dataset.skipped
    assert_same(spread, expected)
    unequal = data.DataLoader(data.ImageFolder(tmp_path, "skip"), 4, workers=1)
    with pytest.warns(UserWarning, match="3 unreadable images"):
        shapes = [[image.shape for image in images] for images, _ in unequal]
    assert shapes[0] == [(3, 20, 30), (3, 22, 28), (3, 23, 27)]


def test_unreadable_picture_in_a_worker(tmp_path):
    write_pictures(tmp_path, broken=("a1",))
    loader = data.DataLoader(data.ImageFolder(tmp_path), 2, workers=1, transform=Resize((4, 4)))
    with pytest.raises(data.UnreadableImage, match="1.jpg"):
        list(loader)


def test_what_a_worker_raises_reaches_the_consumer(digits, remote):
    with pytest.raises(KeyError, match="broken transform") as caught:
        list(data.DataLoader(digits, 4, workers=1, transform=remote.fail))
    assert "minidl_remote.py" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Unpicklable: two arguments"):
        list(data.DataLoader(digits, 4, workers=1, transform=remote.fail_unpicklable))


def test_a_dead_worker_is_an_error_and_no_hang(digits, remote):
    with pytest.raises(RuntimeError, match=r"pid \d+\) ended by SIGKILL"):
        list(data.DataLoader(digits, 4, workers=1, transform=remote.die))
    with pytest.raises(RuntimeError, match="ended with status 3"):
        list(data.DataLoader(digits, 4, workers=1, transform=remote.leave))


def test_a_worker_killed_between_two_batches(digits):
    loader = data.DataLoader(digits, 1, workers=2, prefetch=1)
    batches = iter(loader)
    next(batches)
    os.kill(loader_processes()[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="SIGKILL"):
        list(batches)
    assert not loader_processes()
    assert len(list(loader)) == 23  # and the next iteration starts others
    os.kill(loader_processes()[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="SIGKILL"):
        list(loader)


def test_an_abandoned_iteration_ends_its_workers(digits):
    loader = data.DataLoader(digits, 1, workers=2)
    for _ in loader:
        assert len(loader_processes()) == 2
        break
    gc.collect()
    assert not loader_processes()
    list(loader)
    assert len(loader_processes()) == 2
    del loader
    gc.collect()
    assert not loader_processes()


def test_surroundings_of_a_worker(digits, remote):
    before = dict(os.environ)
    batches = list(data.DataLoader(digits, 4, workers=2, transform=remote.surroundings))
    assert dict(os.environ) == before
    numba, threads, blocked, pids = np.concatenate([images for images, _ in batches]).T
    assert (numba == 0).all() and (threads == 1).all() and (blocked == 1).all()
    assert len(set(pids)) == 2 and os.getpid() not in pids


def test_what_cannot_be_pickled(digits):
    with pytest.raises(TypeError, match="no lambda.*workers=0"):
        list(data.DataLoader(digits, 4, workers=2, transform=lambda images, rng: images))
    for bad in (-1, True, 1.5):
        with pytest.raises(ValueError, match="workers"):
            data.DataLoader(digits, 4, workers=bad)


def test_results_of_every_kind_travel(remote):
    array = np.arange(10, dtype=np.int16)
    values = [
        1, "text", None, [], array, array[::2], array[:0], np.zeros((0, 3)), {"a": [array, array]},
        np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.float32(2.5), [array[:0], array],
    ]  # fmt: skip
    pool = WorkerPool(remote.echo, 2)
    for ahead in (1, 3):
        for value, result in zip(values, pool.map(values, ahead), strict=True):
            assert type(result) is type(value)
            np.testing.assert_equal(result, value)
    assert list(pool.map([], 2)) == []
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(pool.map([1], 2))


def test_neither_end_waits_for_the_other(remote):
    """Tasks and results far larger than what a socket holds, as many ahead as can be."""
    values = [np.zeros((2, 50_000), np.float32)[:, ::-1] for _ in range(100)]
    pool = WorkerPool(remote.echo, 1)
    assert sum(result.shape == (2, 50_000) for result in pool.map(values, 1000)) == 100
    pool.close()


SCRIPT = """
import os, sys, time
from multiprocessing import active_children
import numpy as np
from minidl import data

if __name__ == "__main__":
    digits = data.ArrayDataset(np.zeros((400, 4, 4), np.uint8), np.zeros(400, int))
    loader = data.DataLoader(digits, 1, workers=2)
    batches = iter(loader)
    next(batches)
    print(*[child.pid for child in active_children()], flush=True)
    if sys.argv[1] != "end":
        for _ in batches:
            time.sleep(0.1)
"""


@pytest.mark.parametrize("how", ["end", signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_script(tmp_path, how):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    root = Path(data.__file__).parents[2]
    script = subprocess.Popen(
        [sys.executable, str(path), str(how)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)}, text=True, start_new_session=True,
    )  # fmt: skip
    pids = script.stdout.readline().split()
    assert len(pids) == 2
    if how == signal.SIGINT:
        os.killpg(script.pid, how)  # as a terminal does: to the workers, too
    elif how == signal.SIGKILL:
        script.kill()
    _, errors = script.communicate(timeout=20)
    assert errors.count("Traceback") == (how == signal.SIGINT)
    deadline = time.monotonic() + 10
    while any(Path("/proc", pid).exists() for pid in pids):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.02)
