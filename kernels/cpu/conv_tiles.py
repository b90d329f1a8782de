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
from kernels.cpu.epilogue import plain
from kernels.cpu.planes import grouped, phase_shape, phase_taps, reaching_taps, split_phases
from kernels.cpu.tasks import MIN_TASKS, split
from kernels.cpu.threads import num_threads
from kernels.cpu.tiles import (
    PART_BYTES,
    group_size,
    pack_filters,
    store_tiles,
    sum_tiles,
    tile_count,
)
from kernels.cpu.workspace import workspace

# Planes of a block: as many as fill half of a second cache, but enough columns for some tiles.
_BLOCK_BYTES, _MIN_COLUMNS = 768 << 10, 192


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


def _plan(n, channels, size, layout, before, after, taps, dtype):
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
    row_bytes = channels * phases * pitch * dtype.itemsize
    if span * row_bytes <= _BLOCK_BYTES or span == 1:
        rows, height = span - spare[0], oh
        enough = max(-(-n // MIN_TASKS), -(-_MIN_COLUMNS // (rows * pitch)))
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
    line_bytes = (VECTORS * lanes(dtype) + int(taps[:, 2].max())) * dtype.itemsize
    depth = max(1, PART_BYTES * len(taps) // (lines * line_bytes))
    layout = (sh, sw, rows, pitch, *used)
    return _Plan(layout, images, height, size, before, plane, depth, slack, offsets)


@lru_cache(maxsize=256)
def _forward_plan(x_shape, size, kernel_size, stride, padding, dilation, dtype):
    n, channels, h, w = x_shape
    layout = phase_shape(size, kernel_size, stride, dilation)
    before = padding[0], padding[2]
    after = (
        reach - b - extent for reach, b, extent in zip(layout[2:4], before, (h, w), strict=True)
    )
    taps = phase_taps(kernel_size, stride, dilation)
    return _plan(n, channels, size, layout, before, tuple(after), taps, dtype)


@lru_cache(maxsize=256)
def _input_grad_plan(
    dy_shape, extent, phase, kernel_size, stride, padding, dilation, dtype
):
    """(plan, taps) of one phase of the pixels; no plan where no tap reaches it."""
    n, channels, oh, ow = dy_shape
    before = padding[0], padding[2]
    size = tuple(
        (e - a + s - 1) // s for e, a, s in zip(extent, phase, stride, strict=True)
    )
    axes = zip(phase, before, kernel_size, stride, dilation, strict=True)
    numbers, moves = zip(*(reaching_taps(*axis) for axis in axes), strict=True)
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
    plan = _plan(n, channels, size, layout, (top, left), after, places, dtype)
    return plan, taps


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


@njit(parallel=True, cache=True)
def _correlate(x, filters, y, scratch, offsets, layout, block, size, before, target, parts,
               epilogue):  # fmt: skip
    """y (N, G, O, H W) from x (N, G, C, H, W) and packed filters. `target`: see store_tiles."""
    n, groups = x.shape[:2]
    outputs, area = y.shape[2:]
    oh, ow = size
    images, height, plane, slack, blocks, depth, group, width = block
    rows, pitch = layout[2:4]
    bands = -(-oh // height)
    most = -(-blocks // parts) * ROWS * group * VECTORS * width
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
        flat = out[most:]
        top = before[0] - v0 * layout[0]
        _load_planes(x, image0, count, g, flat, layout, images, plane, slack, top, before[1])
        columns = ((count - 1) * rows + lines - 1) * pitch + ow
        room = columns + VECTORS * width
        first = ((image0 * groups + g) * outputs + o0) * area + v0 * target[0] * target[4]
        tiles = tile_count(columns, width)
        for t in range(0, tiles, group):
            some = t, min(t + group, tiles)
            sum_tiles(
                filters[g], (blocks, b0, b1, depth), flat, 0, offsets, some, columns, room, out,
                width,
            )  # fmt: skip
            store_tiles(
                out, (b1 - b0) * ROWS, some, columns, room, flat_y, first,
                (g * outputs + o0, o1 - o0, groups * outputs), (pitch, rows, lines, ow), area,
                target, epilogue, width,
            )  # fmt: skip


def _product(x, weight, strides, taps, y, plan, target, epilogue):
    """Run `_correlate` by one plan; x and y by groups.

    `strides`: elements of the weights from one group, output and channel to the next.
    """
    n, groups, channels = x.shape[:3]
    width = lanes(x.dtype)
    blocks = -(-y.shape[2] // ROWS)
    tasks = -(-n // plan.images) * -(-plan.size[0] // plan.height) * groups
    parts = min(blocks, -(-MIN_TASKS // max(tasks, 1)))
    rows = -(-blocks // parts) * ROWS
    places = np.add.outer(np.arange(channels) * strides[2], taps).reshape(-1)
    filters = pack_filters(weight, groups, y.shape[2], places, strides[:2], plan.depth, rows)
    group = group_size(rows, x.dtype)
    # A tile reads up to a tile beyond the planes.
    size = (rows * group + 1) * VECTORS * width + channels * plan.plane + plan.slack
    scratch = workspace("conv", (num_threads(), size), x.dtype)
    block = (
        plan.images, plan.height, plan.plane, plan.slack, filters.blocks, filters.depth, group,
        width,
    )  # fmt: skip
    _correlate(
        x, filters.packed, y, scratch, plan.offsets, plan.layout, block, plan.size, plan.before,
        target, parts, epilogue,
    )  # fmt: skip


def conv2d_tiles(x, weight, y, stride, padding, dilation, groups, epilogue):
    """Write the convolution into y, C-contiguous."""
    n, outputs, *size = y.shape
    channels, *kernel_size = weight.shape[1:]
    plan = _forward_plan(
        (n, channels, *x.shape[2:]), tuple(size), tuple(kernel_size), stride, padding, dilation,
        x.dtype,
    )  # fmt: skip
    taps = kernel_size[0] * kernel_size[1]
    strides = (outputs // groups * channels * taps, channels * taps, taps)
    _product(
        grouped(x, groups), weight, strides, np.arange(taps),
        y.reshape(n, groups, outputs // groups, -1), plan, (1, 1, 0, 0, size[1]), epilogue,
    )  # fmt: skip


def input_grad_tiles(dy, weight, dx, stride, padding, dilation, groups):
    """Write the gradient by the input into dx, C-contiguous."""
    n, _, *extent = dx.shape
    outputs, channels, *kernel_size = weight.shape
    outputs //= groups
    taps = kernel_size[0] * kernel_size[1]
    strides = (outputs * channels * taps, taps, channels * taps)
    grads, pixels = grouped(dy, groups), dx.reshape(n, groups, channels, -1)
    epilogue = plain(groups * channels, dy.dtype)
    plans = [
        (phase, _input_grad_plan((n, outputs, *dy.shape[2:]), tuple(extent), phase,
                                 tuple(kernel_size), stride, padding, dilation, dy.dtype))
        for phase in np.ndindex(stride)
    ]  # fmt: skip
    if any(plan is None for _, (plan, _) in plans):
        dx[...] = 0
    for phase, (plan, numbers) in plans:
        if plan is not None:
            target = (*stride, *phase, extent[1])
            _product(grads, weight, strides, numbers, pixels, plan, target, epilogue)
