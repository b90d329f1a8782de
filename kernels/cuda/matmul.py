"""The product of two matrices on the GPU; the definition stands in kernels.reference.matmul.

cuBLAS makes it, or, where `dispatch.products("own")` asks for it, the kernel of matmul.cu. Stacks
of matrices are cuBLAS's.
"""

import numpy as np

from kernels.cuda import runtime
from kernels.dispatch import products_choice
from kernels.geometry import check_dtypes, check_matmul

# As in product.cuh.
TILE = 64
TILE_THREADS = 256


def matmul(a, b):
    """See kernels.reference.matmul."""
    check_dtypes(a=a, b=b)
    shape = check_matmul(a.shape, b.shape)
    if 0 in (*a.shape, *b.shape):
        return runtime.zeros(shape, a.dtype)
    y = runtime.empty(shape, a.dtype)
    if products_choice() == "own" and len(shape) == 2:
        _launch(a, b, y)
    else:
        runtime.gemm(a, b, y)
    return y


def _launch(a, b, y):
    (m, k), n = a.shape, b.shape[1]
    (a, *a_steps), (b, *b_steps) = _steps(a), _steps(b)
    sizes = map(np.int32, (m, k, n))
    grid = runtime.blocks(m, TILE), runtime.blocks(n, TILE)
    runtime.launch(
        "matmul", "matmul", y.dtype, grid, TILE_THREADS, (a, b, y, *sizes, *a_steps, *b_steps)
    )


def _steps(x):
    """x as a C-contiguous array, and how far apart its rows and columns lie there, in elements."""
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        return x.T, 1, x.shape[0]
    return runtime.contiguous(x), x.shape[1], 1
