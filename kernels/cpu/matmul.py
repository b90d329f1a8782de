"""The product of two matrices on all cores; the definition stands in kernels.reference.matmul.

A task makes a band of the result, some of its rows or, where it is wider than high, some of its
columns. A band of rows reads its rows of a and all of b, a band of columns its columns of b and all
of a: along the longer side, the operand that all tasks read is the smaller one. With a few rows of
activations times a large weight every weight is thus read once.
"""

import numpy as np
from numba import njit, prange

from kernels.cpu.blas import gemm
from kernels.cpu.tasks import chunk_bounds
from kernels.geometry import check_dtypes, check_matmul

# A band: at least so many multiply-adds, a multiple of so many rows or columns (a vector of them),
# and no more bands than this.
_MIN_MACS = 1 << 21
_UNIT = 16
_MAX_BANDS = 64


@njit(parallel=True, cache=True)
def _by_rows(a, b, y, band):
    for task in prange((y.shape[0] + band - 1) // band):
        start, stop = chunk_bounds(task, band, y.shape[0])
        gemm(a[start:stop], b, y[start:stop], False)


@njit(parallel=True, cache=True)
def _by_columns(a, b, y, band):
    for task in prange((y.shape[1] + band - 1) // band):
        start, stop = chunk_bounds(task, band, y.shape[1])
        gemm(a, b[:, start:stop], y[:, start:stop], False)


def _band(extent, macs):
    """The length of a band along an axis of this extent."""
    bands = max(1, min(_MAX_BANDS, macs // _MIN_MACS))
    return -(-extent // (bands * _UNIT)) * _UNIT


def _packed(x):
    """The matrix itself if its rows or its columns are contiguous, else a copy."""
    return x if x.flags.c_contiguous or x.flags.f_contiguous else np.ascontiguousarray(x)


def matmul(a, b):
    """See kernels.reference.matmul."""
    check_dtypes(a=a, b=b)
    check_matmul(a.shape, b.shape)
    (m, k), n = a.shape, b.shape[1]
    if not m * k * n:
        return np.zeros((m, n), a.dtype)
    y = np.empty((m, n), a.dtype)
    macs = m * k * n
    if macs < 2 * _MIN_MACS:
        return np.matmul(a, b, out=y)
    by, extent = (_by_rows, m) if m >= n else (_by_columns, n)
    by(_packed(a), _packed(b), y, _band(extent, macs))
    return y
