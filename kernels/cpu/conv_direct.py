"""Stride-1 convolution without columns, for groups of few channels: first layers, depthwise.

With few channels on either side, writing each pixel kh kw times into columns costs more than the
multiplications. Here a task pads the planes of its group into scratch memory, of row pitch P. In
that flat memory the tap (c, i, j) of output (v, u) lies at v P + u plus an offset of its own,

    offset[c, i, j] = c H P + i dh P + j dw,

so that a tap is one multiply-add over a whole stretch of the plane (rows are P apart in the result
too; the P - OW values between them are dropped). Some vectors of the result stay in registers until
they have had all taps. The gradient by the input is the same convolution with the kernel turned
round and its channels exchanged. The gradient by the weight is made of dot products of the shifted
planes with those of dy, laid out alike; for some outputs and taps at a time they stay in registers
while the planes go by (kernels.cpu.small_tiles).
"""

from functools import lru_cache

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import lanes
from kernels.cpu.epilogue import plain
from kernels.cpu.planes import grouped, place_plane
from kernels.cpu.small_tiles import DOT_ROWS, DOT_SHIFTS, shift_dots, shifted_sums
from kernels.cpu.tasks import MIN_TASKS, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

_STRETCH = 2048  # values of a plane swept at a time: result and operands stay in the L1 cache
# More channels than these fill tiles well enough.
_MAX_PAIRS, _MAX_RESULTS = 96, {"y": 2, "dx": 2, "dw": 3}
_SLICES = 16


def is_direct(result, weight_shape, stride, groups: int) -> bool:
    """True where these kernels are the faster ones for "y", "dx" or "dw", as measured."""
    outputs, channels = weight_shape[0] // groups, weight_shape[1]
    results = {"y": outputs, "dx": channels, "dw": min(outputs, channels)}[result]
    return stride == (1, 1) and outputs * channels <= _MAX_PAIRS and results <= _MAX_RESULTS[result]


@njit(inline="always")
def pad_planes(x, planes, top, left):
    """Write x (C, H, W) into planes (C, HP, P) at (top, left), zeros around it."""
    channels, h, w = x.shape
    for c in range(channels):
        for row in range(planes.shape[1]):
            line = planes[c, row]
            if row < top or row >= top + h:
                line[:] = 0
                continue
            line[:left] = 0
            inside = line[left : left + w]
            source = x[c, row - top]
            for u in range(w):
                inside[u] = source[u]
            line[left + w :] = 0


@lru_cache(maxsize=256)
def flat_offsets(channels, kernel_size, dilation, plane, pitch):
    """Where each tap (c, i, j) lies in the flat padded planes."""
    c, i, j = np.indices((channels, *kernel_size)).reshape(3, -1)
    offsets = c * plane + i * dilation[0] * pitch + j * dilation[1]
    offsets.flags.writeable = False
    return offsets


@njit(parallel=True, cache=True)
def _conv(x, weight, y, scratch, offsets, padding, parts, epilogue):
    """y (N, G, O/G, OH, OW) from x (N, G, C/G, H, W) and weight (G, O/G, C/G, kh, kw).

    A task makes some output channels (one of `parts` parts) of one group of one image.
    """
    n, groups, outputs, oh, ow = y.shape
    channels, h, w = x.shape[2:]
    top, bottom, left, right = padding
    height, pitch = h + top + bottom, w + left + right
    plane = height * pitch
    length = (oh - 1) * pitch + ow
    taps = offsets.size
    scale, shift, others, floor = epilogue
    factors = weight.reshape(weight.size)
    for task in prange(n * groups * parts):
        rest, part = split(task, parts)
        image, g = split(rest, groups)
        memory = scratch[get_thread_id()]
        flat = memory[: channels * plane]
        result = memory[channels * plane : channels * plane + oh * pitch]
        pad_planes(x[image, g], flat.reshape(channels, height, pitch), top, left)
        for o in range(part * outputs // parts, (part + 1) * outputs // parts):
            channel = g * outputs + o
            shifted_sums(factors, channel * taps, flat, offsets, taps, result, length)
            factor, term = scale[channel], shift[channel]
            for v in range(oh):
                line = result[v * pitch : v * pitch + ow]
                target = y[image, g, o, v]
                first = ((image * groups * outputs + channel) * oh + v) * ow
                for u in range(ow):
                    value = line[u] * factor + term
                    if others.size:
                        value += others[first + u]
                    target[u] = floor if value < floor else value


@njit(parallel=True, cache=True)
def _weight_grad(dy, x, slices, scratch, offsets, planes, before, width):
    """slices (S, G, O/G, taps), each summed over its share of the images.

    `planes`: (height, pitch, elements of a padded plane and what a vector reads beyond it, and of a
    plane of gradients).
    """
    count, groups, outputs, taps = slices.shape
    n, _, _, oh, ow = dy.shape
    channels, h, w = x.shape[2:]
    height, pitch, plane, grad_plane = planes
    length = (oh - 1) * pitch + ow
    parts, chunks = -(-outputs // DOT_ROWS), -(-taps // DOT_SHIFTS)
    flat_x, flat_dy = x.reshape(x.size), dy.reshape(dy.size)
    for task in prange(count * groups):
        piece, g = split(task, groups)
        memory = scratch[get_thread_id()]
        memory[:] = 0
        padded, rest = memory[: channels * plane], memory[channels * plane :]
        grads, sums = rest[: DOT_ROWS * grad_plane], rest[DOT_ROWS * grad_plane :]
        for image in range(piece * n // count, (piece + 1) * n // count):
            for c in range(channels):
                at = ((image * groups + g) * channels + c) * h * w
                place_plane(flat_x, at, (h, w), padded, c * plane, (height, pitch), before)
            for part in range(parts):
                o, stop = part * outputs // parts, (part + 1) * outputs // parts
                for r in range(stop - o):
                    at = ((image * groups + g) * outputs + o + r) * oh * ow
                    start = r * grad_plane
                    place_plane(flat_dy, at, (oh, ow), grads, start, (oh, pitch), (0, 0))
                for start in range(0, length, _STRETCH):
                    size = min(_STRETCH, length - start)
                    for chunk in range(chunks):
                        t, end = chunk * taps // chunks, (chunk + 1) * taps // chunks
                        shift_dots(
                            stop - o, end - t, grads, start, grad_plane, padded, start, offsets, t,
                            size, sums, (o * taps + t) * width, taps * width,
                        )  # fmt: skip
        for o in range(outputs):
            for t in range(taps):
                lanes_of = sums[(o * taps + t) * width : (o * taps + t + 1) * width]
                total = dy.dtype.type(0)
                for lane in range(width):
                    total += lanes_of[lane]
                slices[piece, g, o, t] = total


def conv2d_direct(x, weight, y, padding, dilation, groups, epilogue):
    """Write the convolution of stride 1 into y, C-contiguous."""
    outputs, group_channels, kh, kw = weight.shape
    group_outputs = outputs // groups
    filters = np.ascontiguousarray(weight).reshape(groups, group_outputs, group_channels, kh, kw)
    tasks = len(x) * groups
    parts = min(group_outputs, -(-MIN_TASKS // max(tasks, 1)))
    top, bottom, left, right = padding
    pitch = x.shape[3] + left + right
    plane = (x.shape[2] + top + bottom) * pitch
    # With room for one plane of the result.
    size = group_channels * plane + y.shape[2] * pitch
    scratch = workspace("conv", (num_threads(), size), x.dtype)
    _conv(
        grouped(x, groups), filters, grouped(y, groups), scratch,
        flat_offsets(group_channels, (kh, kw), dilation, plane, pitch), padding, parts, epilogue,
    )  # fmt: skip


def input_grad_direct(dy, weight, dx, padding, dilation, groups):
    """Write the gradient by the input into dx, C-contiguous.

    dx = conv(dy, the kernels turned by 180 degrees), padded by what the kernel reaches beyond the
    forward padding; where the forward padding is larger still, dy is cropped instead.
    """
    outputs, group_channels, kh, kw = weight.shape
    turned = weight.reshape(groups, outputs // groups, group_channels, kh, kw)
    turned = turned.swapaxes(1, 2)[..., ::-1, ::-1]
    turned = turned.reshape(groups * group_channels, outputs // groups, kh, kw)
    reach = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    margins = [reach[side // 2] - padding[side] for side in range(4)]
    top, bottom, left, right = (max(0, -margin) for margin in margins)
    cropped = dy[:, :, top : dy.shape[2] - bottom, left : dy.shape[3] - right]
    padding = tuple(max(0, margin) for margin in margins)
    epilogue = plain(dx.shape[1], dx.dtype)
    conv2d_direct(cropped, turned, dx, padding, dilation, groups, epilogue)


def weight_grad_direct(dy, x, weight_shape, padding, dilation, groups):
    """The gradient by the weight, of `weight_shape`."""
    outputs, group_channels, kh, kw = weight_shape
    top, bottom, left, right = padding
    group_outputs, taps, width = outputs // groups, group_channels * kh * kw, lanes(x.dtype)
    height, pitch = x.shape[2] + top + bottom, x.shape[3] + left + right
    plane, grad_plane = height * pitch + width, dy.shape[2] * pitch + width
    size = group_channels * plane + DOT_ROWS * grad_plane + group_outputs * taps * width
    scratch = workspace("conv", (num_threads(), size), x.dtype)
    slices = np.empty((min(_SLICES, max(1, len(x))), groups, group_outputs, taps), dy.dtype)
    _weight_grad(
        grouped(dy, groups), grouped(x, groups), slices, scratch,
        flat_offsets(group_channels, (kh, kw), dilation, plane, pitch),
        (height, pitch, plane, grad_plane), (top, left), width,
    )  # fmt: skip
    return slices.sum(axis=0).reshape(weight_shape)
