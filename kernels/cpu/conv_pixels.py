"""The gradient by the weight, a product that runs over the pixels of the gradient dy.

With one row for each weight of a filter, k = (c, i, j), and a column for each output, it is

    dw[k, o] = sum_f x[row[k] + term[f]] dy[f, o],            f = (image, v, u),

since what a weight meets at an output lies in the image at a place of its own plus one of the
output's, whatever kernel, stride and dilation are. So x is read from where it lies, or, if it has
to be padded, from planes in scratch memory. Only dy is turned over, so that the outputs of a pixel
lie side by side: some pixels at a time, for a **strip** of outputs as wide as a tile of registers
(kernels.cpu.simd), which stay in a first cache while all rows pass by. Vectors run along the
outputs, of which there are many even where the image has but three channels.

A task sums up some of the pixels for some rows and some strips: which, is chosen by what it costs
(`_cut`). Sums over several shares of the pixels are added in order. How the work is cut depends on
the shapes alone, never on the number of threads, and so do the results, to the last bit.

The algebra is that of kernels.reference.conv.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.epilogue import plain
from kernels.cpu.pixels import turn, turn_back
from kernels.cpu.planes import grouped, split_phases
from kernels.cpu.simd import gather_tiles
from kernels.cpu.tasks import MIN_TASKS, chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.tiles import tile_count, tile_vectors
from kernels.cpu.workspace import empty, workspace

# Pixels of a tile's sum, so many that a strip of their outputs stays in a first cache.
_DEPTH = 128
# Padded planes of a block should stay in a second cache; the places of its pixels are a list.
_BLOCK_BYTES, _BLOCK_PIXELS = 512 << 10, 4096
# Rows of the gradient that one task gathers from several shares.
_COLLECTED = 64
# What an element costs that is turned over, padded, or collected from a share, and what a row of
# pixels does that is copied: in products of a vector, as measured.
_TURN, _PAD, _COLLECT, _LINE = 0.35, 0.15, 0.5, 25


class _Plan(NamedTuple):
    """How the work is cut: the same for every call with these shapes."""

    images: int  # of a block
    height: int  # output rows of a block
    lines: int  # rows of a plane of a block
    pitch: int  # elements of a row of a plane
    plane: int  # elements of a channel of a block
    blocks: int
    shares: int  # of the blocks,
    parts: int  # of the rows,
    slices: int  # and of the strips; each of them is a task's
    rows: np.ndarray  # where the pixel of each weight lies in a block, for its first output,
    terms: np.ndarray  # and how much farther for each output


@lru_cache(maxsize=256)
def _plan(n, groups, channels, extent, outputs, size, kernel_size, stride, padded, dilation, dtype):
    oh, ow = size
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    pitch = (ow - 1) * stride[1] + reach[1] if padded else extent[1]

    def block(shares):
        """(images, output rows, rows of a plane) of a block, so that there are enough of them."""
        images = max(1, min(n // shares, _BLOCK_PIXELS // (oh * ow)))
        height = min(oh, max(1, _BLOCK_PIXELS // ow), -(-oh * n // shares))
        if padded:
            row_bytes = channels * pitch * dtype.itemsize
            fits = max(1, (_BLOCK_BYTES // row_bytes - reach[0]) // stride[0] + 1)
            lines = (oh - 1) * stride[0] + reach[0]
            images = max(1, min(images, _BLOCK_BYTES // (lines * row_bytes)))
            height = min(height, fits)
        if height < oh:
            images = 1
        height = -(-oh // -(-oh // height))
        images = -(-n // -(-n // images))
        return images, height, (height - 1) * stride[0] + reach[0] if padded else extent[0]

    cuts = (2**i for i in range(MIN_TASKS.bit_length()))
    images, height, lines, blocks, cut = 0, 0, 0, 0, None
    least = np.inf
    weights = channels * kernel_size[0] * kernel_size[1]
    width = lanes(dtype)
    for shares, parts, slices in product(list(cuts), repeat=3):
        if shares * parts * slices > MIN_TASKS:
            continue
        some = block(shares)
        number = -(-n // some[0]) * -(-oh // some[1])
        strips = tile_count.py_func(outputs, width)
        row_blocks = -(-weights // ROWS)
        if shares > number or parts > row_blocks or slices > strips:
            continue
        pixels = -(-number // shares) * some[0] * some[1] * ow
        own_rows = -(-row_blocks // parts) * ROWS
        vectors = min(-(-strips // slices) * VECTORS, -(-outputs // width))
        cost = pixels * vectors * (own_rows + _TURN * width)
        if padded:
            own = min(channels, own_rows // (kernel_size[0] * kernel_size[1]) + 1)
            cost += -(-number // shares) * own * some[0] * some[2] * (_LINE + _PAD * pitch)
        if shares > 1:
            cost += _COLLECT * shares * weights * outputs / MIN_TASKS
        cost *= -(-groups * shares * parts * slices // MIN_TASKS)
        if cost < least:
            least, cut, (images, height, lines), blocks = cost, (shares, parts, slices), some, number
    plane = images * lines * pitch if padded else extent[0] * extent[1]
    c, i, j = np.indices((channels, *kernel_size)).reshape(3, -1)
    rows = c * plane + i * dilation[0] * pitch + j * dilation[1]
    rows = np.pad(rows, (0, -weights % ROWS), "edge")
    image, v, u = np.indices((images, height, ow)).reshape(3, -1)
    step = lines * pitch if padded else groups * channels * plane
    terms = image * step + v * stride[0] * pitch + u * stride[1]
    for array in (rows, terms):
        array.flags.writeable = False
    return _Plan(images, height, lines, pitch, plane, blocks, *cut, rows, terms)


@njit(cache=True)
def _load_planes(x, image0, count, g, channels, planes, layout, plane, top, left):
    """The padded planes of some channels, (first, last), of a group of `count` images."""
    size = layout[2] * layout[3]
    for c in range(channels[0], channels[1]):
        for image in range(count):
            at = c * plane + image * size
            split_phases(x[image0 + image, g, c], planes, at, 0, layout, top, left, 0)


@njit(cache=True)
def _turn_pixels(dy, first, area, step, lines, outputs, panel, f, depth, width):
    """panel (depth, tile) = dy of the pixels f to f + depth of a block and some outputs.

    Its images have `lines` pixels each and are `step` apart, the planes of an image `area`.
    """
    done = 0
    while done < depth:
        image, p = (f + done) // lines, (f + done) % lines
        run = min(lines - p, depth - done)
        turn(
            dy, first + image * step + p, area, outputs, run, panel, done * VECTORS * width,
            VECTORS * width, width,
        )  # fmt: skip
        done += run


@njit(cache=True)
def _store(sums, first, step, shares, rows, outputs, weight_grad, target, pitch, epilogue, width):
    """weight_grad[target + o pitch + k] = the sum over the shares of sums[first + (k, o)].

    The shares are `step` apart; it is gathered in the first.
    """
    tile = VECTORS * width
    for share in range(1, shares):
        for i in range(rows * tile):
            sums[first + i] += sums[first + share * step + i]
    turn_back(
        sums, first, tile, rows, outputs, weight_grad, target, pitch, epilogue, 0, width
    )


@njit(parallel=True, cache=True)
def _weight_grad(dy, x, sums, weight_grad, scratch, rows, terms, block, before, stride, cut,
                 epilogue, width):  # fmt: skip
    """sums (S, G, strips, rows, tile): each over its share of the pixels, for `weight_grad`.

    If there is one share only, they go there at once.
    """
    n, groups, outputs, oh, ow = dy.shape
    channels, h, w = x.shape[2:]
    images, height, lines, pitch, plane, blocks, padded = block
    shares, parts, slices = cut
    strips, taps, tile = sums.shape[2], weight_grad.shape[3], VECTORS * width
    bands, vectors = -(-oh // height), -(-outputs // width)
    weights, row_blocks = channels * taps, rows.size // ROWS
    flat_x, flat_dy, flat_sums = x.reshape(x.size), dy.reshape(dy.size), sums.reshape(sums.size)
    flat_grad = weight_grad.reshape(weight_grad.size)
    for task in prange(shares * groups * parts * slices):
        rest, part = split(task, parts)
        rest, piece = split(rest, slices)
        share, g = split(rest, groups)
        b0, b1 = part * row_blocks // parts, (part + 1) * row_blocks // parts
        s0, s1 = piece * strips // slices, (piece + 1) * strips // slices
        sums[share, g, s0:s1, b0 * ROWS : b1 * ROWS] = 0
        some = b0 * ROWS // taps, (min(b1 * ROWS, weights) - 1) // taps + 1
        panel = scratch[get_thread_id(), : (_DEPTH + width) * tile]
        planes = scratch[get_thread_id(), (_DEPTH + width) * tile :]
        source = planes if padded else flat_x
        for index in range(share * blocks // shares, (share + 1) * blocks // shares):
            image_group, band = split(index, bands)
            image0, v0 = image_group * images, band * height
            count, own = min(images, n - image0), min(height, oh - v0) * ow
            base = 0
            if padded:
                _load_planes(
                    x, image0, count, g, some, planes, (1, 1, lines, pitch, 1, 1), plane,
                    before[0] - v0 * stride[0], before[1],
                )  # fmt: skip
            else:
                base = (image0 * groups + g) * channels * plane + v0 * stride[0] * pitch
            chunks = -(-count * own // _DEPTH)
            for chunk in range(chunks):
                f = chunk * count * own // chunks
                depth = (chunk + 1) * count * own // chunks - f
                for s in range(s0, s1):
                    v, wide = tile_vectors(s, vectors)
                    o = v * width
                    _turn_pixels(
                        flat_dy, (((image0 * groups + g) * outputs + o) * oh + v0) * ow, oh * ow,
                        groups * outputs * oh * ow, own, min(wide * width, outputs - o), panel, f,
                        depth, width,
                    )  # fmt: skip
                    at = ((share * groups + g) * strips + s) * rows.size * tile
                    for b in range(b0, b1):
                        gather_tiles(
                            source, base, rows, b * ROWS, terms, f, depth, panel, 0, tile,
                            flat_sums, at + b * ROWS * tile, tile, wide,
                        )  # fmt: skip
        if shares == 1:
            for s in range(s0, s1):
                v, wide = tile_vectors(s, vectors)
                o, k = v * width, b0 * ROWS
                _store(
                    flat_sums, ((g * strips + s) * rows.size + k) * tile, 0, 1,
                    min(b1 * ROWS, weights) - k, min(wide * width, outputs - o), flat_grad,
                    (g * outputs + o) * weights + k, weights, epilogue, width,
                )  # fmt: skip


@njit(parallel=True, cache=True)
def _collect(sums, weight_grad, epilogue, width):
    """weight_grad (G, O, C, kh kw) = the sums over S."""
    groups, outputs, channels, taps = weight_grad.shape
    shares, _, strips, rows, tile = sums.shape
    weights, vectors = channels * taps, -(-outputs // width)
    pieces = -(-weights // _COLLECTED)
    flat_sums, flat_grad = sums.reshape(sums.size), weight_grad.reshape(weight_grad.size)
    for task in prange(groups * strips * pieces):
        rest, piece = split(task, pieces)
        g, s = split(rest, strips)
        v, wide = tile_vectors(s, vectors)
        k0, k1 = chunk_bounds(piece, _COLLECTED, weights)
        o = v * width
        _store(
            flat_sums, ((g * strips + s) * rows + k0) * tile, groups * strips * rows * tile, shares,
            k1 - k0, min(wide * width, outputs - o), flat_grad,
            (g * outputs + o) * weights + k0, weights, epilogue, width,
        )  # fmt: skip


def weight_grad_pixels(dy, x, weight_shape, stride, padding, dilation, groups):
    """The gradient by the weight, of `weight_shape`."""
    n, outputs, *size = dy.shape
    channels, *kernel_size = weight_shape[1:]
    outputs //= groups
    x, dy = grouped(x, groups), grouped(dy, groups)
    padded = padding != (0, 0, 0, 0)
    plan = _plan(
        n, groups, channels, x.shape[3:], outputs, tuple(size), tuple(kernel_size), stride, padded,
        dilation, x.dtype,
    )  # fmt: skip
    width = lanes(x.dtype)
    tile, strips = VECTORS * width, tile_count(outputs, width)
    shares = (plan.shares, groups, strips, len(plan.rows), tile)
    # With what a vector of them reaches beyond the last.
    sums = workspace("shares", (int(np.prod(shares)) + width * tile,), x.dtype)
    sums = sums[: int(np.prod(shares))].reshape(shares)
    planes = channels * plan.plane if padded else 0
    scratch = workspace("conv", (num_threads(), (_DEPTH + width) * tile + planes), x.dtype)
    weight_grad = empty((groups, outputs, channels, kernel_size[0] * kernel_size[1]), x.dtype)
    block = plan.images, plan.height, plan.lines, plan.pitch, plan.plane, plan.blocks, padded
    epilogue = plain(tile, x.dtype)
    _weight_grad(
        dy, x, sums, weight_grad, scratch, plan.rows, plan.terms, block, (padding[0], padding[2]),
        stride, (plan.shares, plan.parts, plan.slices), epilogue, width,
    )  # fmt: skip
    if plan.shares > 1:
        _collect(sums, weight_grad, epilogue, width)
    return weight_grad.reshape(weight_shape)
