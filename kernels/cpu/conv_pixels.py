"""The gradient by the weight, a product that runs over the pixels of the gradient dy.

With one row for each weight of a filter, k = (c, i, j), and a column for each output, it is

    dw[k, o] = sum_f x[row[k] + place[f]] dy[f, o],            f = (image, v, u),

since what a weight meets at an output lies in the image at a place of its own plus one of the
output's, whatever kernel, stride and dilation are. So x is read from where it lies. Only dy is
turned over, so that the outputs of a pixel lie side by side: some pixels at a time, for a **strip**
of outputs as wide as a tile of registers (kernels.cpu.simd), which stay in a first cache while all
rows pass by. Vectors run along the outputs, of which there are many even where the image has but
three channels.

ROWS channels make the rows of a tile, all of the same tap (i, j). Each tap has its own list of
pixels: those that it does not meet in the padding, where a NaN of dy is lost on it. Channels
beyond a multiple of ROWS would leave rows empty; there a tile holds several taps, and padded images
are copied to **planes** in scratch memory, where all taps meet all pixels.

A task sums up some of the pixels for some rows and some strips: which, is chosen by what it costs.
Sums over several shares of the pixels are added in order. How the work is cut depends on the shapes
alone, never on the number of threads, and so do the results, to the last bit.

The algebra is that of kernels.reference.conv.
"""

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.epilogue import plain
from kernels.cpu.gather import gather_tiles
from kernels.cpu.moves import prefetch
from kernels.cpu.pixels import turn, turn_back
from kernels.cpu.planes import grouped, split_phases
from kernels.cpu.tasks import MIN_TASKS, chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.tiles import (
    PANEL_BYTES,
    TURN,
    panel_step,
    panel_steps,
    tile_count,
    tile_vectors,
    widest_tile,
)
from kernels.cpu.workspace import empty, workspace

# Padded planes of a block should stay in a second cache; the places of its pixels are a list.
_BLOCK_BYTES, _BLOCK_PIXELS = 512 << 10, 1024
# A larger dy is fetched ahead.
_FETCHED_BYTES = 4 << 20
# Rows of the gradient that one task gathers from several shares.
_COLLECTED = 64
# What it costs to gather an element of a share, and to copy a row and each of its elements to a
# plane: in products of a vector, as measured.
_COLLECT, _LINE, _COPY = 2.5, 25, 0.15


class _Cut(NamedTuple):
    """Into how many pieces the work is cut, each combination of which is a task's."""

    shares: int  # of the pixels
    parts: int  # of the rows
    slices: int  # of the strips


_CUTS = [
    _Cut(*cut) for cut in product((1, 2, 4, 8), repeat=3) if math.prod(cut) <= MIN_TASKS
]


class _Block(NamedTuple):
    """The pixels whose places are a list: of some images, or of a band of one."""

    images: int
    height: int  # output rows
    lines: int  # rows of a plane
    pitch: int  # elements of a row
    step: int  # from one image to the next
    plane: int  # from one channel to the next
    number: int  # of blocks
    planes: bool  # whether they are copied to planes


class _Plan(NamedTuple):
    """How the work is cut: the same for every call with these shapes."""

    cut: _Cut
    block: _Block
    panel: tuple[int, int]  # pixels, outputs of the widest strip
    # Where the pixel of each weight lies for a block's first output, and its sums in a tile.
    rows: np.ndarray
    lists: np.ndarray  # the number of the list of each band and tap
    bounds: np.ndarray  # where in its list each pixel would stand
    places: np.ndarray  # of each pixel of each list: how much farther, and in the turned dy


@lru_cache(maxsize=256)
def _plan(x_shape, dy_shape, kernel_size, stride, padding, dilation, dtype):
    """For x (N, G, C, H, W) and dy (N, G, O, OH, OW)."""
    n, groups, channels, *extent = x_shape
    outputs, *size = dy_shape[2:]
    taps, width = math.prod(kernel_size), lanes(dtype)
    planes = padding != (0, 0, 0, 0) and channels % ROWS != 0
    row_blocks, strips = -(-channels * taps // ROWS), tile_count.py_func(outputs, width)

    def cost(cut, block):
        """What the longest task takes, and those that the same core may have to do."""
        pixels = -(-block.number // cut.shares) * block.images * block.height * size[1]
        rows = -(-row_blocks // cut.parts) * ROWS
        vectors = min(-(-strips // cut.slices) * VECTORS, -(-outputs // width))
        cycles = pixels * vectors * (rows + TURN * width)
        if planes:
            lines = min(channels, rows // taps + ROWS) * block.images * block.lines
            cycles += -(-block.number // cut.shares) * lines * (_LINE + _COPY * block.pitch)
        if cut.shares > 1:
            cycles += _COLLECT * cut.shares * channels * taps * outputs / MIN_TASKS
        return cycles * -(-groups * math.prod(cut) // MIN_TASKS)

    options = []
    for cut in _CUTS:
        block = _block(x_shape, size, kernel_size, stride, dilation, planes, cut.shares, dtype)
        if cut.shares <= block.number and cut.parts <= row_blocks and cut.slices <= strips:
            options.append((cost(cut, block), cut, block))
    _, cut, block = min(options)
    tile = widest_tile(tile_count.py_func(outputs, width), outputs, width)
    panel = PANEL_BYTES // (tile * dtype.itemsize), tile
    before = (0, 0) if planes else (padding[0], padding[2])
    everywhere = planes or padding == (0, 0, 0, 0)
    lists = _lists(block, size, extent, kernel_size, stride, before, dilation, everywhere, tile)
    plan = _Plan(cut, block, panel, _rows(block, channels, kernel_size, dilation, tile), *lists)
    for array in plan[3:]:
        array.flags.writeable = False
    return plan


def _block(x_shape, size, kernel_size, stride, dilation, planes, shares, dtype):
    """As many pixels as fit, but enough blocks for so many shares."""
    n, groups, channels, *extent = x_shape
    oh, ow = size
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    images = max(1, min(n // shares, _BLOCK_PIXELS // (oh * ow)))
    height = max(1, min(oh, _BLOCK_PIXELS // ow, -(-oh * n // shares)))
    lines, pitch = extent
    if planes:
        pitch = (ow - 1) * stride[1] + reach[1]
        fitting = _BLOCK_BYTES // (channels * pitch * dtype.itemsize)
        height = max(1, min(height, (fitting - reach[0]) // stride[0] + 1))
        images = max(1, min(images, fitting // ((oh - 1) * stride[0] + reach[0])))
    if height < oh:
        images = 1
    images, height = -(-n // -(-n // images)), -(-oh // -(-oh // height))
    if planes:
        lines = (height - 1) * stride[0] + reach[0]
    step, plane = lines * pitch, images * lines * pitch
    if not planes:
        step, plane = groups * channels * step, step
    number = -(-n // images) * -(-oh // height)
    return _Block(images, height, lines, pitch, step, plane, number, planes)


def _rows(block, channels, kernel_size, dilation, tile):
    """Where each weight's pixel lies: in the order (ROWS channels, tap, channel), whole tiles."""
    c, i, j = np.indices((channels, *kernel_size))
    places = c * block.plane + i * dilation[0] * block.pitch + j * dilation[1]
    places = places.reshape(channels, -1)
    rows = np.concatenate(
        [places[c : c + ROWS].T.reshape(-1) for c in range(0, channels, ROWS)]
    )
    rows = np.pad(rows, (0, -len(rows) % ROWS), "edge")
    return np.stack([rows, np.arange(len(rows)) % ROWS * tile], axis=1).reshape(-1)


def _lists(block, size, extent, kernel_size, stride, before, dilation, everywhere, tile):
    """(lists, bounds, places) of a plan; all pixels are in all lists, or but those in the image."""
    image, v, u = np.indices((block.images, block.height, size[1])).reshape(3, -1)
    bands = np.arange(-(-size[0] // block.height)) * block.height
    i, j = (np.arange(k) * d - b for k, d, b in zip(kernel_size, dilation, before, strict=True))
    line = (np.add.outer(bands, v)[:, None, None] * stride[0]) + i[:, None, None]
    column = u * stride[1] + j[:, None]
    inside = (line >= 0) & (line < extent[0]) & (column >= 0) & (column < extent[1])
    inside |= everywhere
    numbers = {}
    lists = [numbers.setdefault(f.tobytes(), len(numbers)) for f in inside.reshape(-1, len(image))]
    kinds = np.frombuffer(b"".join(numbers), bool)
    bounds = np.concatenate([[0], np.cumsum(kinds)])
    pixel = np.flatnonzero(kinds) % len(image)
    places = image * block.step + v * stride[0] * block.pitch + u * stride[1]
    places = np.stack([places[pixel], pixel * tile], axis=1)
    return np.reshape(lists, (len(bands), -1)), bounds, places.reshape(-1)


@njit(cache=True)
def _load_planes(x, image0, count, g, channels, planes, block, top, left):
    """The padded planes of some channels, (first, last), of a group of `count` images."""
    layout = (1, 1, block.lines, block.pitch, 1, 1)
    for c in range(channels[0], channels[1]):
        for image in range(count):
            at = c * block.plane + image * block.step
            split_phases(x[image0 + image, g, c], planes, at, 0, layout, top, left, 0)


@njit(cache=True)
def _turn_pixels(dy, first, area, step, run, outputs, panel, tile, f, depth, width):
    """panel (depth, tile) = dy of the pixels f to f + depth of a block and some outputs.

    Its images have `run` pixels each and are `step` apart, the planes of an image `area`.
    """
    done = 0
    while done < depth:
        image, p = split(f + done, run)
        some = min(run - p, depth - done)
        source = first + image * step + p
        turn(dy, source, area, outputs, some, panel, done * tile, tile, width)
        done += some


@njit(cache=True)
def _fetch_pixels(dy, first, planes, step, run, outputs, f, depth):
    """Bring into a second cache what `_turn_pixels` will read of some outputs, (first, last)."""
    done = 0
    while done < depth:
        image, p = split(f + done, run)
        some = min(run - p, depth - done)
        prefetch(dy, first + image * step + p, planes, outputs[0], outputs[1], some)
        done += some


@njit(cache=True)
def _store(sums, first, step, shares, tile, k0, k1, outputs, weight_grad, target, shape, epilogue,
           width):  # fmt: skip
    """weight_grad[target + o C T + (c, t)] = the sum over the shares of sums[first + (k, o)].

    For the rows k0 to k1 of `shape` (C, T). The shares are `step` apart; the first gathers them.
    """
    channels, taps = shape
    for share in range(1, shares):
        for i in range(first + k0 * tile, first + k1 * tile):
            sums[i] += sums[i + share * step]
    if taps == 1:
        turn_back(
            sums, first + k0 * tile, tile, min(k1, channels) - k0, outputs, weight_grad,
            target + k0, channels, epilogue, 0, width,
        )  # fmt: skip
        return
    for c in range(k0 // (ROWS * taps) * ROWS, channels):
        c0 = c // ROWS * ROWS
        size = min(ROWS, channels - c0)
        row = c0 * taps + c - c0
        if c0 * taps >= k1:
            break
        t0, t1 = max(0, -((row - k0) // size)), min(taps, -((row - k1) // size))
        if t0 < t1:
            turn_back(
                sums, first + (row + t0 * size) * tile, size * tile, t1 - t0, outputs, weight_grad,
                target + c * taps + t0, channels * taps, epilogue, 0, width,
            )  # fmt: skip


@njit(parallel=True, cache=True)
def _weight_grad(dy, x, sums, weight_grad, scratch, rows, lists, bounds, places, block, most,
                 before, stride, cut, fetched, epilogue, width):  # fmt: skip
    """sums (S, G, strips, rows, tile): each over its share of the pixels, for `weight_grad`.

    If there is one share only, they go there at once.
    """
    n, groups, outputs, oh, ow = dy.shape
    channels, taps = weight_grad.shape[2:]
    strips, tile = sums.shape[2], sums.shape[4]
    bands, vectors = lists.shape[0], -(-outputs // width)
    row_blocks, area, dy_step = rows.size // (2 * ROWS), oh * ow, groups * outputs * oh * ow
    pixels = block.images * block.height * ow
    flat_x, flat_dy, flat_sums = x.reshape(x.size), dy.reshape(dy.size), sums.reshape(sums.size)
    flat_grad = weight_grad.reshape(weight_grad.size)
    dy_planes = np.arange(tile) * area
    for task in prange(cut.shares * groups * cut.parts * cut.slices):
        rest, part = split(task, cut.parts)
        rest, piece = split(rest, cut.slices)
        share, g = split(rest, groups)
        b0, b1 = part * row_blocks // cut.parts, (part + 1) * row_blocks // cut.parts
        s0, s1 = piece * strips // cut.slices, (piece + 1) * strips // cut.slices
        sums[share, g, s0:s1, b0 * ROWS : b1 * ROWS] = 0
        panel = scratch[get_thread_id(), : (most + width) * tile]
        planes = scratch[get_thread_id(), (most + width) * tile :]
        own = b0 // taps * ROWS, min(channels, ((b1 - 1) // taps + 1) * ROWS)
        for index in range(
            share * block.number // cut.shares, (share + 1) * block.number // cut.shares
        ):
            image_group, band = split(index, bands)
            image0, v0 = image_group * block.images, band * block.height
            count, run = min(block.images, n - image0), min(block.height, oh - v0) * ow
            source, base = flat_x, (image0 * groups + g) * channels * block.plane
            base += (v0 * stride[0] - before[0]) * block.pitch - before[1]
            if block.planes:
                _load_planes(
                    x, image0, count, g, own, planes, block, before[0] - v0 * stride[0], before[1]
                )
                source, base = planes, 0
            first = ((image0 * groups + g) * outputs * oh + v0) * ow
            total = count * run
            for step in range(panel_steps(total, most, s0, s1)):
                s, v, wide, f, depth = panel_step(step, total, most, s0, s1, strips, vectors)
                _turn_pixels(
                    flat_dy, first + v * width * area, area, dy_step, run,
                    min(wide * width, outputs - v * width), panel, tile, f, depth,
                    width,
                )  # fmt: skip
                # What is turned over next is on its way while this is computed.
                _, v, more, f1, coming = panel_step(step + 1, total, most, s0, s1, strips, vectors)
                more = min(more * width, outputs - v * width)
                for b in range(b0, b1):
                    some = (b - b0) * more // (b1 - b0), (b + 1 - b0) * more // (b1 - b0)
                    if fetched and some[0] < some[1] and f1 < total:
                        _fetch_pixels(
                            flat_dy, first + v * width * area, dy_planes, dy_step, run, some, f1,
                            coming,
                        )  # fmt: skip
                    entry = lists[band, b % taps] * pixels + f
                    start, end = bounds[entry], bounds[entry + depth]
                    at = ((share * groups + g) * strips + s) * row_blocks * ROWS + b * ROWS
                    gather_tiles(
                        source, base, rows, b * ROWS, places, start, end - start, panel, -f * tile,
                        flat_sums, at * tile, wide,
                    )  # fmt: skip
        if cut.shares == 1:
            for s in range(s0, s1):
                v, wide = tile_vectors(s, strips, vectors)
                o = v * width
                _store(
                    flat_sums, (g * strips + s) * row_blocks * ROWS * tile, 0, 1, tile, b0 * ROWS,
                    b1 * ROWS, min(wide * width, outputs - o), flat_grad, (g * outputs + o)
                    * channels * taps, (channels, taps), epilogue, width,
                )  # fmt: skip


@njit(parallel=True, cache=True)
def _collect(sums, weight_grad, epilogue, width):
    """weight_grad (G, O, C, T) = the sums over S."""
    groups, outputs, channels, taps = weight_grad.shape
    shares, _, strips, rows, tile = sums.shape
    pieces, vectors = -(-rows // _COLLECTED), -(-outputs // width)
    flat_sums, flat_grad = sums.reshape(sums.size), weight_grad.reshape(weight_grad.size)
    for task in prange(groups * strips * pieces):
        rest, piece = split(task, pieces)
        g, s = split(rest, strips)
        v, wide = tile_vectors(s, strips, vectors)
        k0, k1 = chunk_bounds(piece, _COLLECTED, rows)
        o = v * width
        _store(
            flat_sums, (g * strips + s) * rows * tile, groups * strips * rows * tile, shares, tile,
            k0, k1, min(wide * width, outputs - o), flat_grad, (g * outputs + o) * channels * taps,
            (channels, taps), epilogue, width,
        )  # fmt: skip


def weight_grad_pixels(dy, x, weight_shape, stride, padding, dilation, groups):
    """The gradient by the weight, of `weight_shape`."""
    channels, *kernel_size = weight_shape[1:]
    x, dy = grouped(x, groups), grouped(dy, groups)
    outputs, width = dy.shape[2], lanes(x.dtype)
    plan = _plan(x.shape, dy.shape, tuple(kernel_size), stride, padding, dilation, x.dtype)
    most, tile = plan.panel
    shape = plan.cut.shares, groups, tile_count(outputs, width), len(plan.rows) // 2, tile
    # With what a square of elements reaches beyond the last rows, and beyond a panel.
    sums = workspace("shares", (math.prod(shape) + width * ROWS * tile,), x.dtype)
    sums = sums[: math.prod(shape)].reshape(shape)
    size = (most + width) * tile + (channels * plan.block.plane if plan.block.planes else 0)
    scratch = workspace("conv", (num_threads(), size), x.dtype)
    weight_grad = empty((groups, outputs, channels, math.prod(kernel_size)), x.dtype)
    epilogue = plain(tile, x.dtype)
    _weight_grad(
        dy, x, sums, weight_grad, scratch, *plan[3:], plan.block, most,
        (padding[0], padding[2]), stride, plan.cut, dy.nbytes > _FETCHED_BYTES, epilogue, width,
    )  # fmt: skip
    if plan.cut.shares > 1:
        _collect(sums, weight_grad, epilogue, width)
    return weight_grad.reshape(weight_shape)
