"""1x1 convolution: a matrix product of the filters and an image's planes, which lie there already.

    y[o, p] = sum_c w[o, c] x[c, p]

is summed by tiles (kernels.cpu.tiles) that read the pixels where they are, without padding or
columns. Images whose pixels do not fill vectors, or of which the stride leaves pixels out, are put
side by side first: (C, N OH OW) is one image to the product. The gradient by the input is the same
with the filters turned over.

How the work is cut depends on the shapes alone, never on the number of threads, and so do the
results, to the last bit.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.epilogue import plain
from kernels.cpu.planes import grouped, split_phases
from kernels.cpu.simd import copy
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

# Blocks of outputs of a task: their filters for one part stay in a second cache.
_MAX_BLOCKS = 64
# Vectors that are filled by less than this are worth putting images side by side.
_FILLED = 0.9


def is_pointwise(weight_shape, padding) -> bool:
    """True where these kernels can do it."""
    return weight_shape[2:] == (1, 1) and padding == (0, 0, 0, 0)


@njit(parallel=True, cache=True)
def _side_by_side(x, pixels, stride, size):
    """pixels (G, C, N OH OW) of x (N, G, C, H, W), flat.

    Image by image, as their product is shared out: what a core has written, it will read.
    """
    n, groups, channels = x.shape[:3]
    area, flat = size[0] * size[1], x.reshape(x.size)
    pieces = min(channels, -(-MIN_TASKS // n))
    for task in prange(n * groups * pieces):
        rest, piece = split(task, pieces)
        image, g = split(rest, groups)
        for c in range(piece * channels // pieces, (piece + 1) * channels // pieces):
            at = ((g * channels + c) * n + image) * area
            if stride == (1, 1):
                copy(pixels, at, flat, ((image * groups + g) * channels + c) * area, area)
            else:
                split_phases(x[image, g, c], pixels, at, 0, (*stride, *size, 1, 1), 0, 0, 0)


@njit(parallel=True, cache=True)
def _multiply(source, filters, y, scratch, offsets, counts, cut, place, target, epilogue, width):
    """y (N, G, O, H W) from a flat source of images of `columns` columns each.

    `counts`: (images in the source, columns of each, room behind its last tile, blocks, depth).
    `cut`: into how many pieces the tiles, and the outputs, are cut.
    """
    images, columns, room, blocks, depth = counts
    groups, outputs, area = y.shape[1:]
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
            filters[g], (blocks, b0, b1, depth), source, base, offsets, some, columns, room, out,
            width,
        )  # fmt: skip
        store_tiles(
            out, (b1 - b0) * ROWS, some, columns, room, flat,
            ((image * groups + g) * outputs + o0) * area, (g * outputs + o0, o1 - o0,
            groups * outputs), place, area, target, epilogue, width,
        )  # fmt: skip


def _product(x, weight, strides, y, stride, size, target, epilogue):
    """y (N, G, O, H W) from every stride-th pixel, `size` of them, of x (N, G, C, H, W)."""
    n, groups, channels = x.shape[:3]
    outputs, width, pixels = y.shape[2], lanes(x.dtype), size[0] * size[1]
    vectors = -(-pixels // width)
    if stride == (1, 1) and pixels >= VECTORS * width and pixels >= _FILLED * vectors * width:
        source, images, columns, room = x.reshape(-1), n, pixels, pixels
    else:
        images, columns = 1, n * pixels
        room = columns + VECTORS * width
        source = workspace("pixels", (groups * channels * columns + VECTORS * width,), x.dtype)
        _side_by_side(x, source, stride, size)
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
    most = -(-tiles // pieces) * rows * VECTORS * width
    scratch = workspace("conv", (num_threads(), most), x.dtype)
    _multiply(
        source, filters.packed, y, scratch, np.arange(channels) * columns,
        (images, columns, room, filters.blocks, filters.depth), (pieces, parts),
        (size[1], size[0], size[0], size[1]), target, epilogue, width,
    )  # fmt: skip


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
