"""Winograd convolution with small kernels at stride 1: down to a quarter of the multiplications.

The definition and the algebra stand in kernels.reference.winograd. Here all channels of a pixel lie
side by side (kernels.cpu.pixels), and so do those of each transformed tile: the transforms run over
vectors of channels, of whatever tiles, and the products are

    M[k] (tiles, O) = V[k] (tiles, C) U[k] (C, O)    for the 36 (or 16) positions k of a tile,

computed in tiles of registers from where the transforms put their operands. The work is cut

* **by blocks**, where the channels are so few that a block of tiles stays in a core's cache: a task
  takes it from pixels to result;
* **by steps** otherwise: all threads transform the rows of tiles, then share out the products, then
  the rows of the result.

The gradient by the input is the same convolution of dy; that by the weight stands in
kernels.cpu.winograd_weight, and what becomes of strides in kernels.cpu.winograd_strided.

How the work is cut depends on the shapes alone, never on the number of threads, and so do the
results, to the last bit.

Errors in float32, the largest over the largest result, on the 3x3 layers of VGG and ResNet: F(4x4)
6e-6 to 1.4e-5, F(2x2) 3e-7 to 7e-7, plain sums 2e-7 to 5e-7; F(2x2, 5x5) and F(3x3, 4x4) lie below
F(4x4, 3x3). `kernels.dispatch.winograd` chooses.
A NaN spreads over the results of its whole tile, and an infinity becomes NaN there.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.epilogue import in_vectors, plain
from kernels.cpu.pixels import turn, turn_back, turn_image
from kernels.cpu.planes import grouped
from kernels.cpu.simd import row_tiles
from kernels.cpu.tasks import MIN_TASKS, chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.winograd_tiles import (
    transform_tile_filters,
    transform_tile_grads,
    transform_tile_outputs,
    transform_tile_pixels,
)
from kernels.cpu.workspace import workspace

# A block's transformed tiles fill at most this much cache, and are at least so many.
_BLOCK_BYTES, _MIN_BLOCK = 2 << 20, 48
# Tiles that go through the steps together fill two cores' caches, but are at least so many.
_STEP_BYTES, _MIN_STEP = 5 << 20, 64
# Channels whose filters a task transforms, and those whose filters it fetches in one go.
_FILTER_CHANNELS, _FILTER_BATCH = 64, 8
# Terms of a sum that are added in one go: their vectors stay in a first cache.
_DEPTH = 128
# Values between one matrix and the next. Without them all 36 would begin at multiples of the page
# size, where they displace each other from the cache.
SKEW = 32


@njit(parallel=True, cache=True)
def _transform_filters(weight, u, scratch, size, taps, turned, strips, width):
    """u (G, products, strips C strip + SKEW), the transforms of weight (G, O, C, taps^2).

    If `turned`, the filters are turned round, and O and C change places. A strip holds as many
    outputs as a tile of the product.
    """
    groups, products, k_step = u.shape
    outputs, channels = weight.shape[1:3]
    if turned:
        outputs, channels = channels, outputs
    strip, area, tile = VECTORS * width, taps * taps, size + taps - 1
    flat, filters = u.reshape(u.size), weight.reshape(weight.size)
    row, column = (-taps * strip, -strip) if turned else (taps * strip, strip)
    corner = (area - 1) * strip if turned else 0
    parts = -(-channels // _FILTER_CHANNELS)
    for task in prange(groups * strips * parts):
        rest, part = split(task, parts)
        g, s = split(rest, strips)
        o0, o1 = chunk_bounds(s, strip, outputs)
        c0, c1 = chunk_bounds(part, _FILTER_CHANNELS, channels)
        memory = scratch[get_thread_id()]
        for first in range(c0, c1, _FILTER_BATCH):
            last = min(c1, first + _FILTER_BATCH)
            # Outputs side by side, tap after tap.
            if turned:
                for c in range(first, last):
                    source = ((g * channels + c) * outputs + o0) * area
                    target = (c - first) * area * strip
                    turn(filters, source, area, o1 - o0, area, memory, target, strip, width)
            else:
                source = ((g * outputs + o0) * channels + first) * area
                run = (last - first) * area
                turn(filters, source, channels * area, o1 - o0, run, memory, 0, strip, width)
            for c in range(first, last):
                target = g * products * k_step + (s * channels + c) * strip
                for o in range(0, strip, width):
                    transform_tile_filters(
                        size, taps, memory, (c - first) * area * strip + corner + o, row, column,
                        flat, target + o, tile * k_step, k_step,
                    )  # fmt: skip


@njit(cache=True)
def _segments(row, stop, down):
    """The rows of tiles from `row` on that lie in one image: (image, first row, how many)."""
    image = row // down
    first = row - image * down
    return image, first, min(down - first, stop - row)


@njit(cache=True)
def transform_pixels(
    x, g, v, v_step, tile0, row0, row1, pixels, geometry, place, of_grads, width
):
    """V of the rows of tiles row0:row1, counted through all images, from tile `tile0` of v on.

    x (N, G, C, H, W); `pixels`: scratch memory; `place`: elements of a pixel. If `of_grads`, x is
    dy, whose tiles do not overlap, and A dy A^T takes the place of B^T d B.
    """
    size, taps, down, across, top, left = geometry
    groups, channels, h, w = x.shape[1:]
    overlap = 0 if of_grads else taps - 1
    pitch = across * size + overlap
    i_step, flat = (size + taps - 1) * v_step, x.reshape(x.size)
    row = row0
    while row < row1:
        image, first, count = _segments(row, row1, down)
        turn_image(
            flat, (image * groups + g) * channels * h * w, h * w, (h, w), channels,
            top - first * size, left, pixels, 0, (count * size + overlap, pitch, place), width,
        )  # fmt: skip
        for r in range(count):
            for t in range(across):
                source = (r * pitch + t) * size * place
                target = (tile0 + (row - row0 + r) * across + t) * place
                line = pitch * place
                for c in range(0, place, width):
                    start, at = source + c, target + c
                    if of_grads:
                        transform_tile_grads(
                            size, taps, pixels, start, line, place, v, at, i_step, v_step
                        )
                    else:
                        transform_tile_pixels(
                            size, taps, pixels, start, line, place, v, at, i_step, v_step
                        )
        row += count


@njit(cache=True)
def _transform_results(
    m, m_step, tile0, y, g, epilogue, row0, row1, pixels, geometry, place, width
):
    """y (N, G, O, OH, OW) at the rows of tiles row0:row1, from m; `epilogue` in whole vectors."""
    size, taps, down, across = geometry[:4]
    groups, outputs, oh, ow = y.shape[1:]
    flat, pitch, i_step = y.reshape(y.size), across * size, (size + taps - 1) * m_step
    for row in range(row0, row1):
        image, v = row // down, row % down * size
        for t in range(across):
            source = (tile0 + (row - row0) * across + t) * place
            for o in range(0, place, width):
                target = t * size * place + o
                transform_tile_outputs(
                    size, taps, m, source + o, i_step, m_step, pixels, target, pitch * place, place
                )
        for i in range(min(size, oh - v)):
            turn_back(
                pixels, i * pitch * place, place, ow, outputs, flat,
                (image * groups + g) * outputs * oh * ow + (v + i) * ow, oh * ow,
                epilogue, g * place, width,
            )  # fmt: skip


@njit(cache=True)
def _product(v, v0, channels, u, m, m0, outputs, offsets, tiles, strip0, strip1, width):
    """m (tiles, `outputs`) = v (tiles, `channels`) times u (strips, C, strip), some strips."""
    strip = VECTORS * width
    for s in range(strip0, strip1):
        vectors = min(VECTORS, (outputs - s * strip) // width)
        for c in range(0, offsets.size, _DEPTH):
            depth = min(_DEPTH, offsets.size - c)
            for t in range(0, tiles, ROWS):
                row_tiles(
                    v, v0 + t * channels + c, channels,
                    u, s * offsets.size * strip, offsets, c, depth,
                    m, m0 + t * outputs + s * strip, outputs, vectors, c == 0,
                )  # fmt: skip


@njit(parallel=True, cache=True)
def _by_blocks(x, u, epilogue, y, scratch, offsets, block, geometry, places, width):
    """A task takes `block` rows of tiles of a group from pixels to result."""
    n, groups = x.shape[:2]
    products = u.shape[1]
    down, across = geometry[2:4]
    v_place, m_place, strips = places
    most = -(-block * across // ROWS) * ROWS
    v_step, m_step = most * v_place + SKEW, most * m_place + SKEW
    for task in prange(-(-n * down // block) * groups):
        piece, g = split(task, groups)
        row0, row1 = chunk_bounds(piece, block, n * down)
        memory = scratch[get_thread_id()]
        v, rest = memory[: products * v_step], memory[products * v_step :]
        m, pixels = rest[: products * m_step], rest[products * m_step :]
        transform_pixels(
            x, g, v, v_step, 0, row0, row1, pixels, geometry, v_place, False, width
        )
        tiles = (row1 - row0) * across
        for k in range(products):
            _product(
                v, k * v_step, v_place, u[g, k], m, k * m_step, m_place, offsets, tiles, 0, strips,
                width,
            )  # fmt: skip
        _transform_results(
            m, m_step, 0, y, g, epilogue, row0, row1, pixels, geometry, m_place, width
        )


@njit(parallel=True, cache=True)
def step_pixels(x, g, v, v_step, scratch, row0, row1, piece, geometry, place, of_grads, width):
    """V of the rows of tiles row0:row1; a task takes `piece` of them."""
    across = geometry[3]
    for task in prange(-(-(row1 - row0) // piece)):
        first, last = chunk_bounds(task, piece, row1 - row0)
        transform_pixels(
            x, g, v, v_step, first * across, row0 + first, row0 + last, scratch[get_thread_id()],
            geometry, place, of_grads, width,
        )  # fmt: skip


@njit(parallel=True, cache=True)
def _step_products(v, v_step, v_place, u, strips, m, m_step, m_place, offsets, tiles, width):
    for task in prange(u.shape[0] * strips):
        k, s = split(task, strips)
        _product(
            v, k * v_step, v_place, u[k], m, k * m_step, m_place, offsets, tiles, s, s + 1, width
        )


@njit(parallel=True, cache=True)
def _step_results(
    m, m_step, y, g, epilogue, scratch, row0, row1, piece, geometry, place, width
):
    across = geometry[3]
    for task in prange(-(-(row1 - row0) // piece)):
        first, last = chunk_bounds(task, piece, row1 - row0)
        _transform_results(
            m, m_step, first * across, y, g, epilogue, row0 + first, row0 + last,
            scratch[get_thread_id()], geometry, place, width,
        )  # fmt: skip


def conv2d_winograd(x, weight, y, padding, size, groups, epilogue):
    """Write the convolution of stride 1 into y, C-contiguous, by F(size x size, r x r)."""
    _convolve(x, weight, y, padding, size, groups, False, epilogue)


def input_grad_winograd(dy, weight, dx, padding, size, groups=1):
    """Write the gradient by the input into dx, C-contiguous.

    It is the convolution of dy, padded by r - 1 - p (less than nothing, where p >= r: pixels are
    left out), with the filters turned round and their channels exchanged.
    """
    epilogue, reach = plain(dx.shape[1], dx.dtype), weight.shape[2] - 1
    _convolve(dy, weight, dx, tuple(reach - p for p in padding), size, groups, True, epilogue)


def _convolve(x, weight, y, padding, size, groups, turned, epilogue):
    """y = conv(x, weight), or, if `turned`, the convolution of `input_grad_winograd`."""
    n, outputs, oh, ow = y.shape
    channels, outputs = x.shape[1] // groups, outputs // groups
    width, taps = lanes(x.dtype), weight.shape[2]
    strip, products = VECTORS * width, (size + taps - 1) ** 2
    x = grouped(x, groups)
    v_place, m_place = place_of(channels, width), place_of(outputs, width)
    epilogue = in_vectors(epilogue, groups, m_place)
    strips = -(-outputs // strip)
    u = workspace("filters", (groups, products, strips * channels * strip + SKEW), x.dtype)
    filters = np.ascontiguousarray(weight).reshape(groups, -1, weight.shape[1], taps**2)
    # With what a square of elements reaches beyond the last tap.
    length = (_FILTER_BATCH * taps**2 + width) * strip
    scratch = workspace("conv", (num_threads(), length), x.dtype)
    _transform_filters(filters, u, scratch, size, taps, turned, strips, width)
    y = y.reshape(n, groups, outputs, oh, ow)
    geometry = (size, taps, -(-oh // size), -(-ow // size), padding[0], padding[2])
    down, across = geometry[2:4]
    offsets = np.arange(channels) * strip
    pitch = across * size + taps - 1
    # Pixels of a row of tiles, and what squares of elements reach beyond them.
    row_pixels = size * pitch * max(v_place, m_place)
    spare = ((taps - 1) * pitch + width) * max(v_place, m_place)
    block = _BLOCK_BYTES // (products * (v_place + m_place) * x.itemsize * across)
    if block * across >= _MIN_BLOCK:
        block = min(block, -(-n * down * groups // MIN_TASKS))
        most = _round_up(block * across, ROWS)
        length = products * (most * (v_place + m_place) + 2 * SKEW) + block * row_pixels + spare
        scratch = workspace("conv", (num_threads(), length), x.dtype)
        _by_blocks(
            x, u, epilogue, y, scratch, offsets, block, geometry, (v_place, m_place, strips),
            width,
        )  # fmt: skip
        return
    tile_bytes = products * (v_place + m_place) * x.itemsize
    rows = step_rows(n * down, across, tile_bytes, u[0].nbytes // 2, _MIN_STEP)
    piece = -(-rows // MIN_TASKS)
    most = _round_up(rows * across, ROWS)
    v_step, m_step = most * v_place + SKEW, most * m_place + SKEW
    v = workspace("tiles", (products * v_step,), x.dtype)
    m = workspace("products", (products * m_step,), x.dtype)
    scratch = workspace("conv", (num_threads(), piece * row_pixels + spare), x.dtype)
    for g in range(groups):
        for row0 in range(0, n * down, rows):
            row1 = min(n * down, row0 + rows)
            tiles = (row1 - row0) * across
            step_pixels(
                x, g, v, v_step, scratch, row0, row1, piece, geometry, v_place, False, width
            )
            _step_products(
                v, v_step, v_place, u[g], strips, m, m_step, m_place, offsets, tiles, width
            )
            _step_results(
                m, m_step, y, g, epilogue, scratch, row0, row1, piece, geometry, m_place, width
            )


def step_rows(rows, across, tile_bytes, fixed_bytes, least):
    """Of so many rows of `across` tiles, those that go through the steps together.

    `fixed_bytes`: what a step reads whatever its size, and should not outweigh the tiles much.
    """
    tiles = max(_STEP_BYTES, fixed_bytes) // tile_bytes
    return max(1, min(rows, max(tiles, least) // across))


def place_of(channels, width):
    """Elements of a pixel: an odd number of vectors, which spread best over the cache."""
    return (-(-channels // width) | 1) * width


def _round_up(size, step):
    return -(-size // step) * step
