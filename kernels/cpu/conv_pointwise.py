"""1x1 convolution: a matrix product of the filters and an image's planes, which lie there already.

    y[o, p] = sum_c w[o, c] x[c, p]

is summed by tiles without padding or columns, in one of two ways. Where the pixels of a plane fill
vectors, these are read as they lie (kernels.cpu.tiles). Small images do not fill them, and a stride
leaves pixels out; then vectors run along the outputs,

    y[p, o] = sum_c x[row[p] + c H W] w[c, o],

whatever pixels of whatever images make the rows of a tile. The filters of a **strip** of outputs,
as wide as a tile, are turned over, by whom alone needs them or for all beforehand; those of some
channels stay in a first cache while the pixels pass by. The sums are turned back when they are
stored. Pixels a stride apart, which many strips read again, are packed first: row by row of a tile,
all its channels, which otherwise lie in a cache line and mostly a page each.

The gradient by the input is the same with the filters turned over. How the work is cut depends on
the shapes alone, never on the number of threads, and so do the results, to the last bit.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.epilogue import in_vectors, plain
from kernels.cpu.gather import gather_tiles
from kernels.cpu.moves import copy, prefetch
from kernels.cpu.pixels import turn, turn_back
from kernels.cpu.planes import grouped
from kernels.cpu.tasks import MIN_TASKS, chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.tiles import (
    PANEL_BYTES,
    PART_BYTES,
    group_size,
    pack_filters,
    panel_step,
    panel_steps,
    store_tiles,
    sum_tiles,
    tile_count,
    tile_vectors,
    widest_tile,
)
from kernels.cpu.workspace import workspace

# Blocks of outputs, or of scattered pixels, of a task: the filters of the former for one part, and
# the sums of the latter, stay in a second cache.
_MAX_BLOCKS = 64
# Pixels that fill vectors by less than this are gathered.
_FILLED = 0.95
# What it costs to turn over filters for all tasks, which then have to fetch them, in blocks.
_SHARED = 2.5
# Channels whose filters are turned over by one task, a multiple of a vector.
_TURNED = 64
# Outputs for which it pays to pack pixels; channels and blocks of pixels packed by one task.
_PACKED, _PACK_CHANNELS, _PACK_BLOCKS = 512, 16, 16


def is_pointwise(weight_shape, padding) -> bool:
    """True where these kernels can do it."""
    return weight_shape[2:] == (1, 1) and padding == (0, 0, 0, 0)


@njit(parallel=True, cache=True)
def _multiply(x, filters, y, scratch, offsets, counts, cut, place, target, epilogue, width):
    """y (N, G, O, H W) from flat images of `columns` columns each.

    `counts`: (columns, blocks, depth). `cut`: into how many pieces the tiles, and the outputs, are
    cut.
    """
    columns, blocks, depth = counts
    images, groups, outputs, area = y.shape
    channels = offsets.size
    tiles = tile_count(columns, width)
    flat = y.reshape(y.size)
    for task in prange(images * groups * cut[0] * cut[1]):
        rest, part = split(task, cut[1])
        rest, piece = split(rest, cut[0])
        image, g = split(rest, groups)
        b0, b1 = part * blocks // cut[1], (part + 1) * blocks // cut[1]
        some = piece * tiles // cut[0], (piece + 1) * tiles // cut[0]
        o0, o1 = b0 * ROWS, min(b1 * ROWS, outputs)
        out = scratch[get_thread_id()]
        base = (image * groups + g) * channels * columns
        sum_tiles(
            filters[g], (blocks, b0, b1, depth), x, base, offsets, some, columns, columns, out,
            width,
        )  # fmt: skip
        store_tiles(
            out, (b1 - b0) * ROWS, some, columns, columns, flat,
            ((image * groups + g) * outputs + o0) * area, (g * outputs + o0, o1 - o0,
            groups * outputs), place, area, target, epilogue, width,
        )  # fmt: skip


def _planes(x, weight, strides, y, size, target, epilogue):
    """y (N, G, O, H W) from all pixels of x (N, G, C, H, W) as they lie."""
    images, groups, channels = x.shape[:3]
    outputs, width, columns = y.shape[2], lanes(x.dtype), size[0] * size[1]
    tiles, blocks = tile_count(columns, width), -(-outputs // ROWS)
    parts = -(-blocks // _MAX_BLOCKS)
    pieces = -(-tiles // group_size(-(-blocks // parts) * ROWS, x.dtype))
    if images * groups * pieces < 4 * MIN_TASKS:
        # Few tasks share out evenly where their number is a power of two.
        pieces = min(tiles, 1 << (pieces - 1).bit_length())
    parts = min(blocks, max(parts, -(-MIN_TASKS // (images * groups * pieces))))
    rows = -(-blocks // parts) * ROWS
    depth = PART_BYTES // (VECTORS * width * x.itemsize)
    places = np.arange(channels) * strides[2]
    filters = pack_filters(weight, groups, outputs, places, strides[:2], depth, rows)
    # A row of results that begins within a tile is read up to a tile beyond.
    most = (-(-tiles // pieces) * rows + 1) * VECTORS * width
    scratch = workspace("conv", (num_threads(), most), x.dtype)
    _multiply(
        x.reshape(-1), filters.packed, y, scratch, np.arange(channels) * columns,
        (columns, filters.blocks, filters.depth), (pieces, parts),
        (size[1], size[0], size[0], size[1]), target, epilogue, width,
    )  # fmt: skip


class _Plan(NamedTuple):
    """How a product of gathered pixels is cut: the same for every call with these shapes."""

    parts: int  # of the pixels
    slices: int  # of the strips
    strips: int  # of the outputs
    tile: int  # outputs of the widest strip
    pixels: np.ndarray  # where each pixel lies in x, if they are packed: whole tiles of them
    rows: np.ndarray  # where each pixel is read, and its sums in a tile
    places: np.ndarray  # of each channel: how much farther, and in the turned filters


@lru_cache(maxsize=256)
def _plan(x_shape, outputs, size, stride, dtype):
    n, groups, channels, h, w = x_shape
    width = lanes(dtype)
    vectors = -(-outputs // width)
    image, v, u = np.indices((n, *size)).reshape(3, -1)
    pixels = image * (groups * channels * h * w) + v * stride[0] * w + u * stride[1]
    pixels = np.pad(pixels, (0, -len(pixels) % ROWS), "edge")
    blocks = len(pixels) // ROWS

    def cost(cut):
        """Blocks times vectors of the busiest of 2, 4 and 8 threads, which share out the tasks."""
        parts, slices = (np.diff(np.arange(n + 1) * size // n) for n, size in cut)
        tasks = np.outer(parts, slices).reshape(-1)
        shared = _SHARED * vectors if len(parts) > 1 else 0
        longest = (max(map(np.sum, np.array_split(tasks, t))) * t for t in (2, 4, 8))
        return sum(longest) + 3 * shared

    least = -(-blocks // _MAX_BLOCKS)
    cuts = [
        (min(blocks, max(least, -(-MIN_TASKS // (slices * groups)))), slices)
        for slices in (1, 2, 4, 8)
        if slices == 1 or 2 * slices <= vectors
    ]
    parts, slices = min(cuts, key=lambda cut: cost(((cut[0], blocks), (cut[1], vectors))))
    strips = slices * -(-vectors // (slices * VECTORS))
    tile = widest_tile(strips, outputs, width)
    number, channel = np.arange(len(pixels)), np.arange(channels)
    if stride != (1, 1) and outputs >= _PACKED:
        rows, step = number // ROWS * (channels * ROWS) + number % ROWS, ROWS
    else:
        rows, step, pixels = pixels, h * w, pixels[:0]
    rows = np.stack([rows, number % ROWS * tile], axis=1).reshape(-1)
    places = np.stack([channel * step, channel * tile], axis=1).reshape(-1)
    plan = _Plan(parts, slices, strips, tile, pixels, rows, places)
    for array in plan[4:]:
        array.flags.writeable = False
    return plan


@njit(cache=True)
def _turn(weight, first, strides, outputs, terms, turned, start, tile, width):
    """turned (terms, tile) from weight[first] on, with `strides` of outputs and terms."""
    if strides[0] == 1:
        for k in range(terms):
            copy(turned, start + k * tile, weight, first + k * strides[1], outputs)
    else:
        turn(weight, first, strides[0], outputs, terms, turned, start, tile, width)


@njit(parallel=True, cache=True)
def _turn_filters(weight, strides, turned, outputs, channels, width):
    """turned (G, strips, C, tile), and room for a square of elements, from flat weights."""
    groups, strips, room, tile = turned.shape
    pieces, vectors, flat = -(-channels // _TURNED), -(-outputs // width), turned.reshape(-1)
    for task in prange(groups * strips * pieces):
        rest, piece = split(task, pieces)
        g, s = split(rest, strips)
        k0, k1 = chunk_bounds(piece, _TURNED, channels)
        v, wide = tile_vectors(s, strips, vectors)
        o = v * width
        first = g * strides[0] + o * strides[1] + k0 * strides[2]
        own, start = min(wide * width, outputs - o), (rest * room + k0) * tile
        _turn(weight, first, strides[1:], own, k1 - k0, flat, start, tile, width)


@njit(parallel=True, cache=True)
def _pack_pixels(x, pixels, plane, packed):
    """packed (G, blocks, C, ROWS) from flat x, whose planes have `plane` elements."""
    groups, blocks, channels = packed.shape[:3]
    bands, pieces = -(-channels // _PACK_CHANNELS), -(-blocks // _PACK_BLOCKS)
    flat = packed.reshape(packed.size)
    for task in prange(groups * bands * pieces):
        rest, piece = split(task, pieces)
        g, band = split(rest, bands)
        c0, c1 = chunk_bounds(band, _PACK_CHANNELS, channels)
        b0, b1 = chunk_bounds(piece, _PACK_BLOCKS, blocks)
        for b in range(b0, b1):
            for c in range(c0, c1):
                target = ((g * blocks + b) * channels + c) * ROWS
                first = (g * channels + c) * plane
                for r in range(ROWS):
                    flat[target + r] = x[first + pixels[b * ROWS + r]]


@njit(cache=True)
def _store(sums, first, tile, pixels, outputs, y, planes, size, target, spare, epilogue, channel,
           width):  # fmt: skip
    """The sums (pixels, tile) from `first` on to the planes of y, which begin at `planes`.

    `pixels`: the first, counted over all images, and the last. `planes`: (first, elements from one
    image to the next, from one output to the next). `target`: see `store_tiles`; `spare`: memory.
    """
    row_step, column_step, _, _, y_pitch = target
    area = size[0] * size[1]
    p = pixels[0]
    while p < pixels[1]:
        image, q = split(p, area)
        at = planes[0] + image * planes[1]
        run = min(area - q, pixels[1] - p)
        source = first + (p - pixels[0]) * tile
        if row_step * column_step == 1:
            turn_back(
                sums, source, tile, run, outputs, y, at + q, planes[2], epilogue, channel, width
            )
        else:
            run = min(run, spare.size // outputs)
            turn_back(sums, source, tile, run, outputs, spare, 0, run, epilogue, channel, width)
            for i in range(run):
                v, u = split(q + i, size[1])
                pixel = at + v * row_step * y_pitch + u * column_step
                for o in range(outputs):
                    y[pixel + o * planes[2]] = spare[o * run + i]
        p += run


@njit(parallel=True, cache=True)
def _multiply_gathered(x, weight, strides, filters, y, scratch, rows, places, plane, cut, depth,
                       size, target, epilogue, width):  # fmt: skip
    """y (N, G, O, H W) from flat x, a group's planes of `plane` elements, and turned filters.

    If there is one part only, they are turned here, from flat weights. `depth`: the channels of a
    panel. Scale and shift fill vectors, group by group.
    """
    images, groups, outputs, area = y.shape
    strips, room, tile = filters.shape[1:]
    channels, parts, slices = places.size // 2, cut[0], cut[1]
    blocks, pixels = rows.size // (2 * ROWS), images * size[0] * size[1]
    vectors, lines = -(-outputs // width), np.arange(tile) * strides[1]
    flat, turned = y.reshape(y.size), filters.reshape(filters.size)
    for task in prange(groups * parts * slices):
        rest, piece = split(task, slices)
        g, part = split(rest, parts)
        b0, b1 = part * blocks // parts, (part + 1) * blocks // parts
        s0, s1 = piece * strips // slices, (piece + 1) * strips // slices
        own = (b1 - b0) * ROWS * tile
        panel = scratch[get_thread_id(), : (depth + width) * tile]
        sums = scratch[get_thread_id(), (depth + width) * tile :]
        sums[: (s1 - s0) * own] = 0
        for step in range(panel_steps(channels, depth, s0, s1)):
            s, v, wide, k, terms = panel_step(step, channels, depth, s0, s1, strips, vectors)
            source, start = turned, (g * strips + s) * room * tile
            _, v1, more, k1, coming = panel_step(step + 1, channels, depth, s0, s1, strips, vectors)
            more = min(more * width, outputs - v1 * width) if k1 < channels else 0
            if parts == 1:
                first = g * strides[0] + v * width * strides[1] + k * strides[2]
                own_outputs = min(wide * width, outputs - v * width)
                _turn(weight, first, strides[1:], own_outputs, terms, panel, 0, tile, width)
                source, start = panel, -k * tile
            for b in range(b0, b1):
                i, count = b - b0, b1 - b0
                if parts == 1 and strides[2] == 1:
                    # What is turned over next is on its way while this is computed.
                    prefetch(
                        weight, g * strides[0] + v1 * width * strides[1] + k1, lines,
                        i * more // count, (i + 1) * more // count, coming,
                    )  # fmt: skip
                gather_tiles(
                    x, g * channels * plane, rows, b * ROWS, places, k, terms, source, start,
                    sums, (s - s0) * own + i * ROWS * tile, wide,
                )  # fmt: skip
        for s in range(s0, s1):
            v, wide = tile_vectors(s, strips, vectors)
            o = v * width
            _store(
                sums, (s - s0) * own, tile, (b0 * ROWS, min(b1 * ROWS, pixels)),
                min(wide * width, outputs - o), flat,
                ((g * outputs + o) * area, groups * outputs * area, area), size, target, panel,
                epilogue, g * vectors * width + o, width,
            )  # fmt: skip


def _gathered(x, weight, strides, y, stride, size, target, epilogue):
    """y (N, G, O, H W) from every stride-th pixel, `size` of them, of x (N, G, C, H, W)."""
    groups, channels, outputs = *x.shape[1:3], y.shape[2]
    width = lanes(x.dtype)
    plan = _plan(x.shape, outputs, size, stride, x.dtype)
    strips, blocks = plan.strips, len(plan.rows) // (2 * ROWS)
    weight = np.ascontiguousarray(weight).reshape(-1)
    filters = workspace("filters", (groups, strips, channels + width, plan.tile), x.dtype)
    if plan.parts > 1:
        _turn_filters(weight, strides, filters, outputs, channels, width)
    depth = PANEL_BYTES // (plan.tile * x.itemsize)
    # With what a square of elements reaches beyond a panel, and beyond the sums.
    rows = strips // plan.slices * -(-blocks // plan.parts) * ROWS + width
    scratch = workspace("conv", (num_threads(), (depth + width + rows) * plan.tile), x.dtype)
    source, plane = x.reshape(-1), x.shape[3] * x.shape[4]
    if plan.pixels.size:
        packed = workspace("pixels", (groups, blocks, channels, ROWS), x.dtype)
        _pack_pixels(source, plan.pixels, plane, packed)
        source, plane = packed.reshape(-1), blocks * ROWS
    _multiply_gathered(
        source, weight, strides, filters, y, scratch, plan.rows, plan.places, plane,
        (plan.parts, plan.slices), depth, size, target,
        in_vectors(epilogue, groups, -(-outputs // width) * width), width,
    )  # fmt: skip


def _product(x, weight, strides, y, stride, size, target, epilogue):
    """y (N, G, O, H W) from every stride-th pixel, `size` of them, of x (N, G, C, H, W).

    `strides`: elements of the weights from one group, output and channel to the next.
    """
    width, pixels = lanes(x.dtype), size[0] * size[1]
    filled = pixels >= VECTORS * width and pixels >= _FILLED * -(-pixels // width) * width
    if stride == (1, 1) and filled:
        _planes(x, weight, strides, y, size, target, epilogue)
    else:
        _gathered(x, weight, strides, y, stride, size, target, epilogue)


def conv2d_pointwise(x, weight, y, stride, groups, epilogue):
    """Write the convolution into y, C-contiguous."""
    n, outputs, *size = y.shape
    channels = weight.shape[1]
    outputs //= groups
    _product(
        grouped(x, groups), weight, (outputs * channels, channels, 1),
        y.reshape(n, groups, outputs, -1), stride, tuple(size), (1, 1, 0, 0, size[1]), epilogue,
    )  # fmt: skip


def input_grad_pointwise(dy, weight, dx, stride, groups):
    """Write the gradient by the input into dx, C-contiguous."""
    n, channels, *extent = dx.shape
    outputs, size = weight.shape[0] // groups, dy.shape[2:]
    channels //= groups
    if stride != (1, 1):
        dx[...] = 0
    _product(
        grouped(dy, groups), weight, (outputs * channels, 1, channels),
        dx.reshape(n, groups, channels, -1), (1, 1), size, (*stride, 0, 0, extent[1]),
        plain(groups * channels, dy.dtype),
    )  # fmt: skip
