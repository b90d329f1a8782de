"""Buffers of results: used again when free, never while anything refers to them."""

import threading

import numpy as np
import pytest

from kernels import memory
from kernels.cpu import workspace
from kernels.cpu.emitter import CACHE_LINE
from kernels.cpu.workspace import empty
from kernels.memory import Pool, fills_a_buffer, is_pooled_here
from minidl import Tensor

SHAPE = (64, 1024)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def fresh_memory(monkeypatch):
    fresh = Pool()
    monkeypatch.setattr(workspace, "pool", fresh)
    monkeypatch.setattr(memory, "pool", fresh)


def test_a_free_buffer_is_used_again():
    first = empty(SHAPE, np.float32)
    where = address(first)
    del first
    again = empty((1024, 32), np.float64)
    assert address(again) == where
    assert again.shape == (1024, 32) and again.dtype == np.float64
    assert again.flags.c_contiguous and again.flags.writeable and again.flags.aligned


def test_a_result_takes_the_smallest_free_buffer_that_is_not_much_larger():
    sizes = (1 << 20, 500 << 10, 300 << 10)
    kept = [empty((size,), np.uint8) for size in sizes]
    largest, _, smallest = (address(array) for array in kept)
    del kept
    small = empty((200 << 10,), np.uint8)
    assert address(small) == smallest
    assert small.base.nbytes == small.nbytes and fills_a_buffer(small)
    # It is whole again when it is free, and no other result is on it before.
    assert address(empty((300 << 10,), np.uint8)) != smallest
    view = small[: 100 << 10]
    del small
    assert address(empty((250 << 10,), np.uint8)) != smallest
    del view
    whole = empty((300 << 10,), np.uint8)
    assert address(whole) == smallest and fills_a_buffer(whole)
    tiny = empty((100 << 10,), np.uint8)
    assert address(tiny) not in (largest, smallest)


@pytest.mark.parametrize(
    "derive",
    [
        lambda a: a,
        lambda a: a[3:5, ::2],
        lambda a: a.reshape(-1).view(np.int32).T,
        lambda a: memoryview(a),
        lambda a: np.frombuffer(a, np.uint8),
        lambda a: np.from_dlpack(a),
    ],
)
def test_a_buffer_in_use_is_left_alone(derive):
    kept = derive(empty(SHAPE, np.float32))
    where = address(np.asarray(kept))
    others = [empty(SHAPE, np.float32) for _ in range(3)]
    spans = sorted(address(a) for a in others)
    assert all(not start <= where < start + others[0].nbytes for start in spans)
    assert all(b - a >= others[0].nbytes for a, b in zip(spans, spans[1:], strict=False))


def test_threads_do_not_share_buffers():
    where = address(empty(SHAPE, np.float32))
    assert is_pooled_here(empty(SHAPE, np.float32))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(empty(SHAPE, np.float32)))
    thread.start()
    thread.join()
    mine = empty(SHAPE, np.float32)
    assert address(mine) == where != address(seen[0])
    assert fills_a_buffer(seen[0]) and not is_pooled_here(seen[0])


def test_free_buffers_are_given_up_before_the_pool_outgrows_its_bound(monkeypatch):
    monkeypatch.setattr(workspace, "_FREE_BYTES", 1 << 20)
    kept = empty((300 << 10,), np.uint8)
    for size in range(100 << 10, 500 << 10, 10 << 10):
        empty((size,), np.uint8)
        free = sum(
            buffer.size
            for buffers in workspace.pool.by_size.values()
            for buffer in buffers
            if buffer is not kept.base
        )
        assert free <= (1 << 20) + size
    assert kept.base in workspace.pool.by_size[300 << 10]


@pytest.mark.parametrize("shape", [(), (0, 5), (10,), (600 << 20,)])
def test_small_and_huge_results_are_not_kept(shape):
    array = empty(shape, np.uint8)
    assert array.shape == shape and array.base is None
    assert not workspace.pool.by_size


def test_results_are_known_by_their_buffers():
    array = empty(SHAPE, np.float32)
    assert array.ctypes.data % CACHE_LINE == 0
    assert fills_a_buffer(array) and fills_a_buffer(array.reshape(-1).view(np.int32))
    assert not fills_a_buffer(array[1:])
    assert not fills_a_buffer(np.broadcast_to(array[:1], SHAPE))
    assert not fills_a_buffer(np.empty(SHAPE)) and not fills_a_buffer(np.empty(SHAPE).reshape(-1))
    assert not fills_a_buffer(np.frombuffer(bytearray(16), np.uint8).view(np.float32))


def test_a_leaf_takes_a_gradient_without_a_copy():
    x = Tensor(np.ones((64, 32, 16, 16), np.float32), requires_grad=True)
    x.relu().relu().sum().backward()
    assert fills_a_buffer(x.grad.numpy())
