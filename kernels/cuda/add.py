"""The sum of two arrays on the GPU; the definition stands in kernels.reference.add."""

from kernels.cuda import runtime
from kernels.geometry import check_dtypes, check_shape


def add(a, b):
    """See kernels.reference.add."""
    check_dtypes(a=a, b=b)
    check_shape("b", b.shape, a.shape)
    a, b = runtime.contiguous(a), runtime.contiguous(b)
    y = runtime.empty(a.shape, a.dtype)
    runtime.launch_elements("add", "add", a.dtype, a.size, (a, b, y, a.size))
    return y
