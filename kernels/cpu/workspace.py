"""Memory that outlives a call: page-faulting a fresh buffer costs more than filling it.

The system hands out large buffers page by page, on first touch, each page zeroed: for the two
megabytes of a LeNet layer that takes ten times as long as writing them. So scratch memory is kept
between calls (`workspace`), and so are the buffers of results (`empty`), which are used again once
nobody refers to them any more.
"""

import math
import sys

import numpy as np

from kernels.cpu.emitter import CACHE_LINE
from kernels.memory import Memory, pool

# Smaller results come from NumPy's own cache or the C heap; larger ones would bind too much memory.
_SMALLEST, _LARGEST = 64 << 10, 512 << 20
# Free buffers are given up when a new one is needed and they take more than this together.
_FREE_BYTES = 640 << 20
# A result may take a free buffer up to so many times as large, the smallest there is. If each size
# had its own, results in inference would take 1.2 to 1.8 times as much memory; beyond 3 they take
# more again in training, where large ones find their buffers taken.
_ROOMIEST = 3


def workspace(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised array that is valid until the next call with this name in this thread."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    buffer = pool.by_name.get(name)
    if buffer is None or buffer.size < size:
        buffer = pool.by_name[name] = _buffer(size)
    return buffer[:size].view(dtype).reshape(shape)


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """As np.empty, on a buffer used before if there is a free one of this size, or not much larger.

    Every view of a buffer, the array returned and any made from it, refers to the buffer as its
    base. One that only the pool refers to is therefore free, wherever its arrays went meanwhile.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not _SMALLEST <= size <= _LARGEST:
        return np.empty(shape, dtype)
    buffers, i = _free_place(size) or _new_place(size)
    if buffers[i].size != size:
        buffers[i] = _cut(buffers[i].base.obj, size)
    return np.ndarray(shape, dtype, buffers[i])


def _free_place(size):
    """The list and the place there of a free buffer for so many bytes; None if there is none."""
    by_size = pool.by_size
    if (i := _free_one(by_size.get(size, ()))) is not None:
        return by_size[size], i
    for larger in sorted(each for each in by_size if size < each <= _ROOMIEST * size):
        if (i := _free_one(by_size[larger])) is not None:
            return by_size[larger], i
    return None


def _new_place(size):
    if _free_bytes() > _FREE_BYTES:
        _drop_free_buffers()
    buffers = pool.by_size.setdefault(size, [])
    buffers.append(_buffer(size))
    return buffers, len(buffers) - 1


def _buffer(size):
    memory = Memory(size + CACHE_LINE, np.uint8)
    memory.sign = pool.sign
    return _cut(memory, size)


def _cut(memory, size):
    """Bytes from the start of a cache line on: a vector that lies on two lines takes two loads."""
    start = -memory.ctypes.data % CACHE_LINE
    # Of a slice's views NumPy would make `memory` the base, and `empty` could not count them.
    return np.frombuffer(memory.data[start : start + size], np.uint8)


def _references(buffers, i):
    return sys.getrefcount(buffers[i])


_UNSHARED = _references([np.empty(0, np.uint8)], 0)


def _free_one(buffers):
    """The place of the first that only the pool refers to; None if all are in use."""
    for i in range(len(buffers)):
        if _references(buffers, i) == _UNSHARED:
            return i
    return None


def _free_bytes():
    return sum(
        size
        for size, buffers in pool.by_size.items()
        for i in range(len(buffers))
        if _references(buffers, i) == _UNSHARED
    )


def _drop_free_buffers():
    for buffers in pool.by_size.values():
        buffers[:] = [
            buffers[i] for i in range(len(buffers)) if _references(buffers, i) > _UNSHARED
        ]
