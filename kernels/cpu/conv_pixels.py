"""The gradient by the weight, from padded images whose pixels hold all their channels.

The gradient is a matrix product that runs over the outputs f = (image, v, u),

    dw[o, (i, j, c)] = sum_f dy[f, o] x[f s + (i, j), c],

whose vectors go along (j, c): with the channels of a pixel side by side, and the pixels of a row
one after the other, a row i of the kernel is one stretch of kw C elements. So the images of a
**block**, a few of them or a band of output rows of one, are padded and turned over in scratch
memory, dy likewise; the columns exist only as a list of offsets, one for each output, whatever the
stride; and the product is computed in tiles (kernels.cpu.simd). Each task adds up a share of the
blocks for some of the outputs; the shares are added in order, so that the result does not depend on
the number of threads.

The algebra is that of kernels.reference.conv.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.pixels import turn, turn_image
from kernels.cpu.simd import product_tiles
from kernels.cpu.tasks import split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace

_BLOCK_BYTES, _MIN_TASKS = 1 << 20, 8
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
    channels: int  # elements of a pixel, and
    outputs: int  # of an output: whole vectors, if the channels fill one
    segments: np.ndarray  # where the stretches of the kernel begin
    rounded: int  # elements of a stretch, in whole vectors
    offsets: np.ndarray  # of each output


@lru_cache(maxsize=256)
def _plan(x_shape, y_shape, kernel_size, stride, dilation, dtype):
    n, channels = x_shape[:2]
    outputs, oh, ow = y_shape[1:]
    itemsize, width = dtype.itemsize, lanes(dtype)
    if channels >= width:
        channels = -(-channels // width) * width
    outputs = -(-outputs // ROWS) * ROWS
    outputs = -(-outputs // width) * width if y_shape[1] >= width else outputs
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    pitch = (ow - 1) * stride[1] + reach[1]
    row_bytes = (pitch * channels * stride[0] + ow * outputs) * itemsize
    images, height = 1, max(1, _BLOCK_BYTES // row_bytes - reach[0] // stride[0])
    if height >= oh:
        enough = max(-(-n // _MIN_TASKS), 2 * _DEPTH // (oh * ow))
        images, height = max(1, min(n, _BLOCK_BYTES // (oh * row_bytes), enough)), oh
    else:
        height = -(-oh // -(-oh // height))
    rows = (height - 1) * stride[0] + reach[0]
    i, j = (np.arange(k) * d for k, d in zip(kernel_size, dilation, strict=True))
    if dilation[1] == 1:
        j = j[:1]
    segments = np.add.outer(i * pitch, j).reshape(-1) * channels
    length = channels * (kernel_size[1] if dilation[1] == 1 else 1)
    image, v, u = np.indices((images, height, ow)).reshape(3, -1)
    offsets = ((image * rows + v * stride[0]) * pitch + u * stride[1]) * channels
    for array in (segments, offsets):
        array.flags.writeable = False
    rounded = -(-length // width) * width
    return _Plan(images, height, rows, pitch, channels, outputs, segments, rounded, offsets)


@njit(parallel=True, cache=True)
def _weight_grad(dy, x, sums, scratch, segments, offsets, block, stride, before, counts, parts):
    """sums (S, G, O, segments, rounded): each summed over its share of the blocks."""
    n, groups, outputs, oh, ow = dy.shape
    channels, h, w = x.shape[2:]
    images, height, rows, pitch, x_step, y_step, width = block
    pieces, rounded = sums.shape[0], sums.shape[4]
    row_length = segments.size * rounded
    bands = -(-oh // height)
    blocks = -(-n // images) * bands
    strips = y_step // ROWS
    flat_x, flat_dy, flat_sums = x.reshape(x.size), dy.reshape(dy.size), sums.reshape(sums.size)
    for task in prange(pieces * groups * parts):
        rest, part = split(task, parts)
        piece, g = split(rest, groups)
        first, last = part * strips // parts, (part + 1) * strips // parts
        base = (piece * groups + g) * y_step * row_length
        flat_sums[base + first * ROWS * row_length : base + last * ROWS * row_length] = 0
        grads, pixels = scratch[get_thread_id(), : counts[0]], scratch[get_thread_id(), counts[0] :]
        pixels[:] = 0
        grads[:] = 0
        for index in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            image_group, band = split(index, bands)
            image0, v0 = image_group * images, band * height
            count, lines = min(images, n - image0), min(height, oh - v0)
            for image in range(count):
                at = (image0 + image) * groups + g
                turn_image(
                    flat_x, at * channels * h * w, h * w, (h, w), channels,
                    before[0] - v0 * stride[0], before[1], pixels, image * rows * pitch * x_step,
                    (rows, pitch, x_step), width,
                )  # fmt: skip
                turn(
                    flat_dy, (at * outputs * oh + v0) * ow, oh * ow, outputs, lines * ow, grads,
                    image * height * ow * y_step, y_step, width,
                )  # fmt: skip
            total = ((count - 1) * height + lines) * ow
            for f in range(0, total, _DEPTH):
                depth = min(_DEPTH, total - f)
                for s in range(segments.size):
                    for k in range(0, rounded, VECTORS * width):
                        vectors = min(VECTORS, (rounded - k) // width)
                        for strip in range(first, last):
                            product_tiles(
                                grads, f * y_step + strip * ROWS, y_step,
                                pixels, segments[s] + k, offsets, f, depth, flat_sums,
                                base + strip * ROWS * row_length + s * rounded + k, row_length,
                                vectors, False,
                            )  # fmt: skip


@njit(parallel=True, cache=True)
def _collect(sums, weight_grad, channels):
    """weight_grad (G, O, C, kh, kw) = the sums over S of (S, G, O, segments, rounded)."""
    groups, outputs, group_channels, kh, kw = weight_grad.shape
    per_row = sums.shape[3] // kh
    for task in prange(groups * outputs):
        g, o = split(task, outputs)
        for i in range(kh):
            for j in range(kw):
                s, k = (i * kw + j, 0) if per_row == kw else (i, j * channels)
                for c in range(group_channels):
                    total = sums[0, g, o, s, k + c]
                    for piece in range(1, sums.shape[0]):
                        total += sums[piece, g, o, s, k + c]
                    weight_grad[g, o, c, i, j] = total


def weight_grad_pixels(dy, x, weight_shape, stride, padding, dilation, groups):
    """The gradient by the weight, of `weight_shape`."""
    n, outputs, oh, ow = dy.shape
    channels, *kernel_size = weight_shape[1:]
    outputs //= groups
    x = np.ascontiguousarray(x).reshape(n, groups, channels, *x.shape[2:])
    dy = np.ascontiguousarray(dy).reshape(n, groups, outputs, oh, ow)
    plan = _plan(
        (n, channels), (n, outputs, oh, ow), tuple(kernel_size), stride, dilation, x.dtype
    )
    width = lanes(x.dtype)
    row_length = plan.segments.size * plan.rounded
    blocks = -(-n // plan.images) * -(-oh // plan.height)
    share_bytes = groups * plan.outputs * row_length * x.itemsize
    pieces = max(1, min(blocks, _MIN_TASKS, _SHARE_BYTES // share_bytes))
    parts = min(plan.outputs // ROWS, -(-_MIN_TASKS // (pieces * groups)))
    sums = workspace(
        "shares", (pieces, groups, plan.outputs, plan.segments.size, plan.rounded), x.dtype
    )
    # With what a square of elements reaches beyond them.
    grads = (plan.images * plan.height * ow + width) * plan.outputs
    pixels = (plan.images * plan.rows * plan.pitch + width) * plan.channels + plan.rounded
    scratch = workspace("conv", (num_threads(), grads + pixels), x.dtype)
    block = (
        plan.images, plan.height, plan.rows, plan.pitch, plan.channels, plan.outputs, width
    )  # fmt: skip
    _weight_grad(
        dy, x, sums, scratch, plan.segments, plan.offsets, block, stride,
        (padding[0], padding[2]), (grads, pixels), parts,
    )  # fmt: skip
    weight_grad = empty((groups, outputs, channels, *kernel_size), x.dtype)
    _collect(sums, weight_grad, plan.channels)
    return weight_grad.reshape(weight_shape)
