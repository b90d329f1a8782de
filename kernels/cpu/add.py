"""Sums of two arrays on all cores; the definition stands in kernels.reference.add."""

import numpy as np
from numba import njit, prange

from kernels.cpu.planes import flat
from kernels.cpu.streams import LONG_PIECE, landing, landings, settle
from kernels.cpu.tasks import chunk_bounds
from kernels.cpu.workspace import empty
from kernels.reference.add import check_add

# Fewer elements are left to NumPy.
_SMALLEST = 1 << 15


@njit(parallel=True, cache=True)
def _add(a, b, y, scratch):
    length = scratch.shape[1]
    for chunk in prange((y.size + length - 1) // length):
        start, stop = chunk_bounds(chunk, length, y.size)
        left, right, result = a[start:stop], b[start:stop], landing(y, start, stop, scratch)
        for i in range(result.size):
            result[i] = left[i] + right[i]
        settle(y, start, result, scratch)


@njit(parallel=True, cache=True)
def _add_onto(a, b):
    """a += b. Given as two operands and a result, they would not become vector code."""
    for chunk in prange((a.size + LONG_PIECE - 1) // LONG_PIECE):
        start, stop = chunk_bounds(chunk, LONG_PIECE, a.size)
        total, other = a[start:stop], b[start:stop]
        for i in range(total.size):
            total[i] += other[i]


def add(a, b, out=None):
    """See kernels.reference.add."""
    check_add(a, b, out)
    y = empty(a.shape, a.dtype) if out is None else out
    if y.size < _SMALLEST or not y.flags.c_contiguous:
        return np.add(a, b, out=y)
    if y is a:
        _add_onto(flat(y), flat(b))
    else:
        _add(flat(a), flat(b), flat(y), landings(y, a, b))
    return y
