"""The product of two matrices, or of stacks of them: y[i, j] = sum_k a[i, k] b[k, j]."""

from kernels.geometry import check_dtypes, check_matmul


def matmul(a, b):
    """a @ b: a (..., M, K), b (..., K, N) -> (..., M, N), of one dtype, float32 or float64.

    Leading axes, those of stacks, broadcast.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    check_dtypes(a=a, b=b)
    check_matmul(a.shape, b.shape)
    return a @ b
