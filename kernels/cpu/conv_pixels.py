"""The gradient by the weight, from padded images whose pixels hold all their channels.

The gradient is a matrix product that runs over the outputs f = (image, v, u),

    dw[o, (i, j, c)] = sum_f dy[f, o] x[f s + (i, j), c],

whose vectors go along c. The images of a **block**, a few of them or a band of output rows of one,
are padded and turned over in scratch memory, so that the channels of a pixel lie side by side; dy
is interleaved, as tiles want it. The columns exist only as a list of offsets, one for each output,
whatever the stride; and the product is computed in tiles (kernels.cpu.simd). Few channels would
leave vectors half empty: then they go along (j, c), for with the pixels of a row one after the
other, a row i of the kernel is one **segment** of kw C elements.

Each task adds up a share of the blocks for some of the outputs; the shares are added in order, so
that the result does not depend on the number of threads.

The algebra is that of kernels.reference.conv.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.pixels import interleave, turn_image
from kernels.cpu.planes import grouped
from kernels.cpu.simd import product_tiles
from kernels.cpu.tasks import MIN_TASKS, split
from kernels.cpu.threads import num_threads
from kernels.cpu.tiles import tile_count, tile_vectors
from kernels.cpu.workspace import empty, workspace

_BLOCK_BYTES = 1 << 20
# Outputs of a tile's sum, so many that its vectors of x stay in a first cache.
_DEPTH = 128
# Partial gradients may take this much memory in all.
_SHARE_BYTES = 8 << 20


class _Plan(NamedTuple):
    """How images are laid out and cut: the same for every call with these shapes."""

    images: int  # of a block
    height: int  # output rows of a block
    rows: int  # padded rows of an image of a block
    pitch: int  # pixels of a padded row
    place: int  # elements of a pixel
    segments: np.ndarray  # where the segments of the kernel begin
    vectors: int  # of a segment
    offsets: np.ndarray  # of each output


@lru_cache(maxsize=256)
def _plan(x_shape, y_shape, kernel_size, stride, dilation, dtype):
    n, channels = x_shape[:2]
    outputs, oh, ow = y_shape[1:]
    itemsize, width = dtype.itemsize, lanes(dtype)
    separate = channels >= VECTORS * width or dilation[1] > 1
    place = channels
    if channels >= width:
        place = -(-channels // width) * width
    if channels >= VECTORS * width:
        # An odd number of vectors: powers of two would displace each other from the cache.
        place = (place // width | 1) * width
    outputs = -(-outputs // ROWS) * ROWS
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    pitch = (ow - 1) * stride[1] + reach[1]
    row_bytes = (pitch * place * stride[0] + ow * outputs) * itemsize
    images, height = 1, max(1, _BLOCK_BYTES // row_bytes - reach[0] // stride[0])
    if height >= oh:
        enough = max(-(-n // MIN_TASKS), 2 * _DEPTH // (oh * ow))
        images, height = max(1, min(n, _BLOCK_BYTES // (oh * row_bytes), enough)), oh
    else:
        height = -(-oh // -(-oh // height))
    rows = (height - 1) * stride[0] + reach[0]
    i, j = (np.arange(k) * d for k, d in zip(kernel_size, dilation, strict=True))
    if not separate:
        j = j[:1]
    segments = np.add.outer(i * pitch, j).reshape(-1) * place
    length = channels if separate else place * kernel_size[1]
    image, v, u = np.indices((images, height, ow)).reshape(3, -1)
    offsets = ((image * rows + v * stride[0]) * pitch + u * stride[1]) * place
    for array in (segments, offsets):
        array.flags.writeable = False
    return _Plan(images, height, rows, pitch, place, segments, -(-length // width), offsets)


@njit(parallel=True, cache=True)
def _weight_grad(dy, x, sums, scratch, segments, offsets, block, stride, before, vectors, parts):
    """sums (S, G, segments, tiles, strips, ROWS, tile): each over its share of the blocks.

    A strip is ROWS outputs, a tile some of the `vectors` of a segment.
    """
    n, groups, outputs, oh, ow = dy.shape
    channels, h, w = x.shape[2:]
    images, height, rows, pitch, place, width = block
    pieces, tiles, strips = sums.shape[0], sums.shape[3], sums.shape[4]
    tile = VECTORS * width
    bands, area = -(-oh // height), images * height * ow
    blocks = -(-n // images) * bands
    most = area * strips * ROWS
    flat_x, flat_dy, flat_sums = x.reshape(x.size), dy.reshape(dy.size), sums.reshape(sums.size)
    for task in prange(pieces * groups * parts):
        rest, part = split(task, parts)
        piece, g = split(rest, groups)
        first, last = part * strips // parts, (part + 1) * strips // parts
        sums[piece, g, :, :, first:last] = 0
        base = (piece * groups + g) * segments.size * tiles * strips * ROWS * tile
        grads, pixels = scratch[get_thread_id(), :most], scratch[get_thread_id(), most:]
        pixels[:] = 0
        for index in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            image_group, band = split(index, bands)
            image0, v0 = image_group * images, band * height
            count, lines = min(images, n - image0), min(height, oh - v0)
            for image in range(count):
                at = (image0 + image) * groups + g
                turn_image(
                    flat_x, at * channels * h * w, h * w, (h, w), channels,
                    before[0] - v0 * stride[0], before[1], pixels, image * rows * pitch * place,
                    (rows, pitch, place), width,
                )  # fmt: skip
                for strip in range(first, last):
                    o = strip * ROWS
                    interleave(
                        flat_dy, ((at * outputs + o) * oh + v0) * ow, oh * ow,
                        min(ROWS, outputs - o), lines * ow, grads,
                        (strip * area + image * height * ow) * ROWS, width,
                    )  # fmt: skip
            total = ((count - 1) * height + lines) * ow
            for f in range(0, total, _DEPTH):
                depth = min(_DEPTH, total - f)
                for s in range(segments.size):
                    for t in range(tiles):
                        v, wide = tile_vectors(t, vectors)
                        for strip in range(first, last):
                            at = ((s * tiles + t) * strips + strip) * ROWS * tile
                            product_tiles(
                                grads, (strip * area + f) * ROWS, ROWS,
                                pixels, segments[s] + v * width, offsets, f, depth,
                                flat_sums, base + at, tile, wide, False,
                            )  # fmt: skip


@njit(parallel=True, cache=True)
def _collect(sums, weight_grad, place, vectors, width):
    """weight_grad (G, O, C, kh, kw) = the sums over S; `place`: elements of a pixel."""
    groups, outputs, channels, kh, kw = weight_grad.shape
    separate = sums.shape[2] == kh * kw
    tile = sums.shape[6]
    for task in prange(groups * outputs):
        g, o = split(task, outputs)
        line = np.empty(sums.shape[3] * tile, sums.dtype)
        for s in range(sums.shape[2]):
            for t in range(sums.shape[3]):
                v, wide = tile_vectors(t, vectors)
                total = line[v * width : (v + wide) * width]
                total[:] = 0
                for piece in range(sums.shape[0]):
                    share = sums[piece, g, s, t, o // ROWS, o % ROWS]
                    for k in range(wide * width):
                        total[k] += share[k]
            for j in range(1 if separate else kw):
                for c in range(channels):
                    i = s // kw if separate else s
                    weight_grad[g, o, c, i, s % kw if separate else j] = line[j * place + c]


def weight_grad_pixels(dy, x, weight_shape, stride, padding, dilation, groups):
    """The gradient by the weight, of `weight_shape`."""
    n, outputs, oh, ow = dy.shape
    channels, *kernel_size = weight_shape[1:]
    outputs //= groups
    x, dy = grouped(x, groups), grouped(dy, groups)
    plan = _plan(
        (n, channels), (n, outputs, oh, ow), tuple(kernel_size), stride, dilation, x.dtype
    )
    width = lanes(x.dtype)
    blocks = -(-n // plan.images) * -(-oh // plan.height)
    strips = -(-outputs // ROWS)
    share = (groups, len(plan.segments), tile_count(plan.vectors * width, width), strips, ROWS,
             VECTORS * width)  # fmt: skip
    pieces = max(1, min(blocks, MIN_TASKS, _SHARE_BYTES // (math.prod(share) * x.itemsize)))
    parts = min(strips, -(-MIN_TASKS // (pieces * groups)))
    sums = workspace("shares", (pieces, *share), x.dtype)
    grads = plan.images * plan.height * ow * strips * ROWS
    # With what a square of elements, and a tile, reach beyond them.
    pixels = (plan.images * plan.rows * plan.pitch + width) * plan.place + VECTORS * width
    scratch = workspace("conv", (num_threads(), grads + pixels), x.dtype)
    block = plan.images, plan.height, plan.rows, plan.pitch, plan.place, width
    _weight_grad(
        dy, x, sums, scratch, plan.segments, plan.offsets, block, stride,
        (padding[0], padding[2]), plan.vectors, parts,
    )  # fmt: skip
    weight_grad = empty((groups, outputs, channels, *kernel_size), x.dtype)
    _collect(sums, weight_grad, plan.place, plan.vectors, width)
    return weight_grad.reshape(weight_shape)
