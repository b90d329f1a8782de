"""Parallel loops: how many tasks they need, and the arithmetic of their indices.

Numba counts these unsigned, which mixes badly with ints.
"""

import numpy as np
from numba import njit

MIN_TASKS = 8  # enough for several cores
# Elements that are worth a task of their own.
_TASK_SIZE = 1 << 14


def group_size(count: int, size: int) -> int:
    """How many of `count` pieces of `size` elements make a task, at least one."""
    return max(1, min(_TASK_SIZE // size, count // MIN_TASKS))


@njit(inline="always")
def split(task, count):
    """divmod for the index of a parallel loop: (task // count, task % count), signed."""
    task = np.int64(task)
    return task // count, task % count


@njit(inline="always")
def chunk_bounds(chunk, length, size):
    """(start, stop) of piece number `chunk`, of `length` elements, of an array of `size`."""
    start = np.int64(chunk) * length
    return start, min(size, start + length)
