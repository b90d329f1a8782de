"""The gradient by the input of a convolution, with vectors that run over the images of a batch.

A kernel that is not padded reaches pixels at the border with few of its taps: in dx, the full
correlation of dy by the kernel turned round, half of all products are by zero where images are
small. Vectors along rows (kernels.cpu.conv_rows) compute most of them. Here the images of a batch
are turned over until the same pixel of all of them fills vectors; then a tile is one pixel of two
vectors of images and some channels of dx (kernels.cpu.small_tiles), and takes only those taps that
meet a pixel of dy.

Its terms are summed by rows of the kernel, each of them over the columns that reach the image, and
all outputs. Pixels of dx whose columns are alike share a list of terms, from which they take the
rows that reach the image.

How the work is cut depends on the shapes alone, never on the number of threads, and so do the
results, to the last bit.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import CACHE_LINE, lanes
from kernels.cpu.epilogue import plain
from kernels.cpu.pixels import turn, turn_back
from kernels.cpu.planes import grouped
from kernels.cpu.small_tiles import STRIP, strip_tile
from kernels.cpu.tasks import MIN_TASKS, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

_VECTORS = 2  # of images, a block; see `strip_tile`
# Where these kernels are the faster ones, as measured: the channels of dx, the share of the
# products that are not by zero, the share of the last block that is filled, and what a block takes
# of a second cache.
_CHANNELS, _WANTED, _FILLED, _LARGEST_BYTES = range(3, 33), 0.6, 0.8, 768 << 10


class _Plan(NamedTuple):
    """Which terms make each pixel: the same for every call with these shapes."""

    offsets: np.ndarray  # (terms,) of their pixels of dy in turned planes
    order: np.ndarray  # (terms,) of their weights, counted (i, j, output)
    rows: np.ndarray  # (H, 2): the first and last row of the kernel that reach the image
    columns: np.ndarray  # (W, 2): the first term of its list, and the terms of a row of the kernel
    wanted: float  # the share of the products that are not by zero


def _reaching(result, size, before, taps, dilation):
    """(result, 2): the first tap that reaches dy from each pixel of dx, and the one behind."""
    place = np.arange(result) - before
    first = np.maximum(0, -(place // dilation))
    stop = np.minimum(taps, (size - 1 - place) // dilation + 1)
    return np.stack([first, np.maximum(first, stop)], axis=1)


@lru_cache(maxsize=256)
def _plan(result, size, outputs, kernel_size, before, dilation, plane, block):
    axes = zip(result, size, before, kernel_size, dilation, strict=True)
    rows, columns = (_reaching(*axis) for axis in axes)
    lists, places, first = {}, [], 0
    for key in map(tuple, columns.tolist()):
        if key not in lists:
            i, o, j = np.indices((kernel_size[0], outputs, key[1] - key[0])).reshape(3, -1)
            lists[key] = first, (key[1] - key[0]) * outputs
            places.append(np.stack([i, j + key[0], o]))
            first += i.size
    i, j, o = np.concatenate(places, axis=1)
    offsets = o * plane + (i * dilation[0] * size[1] + j * dilation[1]) * block
    order = (i * kernel_size[1] + j) * outputs + o
    columns_of = np.array([lists[key] for key in map(tuple, columns.tolist())])
    wanted = np.diff(rows).sum() * np.diff(columns).sum()
    plan = _Plan(
        offsets, order, rows, columns_of, wanted / math.prod((*result, *kernel_size))
    )
    for array in plan[:-1]:
        array.flags.writeable = False
    return plan


def _settings(x_shape, y_shape, weight_shape, padding, dilation, groups, dtype):
    """(plan, elements of a turned plane, padding of dy at the top and on the left)."""
    block = _VECTORS * lanes(dtype)
    reach = [(k - 1) * d for k, d in zip(weight_shape[2:], dilation, strict=True)]
    before = reach[0] - padding[0], reach[1] - padding[2]
    # An odd number of cache lines: powers of two would displace each other from the cache.
    line = CACHE_LINE // dtype.itemsize
    plane = math.prod(y_shape[2:]) * block + line
    plan = _plan(
        x_shape[2:], y_shape[2:], weight_shape[0] // groups, weight_shape[2:], before, dilation,
        plane, block,
    )  # fmt: skip
    return plan, plane, before


def is_images(x_shape, y_shape, weight_shape, stride, padding, dilation, groups, dtype) -> bool:
    """True where these kernels are the faster ones for "dx", as measured."""
    block, channels = _VECTORS * lanes(dtype), weight_shape[1]
    pixels = weight_shape[0] // groups * math.prod(y_shape[2:]) + channels * math.prod(x_shape[2:])
    return (
        stride == (1, 1)
        and channels in _CHANNELS
        and x_shape[0] >= _FILLED * -(-x_shape[0] // block) * block
        and pixels * block * dtype.itemsize <= _LARGEST_BYTES
        and _settings(x_shape, y_shape, weight_shape, padding, dilation, groups, dtype)[0].wanted
        <= _WANTED
    )


@njit(parallel=True, cache=True)
def _input_grad(dy, filters, dx, scratch, offsets, rows, columns, plane, before, reach, parts,
                width, epilogue):  # fmt: skip
    """dx (N, G, C, H, W) from dy (N, G, O, OH, OW) and filters (G, terms, C)."""
    n, groups, outputs, oh, ow = dy.shape
    channels, h, w = dx.shape[2:]
    block, strips = _VECTORS * width, -(-channels // STRIP)
    scale, shift, others, floor = epilogue
    flat_dy, flat_dx = dy.reshape(dy.size), dx.reshape(dx.size)
    for task in prange(-(-n // block) * groups * parts):
        rest, part = split(task, parts)
        chunk, g = split(rest, groups)
        image = chunk * block
        count = min(block, n - image)
        v0, v1 = part * h // parts, (part + 1) * h // parts
        factors = filters[g].reshape(offsets.size * channels)
        planes, out = scratch[get_thread_id(), 0], scratch[get_thread_id(), 1]
        first, last = max(0, v0 - before[0]), min(oh, v1 - before[0] + reach)
        if first < last:
            for o in range(outputs):
                # What this writes behind a plane, the next plane overwrites.
                turn(
                    flat_dy, (((image * groups + g) * outputs + o) * oh + first) * ow,
                    groups * outputs * oh * ow, count, (last - first) * ow, planes,
                    o * plane + first * ow * block, block, width,
                )  # fmt: skip
        pixels = (v1 - v0) * w
        for v in range(v0, v1):
            i0, i1 = rows[v]
            for u in range(w):
                start, line = columns[u]
                base = ((v - before[0]) * ow + u - before[1]) * block
                for strip in range(strips):
                    c, stop = strip * channels // strips, (strip + 1) * channels // strips
                    target = (c * pixels + (v - v0) * w + u) * block
                    strip_tile(
                        factors, (start + i0 * line) * channels + c, channels, stop - c,
                        planes, base, base + width, offsets, start + i0 * line, (i1 - i0) * line,
                        out, target, target + width, pixels * block, width, width,
                        scale, shift, 0, others, floor,
                    )  # fmt: skip
        for c in range(channels):
            turn_back(
                out, c * pixels * block, block, pixels, count, flat_dx,
                (((image * groups + g) * channels + c) * h + v0) * w, groups * channels * h * w,
                epilogue, 0, width,
            )  # fmt: skip


def input_grad_images(dy, weight, dx, padding, dilation, groups):
    """Write the gradient by the input of a convolution of stride 1 into dx, C-contiguous."""
    outputs, channels, kh, kw = weight.shape
    outputs //= groups
    width = lanes(dy.dtype)
    block = _VECTORS * width
    plan, plane, before = _settings(
        dx.shape, dy.shape, weight.shape, padding, dilation, groups, dy.dtype
    )
    turned = weight.reshape(groups, outputs, channels, kh, kw)[..., ::-1, ::-1]
    filters = turned.transpose(0, 3, 4, 1, 2).reshape(groups, -1, channels)[:, plan.order]
    parts = min(dx.shape[2], -(-MIN_TASKS // (-(-len(dx) // block) * groups)))
    # With a square of elements behind the planes, and behind the results.
    rows = max(outputs * plane, channels * -(-dx.shape[2] // parts) * dx.shape[3] * block)
    scratch = workspace("conv", (num_threads(), 2, rows + width * block), dy.dtype)
    _input_grad(
        grouped(dy, groups), np.ascontiguousarray(filters), grouped(dx, groups), scratch,
        plan.offsets, plan.rows, plan.columns, plane, before, (kh - 1) * dilation[0], parts, width,
        plain(max(block, channels), dy.dtype),
    )  # fmt: skip
