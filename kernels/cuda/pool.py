"""Pooling on the GPU; the definitions stand in kernels.reference.pool."""

import weakref

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.packs import launch_packs, pack_size
from kernels.geometry import check_shape, pool_output_size
from kernels.reference.pool import (
    check_avg_pool2d_backward,
    check_images,
    check_max_pool2d,
    check_max_pool2d_backward,
    check_switch_range,
    check_switches,
)

# The switches that `max_pool2d` made, by id: (a weak reference, the number of pixels of a plane).
_own_switches = {}


def _geometry(plane, *numbers):
    """The height and width of a plane, and other numbers of a pooling, as `int`s.

    OverflowError for a plane whose pixels an `int` cannot number.
    """
    runtime.ints(plane[0] * plane[1])
    return runtime.ints(*plane, *numbers)


def max_pool2d(x, kernel_size, stride, padding=(0, 0, 0, 0), dilation=(1, 1), ceil_mode=False):
    """See kernels.reference.max_pool2d."""
    y_shape = check_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    x = runtime.contiguous(x)
    y, switches = runtime.empty(y_shape, x.dtype), runtime.empty(y_shape, np.int32)
    numbers = _geometry(
        x.shape[2:], *y_shape[2:], *kernel_size, *stride, padding[0], padding[2], *dilation
    )
    args = (x, y, switches, *numbers, y.size)
    runtime.launch_elements("pool", "max_pool2d", x.dtype, y.size, args)
    _remember(switches, x.shape[2] * x.shape[3])
    return y, switches


def _remember(switches, pixels):
    key = id(switches)
    _own_switches[key] = weakref.ref(switches, lambda _: _own_switches.pop(key, None)), pixels


def _is_own(switches, pixels):
    """Whether `max_pool2d` made this array, from planes of as many pixels.

    Its switches need no look at their range, for which the host would have to wait.
    """
    made, made_of = _own_switches.get(id(switches), (lambda: None, 0))
    return made() is switches and made_of == pixels


def max_pool2d_backward(
    dy, switches, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), dilation=(1, 1)
):
    """See kernels.reference.max_pool2d_backward."""
    check_max_pool2d_backward(dy, switches, x_shape)
    n, c, h, w = map(int, x_shape)
    dx = runtime.empty((n, c, h, w), dy.dtype)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    reach = max(-(-span // step) for span, step in zip(spans, stride, strict=True))
    numbers = _geometry((h, w), *dy.shape[2:], *spans, *stride, padding[0], padding[2], reach)
    threads = n * c * h * runtime.blocks(w, pack_size(dx.dtype))
    args = (runtime.contiguous(dy), runtime.contiguous(switches), dx, *numbers, threads)
    runtime.launch_elements("pool", "max_pool2d_backward", dy.dtype, threads, args)
    return dx


def max_unpool2d(y, switches, plane_shape):
    """See kernels.reference.max_unpool2d."""
    check_images("y", y)
    check_switches(switches, y.shape)
    pixels = plane_shape[0] * plane_shape[1]
    outside = None if _is_own(switches, pixels) else runtime.zeros((1,), np.int32)
    x = runtime.empty((*y.shape[:2], *plane_shape), y.dtype)
    planes = y.shape[0] * y.shape[1]
    numbers = planes, *runtime.ints(y.shape[2] * y.shape[3], pixels)
    args = (runtime.contiguous(y), runtime.contiguous(switches), x, outside, *numbers)
    runtime.launch_warps("pool", "max_unpool2d", y.dtype, planes, args)
    if outside is not None and int(outside[0]):
        check_switch_range(switches, plane_shape)  # which raises
    return x


def max_pool2d_gather(x, switches):
    """See kernels.reference.max_pool2d_gather."""
    check_images("x", x)
    check_switches(switches, (*x.shape[:2], *switches.shape[2:]))
    pixels = x.shape[2] * x.shape[3]
    outside = None if _is_own(switches, pixels) else runtime.zeros((1,), np.int32)
    y = runtime.empty(switches.shape, x.dtype)
    numbers = (*runtime.ints(switches.shape[2] * switches.shape[3], pixels), y.size)
    args = (runtime.contiguous(x), runtime.contiguous(switches), y, outside, *numbers)
    runtime.launch_elements("pool", "max_pool2d_gather", x.dtype, y.size, args)
    if outside is not None and int(outside[0]):
        check_switch_range(switches, x.shape[2:])  # which raises
    return y


def avg_pool2d(
    x, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d."""
    check_images("x", x)
    n, c, h, w = x.shape
    size = pool_output_size(h, w, kernel_size, stride, padding, (1, 1), ceil_mode)
    y = runtime.empty((n, c, *size), x.dtype)
    numbers = _geometry((h, w), *size, *kernel_size, *stride, *padding)
    args = (runtime.contiguous(x), y, *numbers, bool(count_include_pad), y.size)
    runtime.launch_elements("pool", "avg_pool2d", x.dtype, y.size, args)
    return y


def avg_pool2d_backward(
    dy, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d_backward."""
    check_avg_pool2d_backward(dy, x_shape, kernel_size, stride, padding, ceil_mode)
    dx = runtime.empty(x_shape, dy.dtype)
    numbers = _geometry(x_shape[2:], *dy.shape[2:], *kernel_size, *stride, *padding)
    args = (runtime.contiguous(dy), dx, *numbers, bool(count_include_pad), dx.size)
    runtime.launch_elements("pool", "avg_pool2d_backward", dy.dtype, dx.size, args)
    return dx


def global_avg_pool2d(x):
    """See kernels.reference.global_avg_pool2d."""
    check_images("x", x)
    n, c, h, w = x.shape
    y = runtime.empty((n, c, 1, 1), x.dtype)
    args = (runtime.contiguous(x), y, n * c, *runtime.ints(h * w))
    runtime.launch_warps("pool", "global_avg_pool2d", x.dtype, n * c, args)
    return y


def global_avg_pool2d_backward(dy, x_shape):
    """See kernels.reference.global_avg_pool2d_backward."""
    check_images("dy", dy)
    n, c, h, w = map(int, x_shape)
    check_shape("dy", dy.shape, (n, c, 1, 1))
    dx = runtime.empty(x_shape, dy.dtype)
    args = (runtime.contiguous(dy), dx, *runtime.ints(h * w))
    launch_packs("pool", "global_avg_pool2d_backward", dx, args)
    return dx
