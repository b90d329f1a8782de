"""BLAS's matrix product on blocks of matrices, to be called inside parallel loops."""

import numpy as np
from numba import njit, types

# Loading the pool of threads confines BLAS to the calling thread: here the cores are taken.
from kernels.cpu import threads  # noqa: F401

# What np.dot compiles to. Called by name it takes blocks of larger matrices as they lie, where
# np.dot would copy them. Fortran's sgemm or dgemm: matrices by columns, and every scalar but the
# sizes by address.
_xxgemm = types.ExternalFunction(
    "numba_xxgemm",
    types.intc(
        types.char, types.char, types.char, types.intp, types.intp, types.intp,  # kind, how, m n k
        types.intp, types.intp, types.intp, types.intp, types.intp,  # alpha, a, lda, b, ldb
        types.intp, types.intp, types.intp,  # beta, c, ldc
    ),
)  # fmt: skip
_PLAIN, _TRANSPOSED, _SINGLE, _DOUBLE = (np.int8(ord(letter)) for letter in "NTsd")


@njit(inline="always")
def _rows_lie_together(x):
    return x.strides[1] == x.itemsize


@njit(inline="always")
def _leading(x):
    """Elements from one row (or column, where those lie together) to the next."""
    if _rows_lie_together(x):
        return max(x.strides[0] // x.itemsize, x.shape[1], 1)
    return max(x.strides[1] // x.itemsize, x.shape[0], 1)


@njit(cache=True)
def gemm(a, b, out, add):
    """out = a @ b, or out += a @ b if `add`: 2-D, of one dtype, float32 or float64.

    The elements of each row of `out`, and of each row or each column of a and b, must lie together;
    blocks and transposes of contiguous matrices may all be given.
    """
    m, k = a.shape
    n = b.shape[1]
    scalars = np.array([1, add], a.dtype)
    # By columns, memory that holds rows of `out` holds its transpose: out^T = b^T a^T.
    _xxgemm(
        _SINGLE if a.itemsize == 4 else _DOUBLE,
        _PLAIN if _rows_lie_together(b) else _TRANSPOSED,
        _PLAIN if _rows_lie_together(a) else _TRANSPOSED,
        n, m, k, scalars.ctypes.data, b.ctypes.data, _leading(b), a.ctypes.data, _leading(a),
        scalars[1:].ctypes.data, out.ctypes.data, _leading(out),
    )  # fmt: skip
