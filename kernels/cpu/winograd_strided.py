"""Winograd convolution with strides: over the phases of the images.

Stride s deals the pixels into s x s phases (kernels.cpu.planes). To one phase a kernel of k taps an
axis is one of ceil(k / s) taps at stride 1; so with the phases of a channel as channels of their
own, and the taps that a phase lacks as zeros, the convolution is one that kernels.cpu.winograd can
do. ZFNet's 5x5 at stride 2 takes 9 instead of 25 multiplications an output and channel, the 7x7 of
GoogLeNet and ResNet at stride 2 takes 16 instead of 49, AlexNet's 11x11 at stride 4 takes 36
instead of 121. At stride 1 there is one phase, the image itself.
"""

import numpy as np
from numba import njit, prange

from kernels.cpu.planes import split_phases
from kernels.cpu.tasks import split
from kernels.cpu.winograd import conv2d_winograd, input_grad_winograd
from kernels.cpu.winograd_weight import weight_grad_winograd
from kernels.cpu.workspace import empty, workspace

_WHOLE = (0, 0, 0, 0)


@njit(parallel=True, cache=True)
def _deal_pixels(x, phases, stride, padding):
    """phases (N, C s s, rows, P) of the padded x (N, C, H, W)."""
    n, channels = x.shape[:2]
    rows, pitch = phases.shape[2:]
    layout, flat = (stride, stride, rows, pitch, stride, stride), phases.reshape(phases.size)
    for task in prange(n * channels):
        image, c = split(task, channels)
        start = (image * channels + c) * stride * stride * rows * pitch
        split_phases(x[image, c], flat, start, rows * pitch, layout, padding[0], padding[2], 0)


@njit(parallel=True, cache=True)
def _collect_pixels(phases, x, stride, padding):
    """The reverse; pixels that no output reads become 0."""
    n, channels, h, w = x.shape
    rows, pitch = phases.shape[2:]
    top, left = padding[0], padding[2]
    for task in prange(n * channels):
        image, c = split(task, channels)
        for p in range(h):
            line = x[image, c, p]
            r, a = divmod(p + top, stride)
            if r >= rows:
                line[:] = 0
                continue
            for b in range(stride):
                source = phases[image, (c * stride + a) * stride + b, r]
                # The first pixel of the phase that is not padding.
                q = (b - left) % stride
                first = (q + left) // stride
                count = max(0, min((w - q + stride - 1) // stride, pitch - first))
                for i in range(count):
                    line[q + i * stride] = source[first + i]
                for i in range(q + count * stride, w, stride):
                    line[i] = 0


@njit(parallel=True, cache=True)
def _deal_filters(weight, filters, stride):
    """filters (O, C s s, t, t) of weight (O, C, k, k)."""
    outputs, channels, kh, kw = weight.shape
    for o in prange(outputs):
        filters[o] = 0
        for c in range(channels):
            for i in range(kh):
                for j in range(kw):
                    phase = (c * stride + i % stride) * stride + j % stride
                    filters[o, phase, i // stride, j // stride] = weight[o, c, i, j]


@njit(parallel=True, cache=True)
def _collect_filters(filters, weight, stride):
    """The reverse."""
    outputs, channels, kh, kw = weight.shape
    for o in prange(outputs):
        for c in range(channels):
            for i in range(kh):
                for j in range(kw):
                    phase = (c * stride + i % stride) * stride + j % stride
                    weight[o, c, i, j] = filters[o, phase, i // stride, j // stride]


def taps_of(kernel: int, stride: int) -> int:
    """Taps of a phase."""
    return -(-kernel // stride)


def _phases(n, channels, size, kernel, stride, dtype):
    """Memory for the phases of images of which `size` outputs are made."""
    reach = taps_of(kernel, stride) - 1
    shape = n, channels * stride**2, size[0] + reach, size[1] + reach
    return workspace("phases", shape, dtype)


def _filters(weight, stride):
    outputs, channels, kernel, _ = weight.shape
    taps = taps_of(kernel, stride)
    filters = np.empty((outputs, channels * stride**2, taps, taps), weight.dtype)
    _deal_filters(np.ascontiguousarray(weight), filters, stride)
    return filters


def conv2d_winograd_strided(x, weight, y, stride, padding, size, groups, epilogue):
    """Write the convolution by F(size x size, r x r) into y, C-contiguous.

    `stride`: of both axes; the kernel is square.
    """
    if stride == 1:
        conv2d_winograd(x, weight, y, padding, size, groups, epilogue)
        return
    n, channels = x.shape[:2]
    phases = _phases(n, channels, y.shape[2:], weight.shape[2], stride, x.dtype)
    _deal_pixels(np.ascontiguousarray(x), phases, stride, padding)
    conv2d_winograd(phases, _filters(weight, stride), y, _WHOLE, size, groups, epilogue)


def input_grad_winograd_strided(dy, weight, dx, stride, padding, size, groups):
    """Write the gradient by the input into dx, C-contiguous."""
    if stride == 1:
        input_grad_winograd(dy, weight, dx, padding, size, groups)
        return
    n, channels = dx.shape[:2]
    phases = _phases(n, channels, dy.shape[2:], weight.shape[2], stride, dy.dtype)
    input_grad_winograd(dy, _filters(weight, stride), phases, _WHOLE, size, groups)
    _collect_pixels(phases, dx, stride, padding)


def weight_grad_winograd_strided(dy, x, weight_shape, stride, padding, size, groups):
    """The gradient by the weight, of `weight_shape`."""
    if stride == 1:
        return weight_grad_winograd(dy, x, weight_shape, padding, size, groups)
    n, channels = x.shape[:2]
    outputs, of_group, kernel, _ = weight_shape
    phases = _phases(n, channels, dy.shape[2:], kernel, stride, x.dtype)
    _deal_pixels(np.ascontiguousarray(x), phases, stride, padding)
    taps = taps_of(kernel, stride)
    filters_shape = outputs, of_group * stride**2, taps, taps
    filters = weight_grad_winograd(dy, phases, filters_shape, _WHOLE, size, groups)
    weight_grad = empty(weight_shape, x.dtype)
    _collect_filters(filters, weight_grad, stride)
    return weight_grad
