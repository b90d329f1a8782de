"""Memory that outlives a call: page-faulting a fresh buffer costs more than filling it.

The system hands out large buffers page by page, on first touch, each page zeroed: for the two
megabytes of a LeNet layer that takes ten times as long as writing them. So scratch memory is kept
between calls (`workspace`), and so are the buffers of results (`empty`), which are used again once
nobody refers to them any more. They begin on a cache line, so that no vector lies across two.
"""

import math
import sys
from threading import local

import numpy as np

from kernels.cpu.emitter import CACHE_LINE

# Smaller results come from NumPy's own cache or the C heap; larger ones would bind too much memory.
_SMALLEST, _LARGEST = 64 << 10, 512 << 20
# Free buffers are given up when a new one is needed and they take more than this together.
_FREE_BYTES = 640 << 20


class _Buffer:
    """Bytes that begin on a cache line, within memory to which all their arrays refer."""

    __slots__ = "memory", "start"

    def __init__(self, size):
        self.memory = np.empty(size + CACHE_LINE, np.uint8)
        self.start = -self.memory.ctypes.data % CACHE_LINE

    def array(self, shape, dtype):
        return np.ndarray(shape, dtype, self.memory, self.start)


class _Memory(local):
    """The buffers of one thread: no other thread can take one between the look and the grip."""

    def __init__(self):
        self.by_name = {}
        self.by_size = {}


_memory = _Memory()


def workspace(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised array that is valid until the next call with this name in this thread."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    buffer = _memory.by_name.get(name)
    if buffer is None or buffer.memory.size < size + CACHE_LINE:
        buffer = _memory.by_name[name] = _Buffer(size)
    return buffer.array(shape, dtype)


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """As np.empty, on a buffer used before if there is a free one of this size.

    Every view of a buffer, the array returned and any made from it, refers to the buffer as its
    base. One that only the pool refers to is therefore free, wherever its arrays went meanwhile.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not _SMALLEST <= size <= _LARGEST:
        return np.empty(shape, dtype)
    buffers = _memory.by_size.setdefault(size, [])
    for i in range(len(buffers)):
        if _references(buffers, i) == _UNSHARED:
            break
    else:
        if _free_bytes() > _FREE_BYTES:
            _drop_free_buffers()
        i = len(buffers)
        buffers.append(_Buffer(size))
    return buffers[i].array(shape, dtype)


def _references(buffers, i):
    return sys.getrefcount(buffers[i].memory)


_UNSHARED = _references([_Buffer(0)], 0)


def _free_bytes():
    return sum(
        size
        for size, buffers in _memory.by_size.items()
        for i in range(len(buffers))
        if _references(buffers, i) == _UNSHARED
    )


def _drop_free_buffers():
    for buffers in _memory.by_size.values():
        buffers[:] = [
            buffers[i] for i in range(len(buffers)) if _references(buffers, i) > _UNSHARED
        ]
