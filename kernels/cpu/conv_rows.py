"""Stride-1 convolution of few outputs, whose vectors run along the rows of the image.

A tile is all the outputs, or a strip of them, of two vectors of pixels (kernels.cpu.small_tiles),
each of which lies within a row. Against tiles of pixels (kernels.cpu.conv_tiles) no output of a
strip is empty, and what lies between the rows is not computed. The results are finished and stored
from the registers.

The **gradient by the input** is the convolution of dy by the kernel turned round, its channels
exchanged, padded by what the kernel reaches beyond the forward padding. Rows of taps that lie in
that padding are left out.
"""

import math
from functools import lru_cache

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import lanes
from kernels.cpu.epilogue import plain
from kernels.cpu.planes import grouped, place_plane
from kernels.cpu.small_tiles import STRIP, strip_tile, strip_tile_onto
from kernels.cpu.tasks import MIN_TASKS, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

_TASKS = 2 * MIN_TASKS
# Of a row's vectors so much must be filled to beat tiles of pixels, as measured; with more outputs,
# or larger planes, those do as well. With one or two outputs the sweeps of kernels.cpu.conv_direct
# are faster.
_FILLED, _OUTPUTS, _LARGEST_BYTES = 0.6, range(3, 33), 1 << 20


def is_rows(result, x_shape, y_shape, weight_shape, stride, groups, dtype) -> bool:
    """True where these kernels are the faster ones for "y" or "dx", as measured."""
    (channels, *image), (outputs, *size) = x_shape[1:], y_shape[1:]
    if result == "dx":
        channels, image, outputs, size = outputs, size, channels, image
    row = size[1] / lanes(dtype)
    return (
        stride == (1, 1)
        and outputs // groups in _OUTPUTS
        and row >= _FILLED * math.ceil(row)
        and channels // groups * math.prod(image) * dtype.itemsize <= _LARGEST_BYTES
    )


@lru_cache(maxsize=256)
def _offsets(channels, kernel_size, dilation, plane, pitch):
    """Where each tap lies in the padded planes: by rows of the kernel, then channels."""
    i, c, j = np.indices((kernel_size[0], channels, kernel_size[1])).reshape(3, -1)
    offsets = c * plane + i * dilation[0] * pitch + j * dilation[1]
    offsets.flags.writeable = False
    return offsets


@njit(parallel=True, cache=True)
def _correlate(x, filters, y, scratch, offsets, padded, before, taps, cut, width, epilogue):
    """y (N, G, O, OH, OW) from x (N, G, C, H, W) and filters (G, terms, O).

    `taps`: (rows of the kernel, their distance, whether those in the padding are skipped). `cut`:
    (images of a task, into how many parts their results are cut).
    """
    n, groups, outputs, oh, ow = y.shape
    channels, h, w = x.shape[2:]
    kh, dilation, skip = taps
    images, parts = cut
    plane, line = padded[0] * padded[1], offsets.size // kh
    scale, shift, others, floor = epilogue
    area, vectors, strips = oh * ow, -(-ow // width), -(-outputs // STRIP)
    flat_x, flat_y = x.reshape(x.size), y.reshape(y.size)
    for task in prange(-(-n // images) * groups * parts):
        rest, part = split(task, parts)
        chunk, g = split(rest, groups)
        begin, end = part * oh * vectors // parts, (part + 1) * oh * vectors // parts
        planes = scratch[get_thread_id()]
        planes[:] = 0
        factors = filters[g].reshape(offsets.size * outputs)
        for image in range(chunk * images, min(n, chunk * images + images)):
            for c in range(channels):
                start = ((image * groups + g) * channels + c) * h * w
                place_plane(flat_x, start, (h, w), planes, c * plane, padded, before)
            for f in range(begin, end, 2):
                # The second one of an odd number stores nothing.
                second = min(f + 1, end - 1)
                v0, v1 = f // vectors, second // vectors
                u0, u1 = (f - v0 * vectors) * width, (second - v1 * vectors) * width
                inside = ow - u1 if second > f else 0
                first, last = 0, kh
                if skip:
                    first = max(0, -((v1 - before[0]) // dilation))
                    last = min(kh, (h - 1 + before[0] - v0) // dilation + 1)
                depth = max(0, last - first) * line
                for strip in range(strips):
                    o, stop = strip * outputs // strips, (strip + 1) * outputs // strips
                    channel = g * outputs + o
                    target = (image * groups * outputs + channel) * area
                    if others.size:
                        strip_tile_onto(
                            factors, first * line * outputs + o, outputs, stop - o,
                            planes, v0 * padded[1] + u0, v1 * padded[1] + u1,
                            offsets, first * line, depth,
                            flat_y, target + v0 * ow + u0, target + v1 * ow + u1, area,
                            ow - u0, inside, scale, shift, channel, others, floor,
                        )  # fmt: skip
                    else:
                        strip_tile(
                            factors, first * line * outputs + o, outputs, stop - o,
                            planes, v0 * padded[1] + u0, v1 * padded[1] + u1,
                            offsets, first * line, depth,
                            flat_y, target + v0 * ow + u0, target + v1 * ow + u1, area,
                            ow - u0, inside, scale, shift, channel, others, floor,
                        )  # fmt: skip


def _convolve(x, filters, y, before, dilation, skip, epilogue):
    """Run `_correlate` on x (N, G, C, H, W), y (N, G, O, OH, OW) and filters (G, O, C, kh, kw)."""
    groups, outputs, channels, kh, kw = filters.shape
    padded = y.shape[3] + (kh - 1) * dilation[0], y.shape[4] + (kw - 1) * dilation[1]
    offsets = _offsets(channels, (kh, kw), dilation, padded[0] * padded[1], padded[1])
    width = lanes(x.dtype)
    packed = np.ascontiguousarray(filters.transpose(0, 3, 2, 4, 1)).reshape(groups, -1, outputs)
    # The last vector of a row reads beyond it.
    size = channels * padded[0] * padded[1] + width
    scratch = workspace("conv", (num_threads(), size), x.dtype)
    images = max(1, len(x) * groups // _TASKS)
    parts = min(y.shape[3], -(-MIN_TASKS // (-(-len(x) // images) * groups)))
    _correlate(
        x, packed, y, scratch, offsets, padded, before, (kh, dilation[0], skip), (images, parts),
        width, epilogue,
    )  # fmt: skip


def conv2d_rows(x, weight, y, padding, dilation, groups, epilogue):
    """Write the convolution of stride 1 into y, C-contiguous."""
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    _convolve(
        grouped(x, groups), filters, grouped(y, groups), (padding[0], padding[2]), dilation, False,
        epilogue,
    )  # fmt: skip


def input_grad_rows(dy, weight, dx, padding, dilation, groups):
    """Write the gradient by the input into dx, C-contiguous."""
    reach = (weight.shape[2] - 1) * dilation[0], (weight.shape[3] - 1) * dilation[1]
    before = reach[0] - padding[0], reach[1] - padding[2]
    filters = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)[..., ::-1, ::-1]
    _convolve(
        grouped(dy, groups), filters, grouped(dx, groups), before, dilation, True,
        plain(dx.shape[1], dx.dtype),
    )  # fmt: skip
