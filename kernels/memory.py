"""The memory that results of CPU kernels are made on: kernels.cpu.workspace has the buffers."""

from threading import local

import numpy as np


class Pool(local):
    """The buffers of one thread: no other thread can take one between the look and the grip."""

    def __init__(self):
        self.by_name = {}
        self.by_size = {}  # the size that a buffer was made with -> those, each cut as last used
        self.sign = object()


pool = Pool()


class Memory(np.ndarray):
    """Bytes of a buffer that nobody has but the pool of buffers and the arrays made on it.

    A class of its own, so that the engine knows a result on such a buffer from a view of memory
    that somebody else may hold. `sign`: that of the pool, which goes when its thread ends.
    """

    sign = None


def fills_a_buffer(array: np.ndarray) -> bool:
    """Whether an array takes all of a pool's buffer, alone."""
    base = array.base
    return (
        isinstance(base, np.ndarray)
        and isinstance(getattr(base.base, "obj", None), Memory)
        and base.nbytes == array.nbytes
        and array.flags.forc  # not one element many times
    )


def is_pooled_here(array: np.ndarray) -> bool:
    """Whether this thread's pool refers to the buffer of an array that `fills_a_buffer`."""
    return array.base.base.obj.sign is pool.sign
