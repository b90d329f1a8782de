"""The sum of two arrays on the GPU; the definition stands in kernels.reference.add."""

from kernels.cuda import runtime
from kernels.cuda.packs import launch_packs
from kernels.reference.add import check_add


def add(a, b, out=None):
    """See kernels.reference.add."""
    check_add(a, b, out)
    if out is not None and not out.flags.c_contiguous:
        out[...] = add(a, b)
        return out
    y = runtime.empty(a.shape, a.dtype) if out is None else out
    a, b = runtime.contiguous(a), runtime.contiguous(b)
    launch_packs("add", "add", a, (a, b, y))
    return y
