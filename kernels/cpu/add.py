"""Sums of two arrays on all cores; the definition stands in kernels.reference.add."""

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import chunk_bounds
from kernels.cpu.workspace import empty
from kernels.geometry import check_dtypes, check_shape

# Elements a task; fewer than two tasks are left to NumPy.
_CHUNK = 1 << 14


@njit(parallel=True, cache=True)
def _add(a, b, y):
    for chunk in prange((y.size + _CHUNK - 1) // _CHUNK):
        start, stop = chunk_bounds(chunk, _CHUNK, y.size)
        left, right, result = a[start:stop], b[start:stop], y[start:stop]
        for i in range(result.size):
            result[i] = left[i] + right[i]


def add(a, b):
    """See kernels.reference.add."""
    check_dtypes(a=a, b=b)
    check_shape("b", b.shape, a.shape)
    y = empty(a.shape, a.dtype)
    if y.size < 2 * _CHUNK:
        return np.add(a, b, out=y)
    _add(*(np.ascontiguousarray(array).reshape(-1) for array in (a, b)), y.reshape(-1))
    return y
