"""Scratch memory that outlives a call: page-faulting a fresh buffer costs more than filling it."""

import math
from threading import local

import numpy as np


class _Buffers(local):
    def __init__(self):
        self.by_name = {}


_buffers = _Buffers()


def workspace(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised array that is valid until the next call with this name in this thread."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    buffer = _buffers.by_name.get(name)
    if buffer is None or buffer.size < size:
        buffer = _buffers.by_name[name] = np.empty(size, np.uint8)
    return buffer[:size].view(dtype).reshape(shape)
