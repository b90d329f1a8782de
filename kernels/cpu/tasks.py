"""Parallel loops: how many tasks they need, and the arithmetic of their indices.

Numba counts these unsigned, which mixes badly with ints.
"""

import numpy as np
from numba import njit

MIN_TASKS = 8  # enough for several cores


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
