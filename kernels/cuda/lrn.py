"""Local response normalisation on the GPU; the definitions stand in kernels.reference.lrn."""

from kernels.cuda import runtime
from kernels.reference.lrn import check_lrn


def _geometry(x, size):
    """channels, positions, and how far the window reaches before and after its channel."""
    channels, h, w = x.shape[1:]
    window = min(size // 2, channels), min((size - 1) // 2, channels)
    return runtime.ints(channels, h * w, *window)


def lrn(x, size, alpha, beta, k, size_normalized=False):
    """See kernels.reference.lrn."""
    check_lrn(size, x=x)
    alpha = alpha / size if size_normalized else alpha
    x = runtime.contiguous(x)
    y, scale = runtime.empty(x.shape, x.dtype), runtime.empty(x.shape, x.dtype)
    numbers = (*_geometry(x, size), float(alpha), float(beta), float(k))
    runtime.launch_elements("lrn", "lrn", x.dtype, x.size, (x, y, scale, *numbers, x.size))
    return y, scale


def lrn_backward(dy, x, scale, size, alpha, beta, k, size_normalized=False):
    """See kernels.reference.lrn_backward."""
    check_lrn(size, x=x, dy=dy, scale=scale)
    alpha = alpha / size if size_normalized else alpha
    dy, x, scale = (runtime.contiguous(array) for array in (dy, x, scale))
    dx = runtime.empty(x.shape, x.dtype)
    numbers = (*_geometry(x, size), float(2 * alpha * beta), float(beta))
    args = (dy, x, scale, dx, *numbers, x.size)
    runtime.launch_elements("lrn", "lrn_backward", x.dtype, x.size, args)
    return dx
