"""Convolution from padded planes in scratch memory, tile by tile, without columns.

The planes of a **block**, a few images or a band of output rows of one, are padded and split into
phases (kernels.cpu.planes), where the tap (c, i, j) of output (v, u) lies at v P + u plus an offset
of its own. So a row of the column matrix is a stretch of these planes, which lies there already:

    y[o, f] = sum_k w[o, k] planes[offset[k] + f],      f = (image rows + v) P + u,

is a matrix product whose right matrix exists only as a list of offsets. It is computed in tiles of
some outputs times some vectors of f (kernels.cpu.simd), the sums of a tile in registers, over
planes that stay in the core's second cache. The values between the rows (P - OW of them, and the
rows that the kernel adds to each image) are surplus and dropped.

The **gradient by the input** is such a sum too. Stride s deals the pixels into s x s phases; the
pixels q = a + s r of phase a are reached by the taps i with i d = a + top (mod s), from output
v = r + (a + top - i d) / s: each phase is a convolution of dy with stride 1 by those taps. That by
the weight is left to kernels.cpu.conv_pixels.

The algebra is that of kernels.reference.conv. How the work is cut depends on the shapes alone,
never on the number of threads, and so do the results, to the last bit.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.planes import phase_shape, phase_taps, split_phases
from kernels.cpu.simd import product_tiles, store_run
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

# Planes of a block: as many as fill half of a second cache, but enough columns for some tiles.
_BLOCK_BYTES, _MIN_COLUMNS = 768 << 10, 192
# What tiles read for one part of their sums should stay in a first cache.
_PART_BYTES = 24 << 10
# Where the weights fill more than this, tiles take turns in groups with each part of them.
_WEIGHT_BYTES, _GROUP = 256 << 10, 4
_MIN_TASKS = 8  # enough for several cores
_PACK_BLOCKS, _PACK_CHANNELS = 8, 32


class _Plan(NamedTuple):
    """How planes are laid out and cut: the same for every call with these shapes."""

    layout: tuple[int, ...]  # of a block, see kernels.cpu.planes.phase_shape
    images: int  # of a block
    height: int  # output rows of a block
    size: tuple[int, int]  # (OH, OW)
    before: tuple[int, int]  # padding at the top and on the left
    plane: int  # elements of a channel of a block
    depth: int  # terms of the sums that are added in one go
    slack: int  # zeros that follow the last image
    offsets: np.ndarray  # of each tap of each channel


def _plan(n, channels, size, layout, before, after, taps, itemsize):
    """How to cut a convolution of `size` outputs from one image's `layout`.

    `before`, `after`: zeros at the top and left, at the bottom and right. `taps` (T, 3): the phase,
    row and column of each. With one phase, the zeros after a row are those before the next row,
    and the zeros below an image those above the next image: they need to be there only once.
    """
    sh, sw, span, pitch, *used = layout
    phases = used[0] * used[1]
    oh, ow = size
    spare = (0, 0)
    if sh * sw == 1:
        spare = tuple(
            max(0, min(b, a, reach - o))
            for b, a, reach, o in zip(before, after, (span, pitch), size, strict=True)
        )
    pitch -= spare[1]
    row_bytes = channels * phases * pitch * itemsize
    if span * row_bytes <= _BLOCK_BYTES or span == 1:
        rows, height = span - spare[0], oh
        enough = max(-(-n // _MIN_TASKS), -(-_MIN_COLUMNS // (rows * pitch)))
        images = min(max(n, 1), max(1, _BLOCK_BYTES // (rows * row_bytes)), enough)
        images = -(-n // -(-n // images)) if n else 1
    else:
        images = 1
        height = max(_BLOCK_BYTES // row_bytes - (span - oh), -(-_MIN_COLUMNS // pitch), 1)
        height = -(-oh // -(-oh // min(height, oh)))
        rows, spare = height + span - oh, (0, spare[1])
    phase = images * rows * pitch
    plane = phases * phase
    within = taps @ np.array([phase, pitch, 1])
    offsets = np.add.outer(np.arange(channels) * plane, within).reshape(-1)
    offsets = np.ascontiguousarray(offsets, np.int64)
    offsets.flags.writeable = False
    slack = spare[0] * pitch + spare[1]
    # Rows of a channel that a tile reads, each as long as the tile and the kernel.
    lines = len(np.unique(taps[:, :2], axis=0))
    line_bytes = (VECTORS * lanes_of(itemsize) + int(taps[:, 2].max())) * itemsize
    depth = max(1, _PART_BYTES * len(taps) // (lines * line_bytes))
    layout = (sh, sw, rows, pitch, *used)
    return _Plan(layout, images, height, size, before, plane, depth, slack, offsets)


def lanes_of(itemsize: int) -> int:
    """Elements of this size in a vector."""
    return lanes(np.dtype(np.float32 if itemsize == 4 else np.float64))


@lru_cache(maxsize=256)
def _forward_plan(x_shape, size, kernel_size, stride, padding, dilation, itemsize):
    n, channels, h, w = x_shape
    layout = phase_shape(size, kernel_size, stride, dilation)
    before = padding[0], padding[2]
    after = (
        reach - b - extent for reach, b, extent in zip(layout[2:4], before, (h, w), strict=True)
    )
    taps = phase_taps(kernel_size, stride, dilation)
    return _plan(n, channels, size, layout, before, tuple(after), taps, itemsize)


@lru_cache(maxsize=256)
def _input_grad_plan(
    dy_shape, extent, phase, kernel_size, stride, padding, dilation, itemsize
):
    """(plan, taps) of one phase of the pixels; no plan where no tap reaches it."""
    n, channels, oh, ow = dy_shape
    before = padding[0], padding[2]
    size = tuple(
        (e - a + s - 1) // s for e, a, s in zip(extent, phase, stride, strict=True)
    )
    numbers, moves = [], []
    for axis in (0, 1):
        place = phase[axis] + before[axis] - np.arange(kernel_size[axis]) * dilation[axis]
        number = np.flatnonzero(place % stride[axis] == 0)
        numbers.append(number)
        moves.append(place[number] // stride[axis])
    if min(size) < 1 or not (len(numbers[0]) and len(numbers[1])):
        return None, None
    top, left = (int(-move.min()) for move in moves)
    rows = size[0] + int(moves[0].max()) + top
    pitch = size[1] + int(moves[1].max()) + left
    i, j = np.meshgrid(moves[0] + top, moves[1] + left, indexing="ij")
    places = np.stack([np.zeros(i.size, int), i.reshape(-1), j.reshape(-1)], axis=1)
    taps = np.add.outer(numbers[0] * kernel_size[1], numbers[1]).reshape(-1)
    after = rows - top - oh, pitch - left - ow
    layout = (1, 1, rows, pitch, 1, 1)
    plan = _plan(n, channels, size, layout, (top, left), after, places, itemsize)
    return plan, taps


@njit(parallel=True, cache=True)
def _pack(weight, packed, outputs, channels, taps, strides):
    """packed (G, blocks, C T ROWS) from flat weights; rows beyond the outputs are zero.

    A task takes some blocks and channels, so that it reads and writes long stretches either way.
    """
    groups, blocks = packed.shape[:2]
    group_stride, output_stride, channel_stride = strides
    bands, parts = -(-blocks // _PACK_BLOCKS), -(-channels // _PACK_CHANNELS)
    for task in prange(groups * bands * parts):
        rest, part = split(task, parts)
        g, band = split(rest, bands)
        b0, b1 = chunk_bounds(band, _PACK_BLOCKS, blocks)
        c0, c1 = chunk_bounds(part, _PACK_CHANNELS, channels)
        for b in range(b0, b1):
            target = packed[g, b]
            at = c0 * taps.size * ROWS
            for c in range(c0, c1):
                for tap in taps:
                    first = g * group_stride + c * channel_stride + tap
                    for r in range(ROWS):
                        o = b * ROWS + r
                        target[at + r] = weight[first + o * output_stride] if o < outputs else 0
                    at += ROWS


@njit(cache=True)
def _load_planes(x, image0, count, g, flat, layout, images, plane, slack, top, left):
    """The planes of `count` images of group g, from their row -top on."""
    rows, pitch = layout[2:4]
    for c in range(x.shape[2]):
        for image in range(count):
            start = c * plane + image * rows * pitch
            distance = images * rows * pitch
            split_phases(x[image0 + image, g, c], flat, start, distance, layout, top, left, 0)
        end = c * plane + count * rows * pitch
        flat[end : end + slack] = 0


@njit(cache=True)
def _store(out, f, stop, wide, tile, y, first, outputs, place, area, target, floor):
    """Columns f to stop of `out` to their pixels in the planes of y, the first at `first`.

    `place`: (P, rows, lines, OW) of the columns. `target`: they lie in y in steps of so many rows
    and columns, from a row and a column on, in rows of a length.
    """
    pitch, rows, lines, ow = place
    row_step, column_step, row0, column0, y_pitch = target
    whole = pitch == ow and row_step * column_step == 1
    p = f
    while p < stop:
        row = p // pitch
        image, v = row // rows, row % rows
        u = p - row * pitch
        left = lines * ow - v * ow - u if whole else ow - u
        if v < lines and left > 0:
            run = min(left, stop - p, tile)
            pixel = first + image * outputs[1] * area
            pixel += (v * row_step + row0) * y_pitch + u * column_step + column0
            for o in range(outputs[0]):
                if column_step == 1:
                    store_run(out, o * wide + p - f, run, y, pixel, floor)
                else:
                    for i in range(run):
                        value = out[o * wide + p - f + i]
                        y[pixel + i * column_step] = floor if value < floor else value
                pixel += area
            p += run
        else:
            p = (row + 1) * pitch


@njit(parallel=True, cache=True)
def _correlate(x, weights, bias, y, scratch, offsets, layout, block, size, before, target, parts,
               floor):  # fmt: skip
    """y (N, G, O, H W) from x (N, G, C, H, W), bias (G, O), weights (G, blocks, C T ROWS).

    Results below `floor` become `floor`. `target`: see _store.
    """
    n, groups = x.shape[:2]
    outputs, area = y.shape[2:]
    oh, ow = size
    images, height, plane, depth, slack, width, tiles = block
    rows, pitch = layout[2:4]
    bands, blocks, tile = -(-oh // height), weights.shape[1], VECTORS * width
    wide = tiles * tile
    flat_y = y.reshape(y.size)
    for task in prange(-(-n // images) * bands * groups * parts):
        rest, part = split(task, parts)
        rest, g = split(rest, groups)
        image_group, band = split(rest, bands)
        image0, v0 = image_group * images, band * height
        count, lines = min(images, n - image0), min(height, oh - v0)
        b0, b1 = part * blocks // parts, (part + 1) * blocks // parts
        o0, o1 = b0 * ROWS, min(b1 * ROWS, outputs)
        out = scratch[get_thread_id()]
        flat = out[(blocks * ROWS + 1) * wide :]
        top = before[0] - v0 * layout[0]
        _load_planes(x, image0, count, g, flat, layout, images, plane, slack, top, before[1])
        length = ((count - 1) * rows + lines - 1) * pitch + ow
        first = ((image0 * groups + g) * outputs + o0) * area + v0 * target[0] * target[4]
        for f in range(0, length, wide):
            stop = min(f + wide, length)
            for o in range(o0, o1):
                out[(o - o0) * wide : (o - o0 + 1) * wide] = bias[g, o]
            for k in range(0, offsets.size, depth):
                terms = min(depth, offsets.size - k)
                for b in range(b0, b1):
                    for t in range(f, stop, tile):
                        product_tiles(
                            weights[g, b], k * ROWS, ROWS, flat, t, offsets, k, terms,
                            out, (b - b0) * ROWS * wide + t - f, wide,
                            min(VECTORS, -(-(stop - t) // width)), False,
                        )  # fmt: skip
            place = (pitch, rows, lines, ow)
            _store(
                out, f, stop, wide, tile, flat_y, first, (o1 - o0, groups * outputs), place, area,
                target, floor,
            )  # fmt: skip


def _grouped(x, groups):
    """(N, C, H, W) as (N, G, C/G, H, W), contiguous."""
    n, c, h, w = x.shape
    return np.ascontiguousarray(x).reshape(n, groups, c // groups, h, w)


def _product(x, weight, strides, taps, bias, y, plan, target, floor):
    """Run `_correlate` by one plan; x, bias and y by groups."""
    n, groups, channels = x.shape[:3]
    outputs, width = y.shape[2], lanes_of(x.itemsize)
    blocks = -(-outputs // ROWS)
    packed = workspace("filters", (groups, blocks, channels * len(taps) * ROWS), x.dtype)
    _pack(np.ascontiguousarray(weight).reshape(-1), packed, outputs, channels, taps, strides)
    tasks = -(-n // plan.images) * -(-plan.size[0] // plan.height) * groups
    parts = min(blocks, -(-_MIN_TASKS // max(tasks, 1)))
    # What a tile reads or writes beyond the planes and the results.
    spare = VECTORS * width
    tiles = _GROUP if packed[0].nbytes > _WEIGHT_BYTES else 1
    size = (blocks * ROWS + 1) * tiles * spare + channels * plan.plane + plan.slack + spare
    scratch = workspace("conv", (num_threads(), size), x.dtype)
    depth = -(-plan.depth // tiles)
    block = plan.images, plan.height, plan.plane, depth, plan.slack, width, tiles
    _correlate(
        x, packed, bias, y, scratch, plan.offsets, plan.layout, block, plan.size, plan.before,
        target, parts, x.dtype.type(floor),
    )  # fmt: skip


def conv2d_tiles(x, weight, bias, y, stride, padding, dilation, groups, floor=-np.inf):
    """Write max(conv(x, weight) + bias, floor) into y, C-contiguous."""
    n, outputs, *size = y.shape
    channels, *kernel_size = weight.shape[1:]
    plan = _forward_plan(
        (n, channels, *x.shape[2:]), tuple(size), tuple(kernel_size), stride, padding, dilation,
        x.itemsize,
    )  # fmt: skip
    taps = kernel_size[0] * kernel_size[1]
    strides = (outputs // groups * channels * taps, channels * taps, taps)
    _product(
        _grouped(x, groups), weight, strides, np.arange(taps), bias.reshape(groups, -1),
        y.reshape(n, groups, outputs // groups, -1), plan, (1, 1, 0, 0, size[1]), floor,
    )  # fmt: skip


def input_grad_tiles(dy, weight, dx, stride, padding, dilation, groups):
    """Write the gradient by the input into dx, C-contiguous."""
    n, _, *extent = dx.shape
    outputs, channels, *kernel_size = weight.shape
    outputs //= groups
    taps = kernel_size[0] * kernel_size[1]
    strides = (outputs * channels * taps, taps, channels * taps)
    grads, pixels = _grouped(dy, groups), dx.reshape(n, groups, channels, -1)
    bias = np.zeros((groups, channels), dy.dtype)
    plans = [
        (phase, _input_grad_plan((n, outputs, *dy.shape[2:]), tuple(extent), phase,
                                 tuple(kernel_size), stride, padding, dilation, dy.itemsize))
        for phase in np.ndindex(stride)
    ]  # fmt: skip
    if any(plan is None for _, (plan, _) in plans):
        dx[...] = 0
    for phase, (plan, numbers) in plans:
        if plan is not None:
            target = (*stride, *phase, extent[1])
            _product(grads, weight, strides, numbers, bias, pixels, plan, target, -np.inf)
