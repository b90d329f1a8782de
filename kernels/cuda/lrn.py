"""Local response normalisation on the GPU; the definitions stand in kernels.reference.lrn."""

from kernels.cuda import runtime
from kernels.reference.lrn import check_lrn

# Pixels and rows of threads in a block, and channels, as lrn.cu has them.
_THREADS = (32, 8)
_TILE = 32


def _geometry(x, size):
    """channels, positions, and how far the window reaches before and after its channel."""
    channels, h, w = x.shape[1:]
    window = min(size // 2, channels), min((size - 1) // 2, channels)
    return runtime.ints(channels, h * w, *window)


def _launch(kernel, x, args):
    """On blocks that share x (N, C, H, W) out as lrn.cu has it."""
    n, channels, h, w = x.shape
    tiles = n * runtime.blocks(channels, _TILE) * runtime.blocks(h * w, _THREADS[0])
    runtime.launch("lrn", kernel, x.dtype, tiles, _THREADS, args)


def lrn(x, size, alpha, beta, k, size_normalized=False):
    """See kernels.reference.lrn."""
    check_lrn(size, x=x)
    alpha = alpha / size if size_normalized else alpha
    x = runtime.contiguous(x)
    y, scale = runtime.empty(x.shape, x.dtype), runtime.empty(x.shape, x.dtype)
    numbers = (*_geometry(x, size), float(alpha), float(beta), float(k))
    _launch("lrn", x, (x, y, scale, *numbers))
    return y, scale


def lrn_backward(dy, x, scale, size, alpha, beta, k, size_normalized=False):
    """See kernels.reference.lrn_backward."""
    check_lrn(size, x=x, dy=dy, scale=scale)
    alpha = alpha / size if size_normalized else alpha
    dy, x, scale = (runtime.contiguous(array) for array in (dy, x, scale))
    dx = runtime.empty(x.shape, x.dtype)
    numbers = (*_geometry(x, size), float(2 * alpha * beta), float(beta))
    _launch("lrn_backward", x, (dy, x, scale, dx, *numbers))
    return dx
