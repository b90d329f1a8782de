"""Convolution whose vectors run over the channels of the result.

Where the rows of an image are short, or padding leaves gaps between them, tiles of pixels (kernels.
cpu.conv_tiles) compute much that is dropped. Here a tile is some pixels of a row of results, times
one or two vectors of channels; a step of its sums multiplies the weights of a tap, which are packed
with the channels side by side, by each of the pixels that the tap reads (kernels.cpu.small_tiles).
Nothing is surplus but what the row lacks to whole tiles and the channels to whole vectors.

A task pads the planes of some images into scratch memory. It takes two vectors of channels at a
time through all of its images, for which their weights stay in a second cache. The results, pixel
after pixel with all its channels, are turned over when the last of them is there.

The **gradient by the input** is such a convolution of dy for each phase of the pixels, see
kernels.cpu.conv_tiles: a **pass** that fills its share of them.

How the work is cut depends on the shapes alone, never on the number of threads, and so do the
results, to the last bit.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import CACHE_LINE, lanes
from kernels.cpu.epilogue import in_vectors, plain
from kernels.cpu.pixels import turn, turn_back
from kernels.cpu.planes import grouped, place_plane, reaching_taps
from kernels.cpu.small_tiles import OUTPUT_VECTORS, PIXELS, pixel_shape, pixel_tile
from kernels.cpu.tasks import MIN_TASKS, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

# Planes and results of the images of a task: as many as fill half of a second cache, or one.
_BLOCK_BYTES, _LARGEST_BYTES = 512 << 10, 8 << 20
_TASKS = 2 * MIN_TASKS
# Of what is computed so much must be wanted to beat other ways, as measured.
_FILLED = 0.85


class _Plan(NamedTuple):
    """How planes are laid out and cut: the same for every call with these shapes."""

    padded: tuple[int, int]  # rows and columns of a plane
    before: tuple[int, int]  # padding at the top and on the left
    plane: int  # elements from one plane to the next
    size: tuple[int, int]  # of the result
    steps: tuple[int, int, int, int]  # from one result of a pass to the next: in x, in y
    # (passes, 8): the first term and their number, rows and columns of results, the first row and
    # column in y, the shape of the tiles and their pixels.
    passes: np.ndarray
    offsets: np.ndarray  # of each term in the planes
    places: np.ndarray  # of its weight behind the first one of an output
    filled: float  # the share of the computed pixels that are wanted


def _plan(channels, size, before, steps, passes, channel_stride):
    """The plan of `passes`: [((rows, columns), (row, column), taps, numbers)].

    `taps` (T, 2): row and column in a padded plane of each tap of the first result, `numbers` where
    its weight lies behind that of the channel; channels lie `channel_stride` apart.
    """
    padded = tuple(
        max((extent[axis] - 1) * steps[axis] + int(taps[:, axis].max()) + 1
            for extent, _, taps, _ in passes)
        for axis in (0, 1)
    )  # fmt: skip
    # An odd number of cache lines: powers of two would displace each other from the cache.
    line = CACHE_LINE // 4
    plane = (-(-padded[0] * padded[1] // line) | 1) * line
    channel = np.arange(channels)
    table, offsets, places, first, computed = [], [], [], 0, 0
    for extent, start, taps, numbers in passes:
        shape, pixels = pixel_shape(extent[1], steps[1])
        terms = channels * len(taps)
        table.append((first, terms, *extent, *start, shape, pixels))
        # A tile of one pixel takes as long as one of the next size: it waits for its own sums.
        computed += extent[0] * -(-extent[1] // pixels) * max(pixels, PIXELS[1])
        offsets.append(np.add.outer(channel * plane, taps @ (padded[1], 1)).reshape(-1))
        places.append(np.add.outer(channel * channel_stride, numbers).reshape(-1))
        first += terms
    arrays = np.array(table, np.int64), np.concatenate(offsets), np.concatenate(places)
    for array in arrays:
        array.flags.writeable = False
    return _Plan(padded, before, plane, size, steps, *arrays, size[0] * size[1] / computed)


def _grid(rows, columns):
    """(T, 2): all pairs."""
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


@lru_cache(maxsize=256)
def _forward_plan(channels, size, kernel_size, stride, padding, dilation):
    taps = _grid(*(np.arange(k) * d for k, d in zip(kernel_size, dilation, strict=True)))
    passes = [(size, (0, 0), taps, np.arange(len(taps)))]
    return _plan(
        channels, size, (padding[0], padding[2]), (*stride, 1, 1), passes, len(taps)
    )


@lru_cache(maxsize=256)
def _input_grad_plan(channels, size, weight_channels, kernel_size, stride, padding, dilation):
    """The plan, or None where no tap reaches a pixel."""
    axes = zip((padding[0], padding[2]), kernel_size, stride, dilation, size, strict=True)
    reaching = [
        [reaching_taps(phase, *axis) for phase in range(min(axis[2], extent))]
        for *axis, extent in axes
    ]
    before = tuple(
        -min((int(moves.min()) for _, moves in axis if len(moves)), default=0) for axis in reaching
    )
    passes = []
    for a, (rows, row_moves) in enumerate(reaching[0]):
        for b, (columns, column_moves) in enumerate(reaching[1]):
            if len(rows) and len(columns):
                extent = tuple(
                    (e - start + s - 1) // s
                    for e, start, s in zip(size, (a, b), stride, strict=True)
                )
                taps = _grid(row_moves + before[0], column_moves + before[1])
                numbers = np.add.outer(rows * kernel_size[1], columns).reshape(-1)
                passes.append((extent, (a, b), taps, numbers))
    if not passes:
        return None
    taps = kernel_size[0] * kernel_size[1]
    return _plan(channels, size, before, (1, 1, *stride), passes, weight_channels * taps)


def _plan_for(result, x_shape, y_shape, weight_shape, stride, padding, dilation, groups):
    """(plan, channels, outputs) of the convolution that makes "y", or "dx"."""
    outputs, channels, kernel_size = weight_shape[0] // groups, weight_shape[1], weight_shape[2:]
    settings = kernel_size, stride, padding, dilation
    if result == "dx":
        return _input_grad_plan(outputs, x_shape[2:], channels, *settings), outputs, channels
    return _forward_plan(channels, y_shape[2:], *settings), channels, outputs


def is_channels(
    result, x_shape, y_shape, weight_shape, stride, padding, dilation, groups, dtype
) -> bool:
    """True where these kernels are the faster ones for "y" or "dx", as measured.

    That is where little of what they compute is surplus and an image is not too large.
    """
    plan, channels, outputs = _plan_for(
        result, x_shape, y_shape, weight_shape, stride, padding, dilation, groups
    )
    vectors = -(-outputs // lanes(dtype))
    filled = plan is not None and plan.filled * outputs >= _FILLED * vectors * lanes(dtype)
    return filled and _image_bytes(plan, channels, outputs, dtype) <= _LARGEST_BYTES


@njit(parallel=True, cache=True)
def _pack(weight, packed, outputs, strides, places, width):
    """packed (G, pairs of vectors, terms, outputs of a pair), pass by pass, from flat weights."""
    groups, vectors = packed.shape[0], -(-outputs // width)
    total = places.size
    for task in prange(groups * vectors):
        g, v = split(task, vectors)
        pair = v - v % OUTPUT_VECTORS
        wide = min(OUTPUT_VECTORS, vectors - pair) * width
        start = pair * width * total + (v - pair) * width
        first = g * strides[0] + v * width * strides[1]
        count = min(width, outputs - v * width)
        target = packed[g]
        in_rows = count == width and places[total - 1] - places[0] == total - 1
        whole = total - total % width if in_rows else 0
        turn(weight, first, strides[1], width, whole, target, start, wide, width)
        for k in range(whole, total):
            at, source = start + k * wide, first + places[k]
            for o in range(count):
                target[at + o] = weight[source + o * strides[1]]
            for o in range(count, width):
                target[at + o] = 0


@njit(parallel=True, cache=True)
def _correlate(x, filters, y, scratch, plan, cut, epilogue):
    """y (N, G, O, H W) from x (N, G, C, H, W). `cut`: see `_convolve`."""
    padded, before, plane, size, steps, passes, offsets = plan
    images, parts, most, width = cut
    n, groups, outputs, area = y.shape
    channels, h, w = x.shape[2:]
    vectors = -(-outputs // width)
    pairs = -(-vectors // OUTPUT_VECTORS)
    flat_x, flat_y = x.reshape(x.size), y.reshape(y.size)
    for task in prange(-(-n // images) * groups * parts):
        rest, part = split(task, parts)
        chunk, g = split(rest, groups)
        first_image = chunk * images
        count = min(images, n - first_image)
        v0 = part * pairs // parts * OUTPUT_VECTORS
        v1 = min((part + 1) * pairs // parts * OUTPUT_VECTORS, vectors)
        place = (v1 - v0) * width
        out = scratch[get_thread_id(), :most]
        planes = scratch[get_thread_id(), most:]
        planes[: count * channels * plane] = 0
        for image in range(count):
            for c in range(channels):
                at = ((first_image + image) * groups + g) * channels + c
                begin = (image * channels + c) * plane
                place_plane(flat_x, at * h * w, (h, w), planes, begin, padded, before)
        if passes.shape[0] < steps[2] * steps[3]:
            out[:] = 0
        for v in range(v0, v1, OUTPUT_VECTORS):
            wide = min(OUTPUT_VECTORS, v1 - v)
            for p in range(passes.shape[0]):
                first, terms, rows, columns, row0, column0, shape, pixels = passes[p]
                weights = (v * offsets.size + first * wide) * width
                for image in range(count):
                    for row in range(rows):
                        source = image * channels * plane + row * steps[0] * padded[1]
                        target = (image * size[0] + row * steps[2] + row0) * size[1] + column0
                        for start in range(0, columns, pixels):
                            column = min(start, columns - pixels)
                            pixel_tile(
                                shape + wide - 1, filters[g], weights,
                                planes, source + column * steps[1], offsets, first, terms, out,
                                (target + column * steps[3]) * place + (v - v0) * width,
                                steps[3] * place,
                            )  # fmt: skip
        o0 = v0 * width
        for image in range(count):
            turn_back(
                out, image * area * place, place, area, min(place, outputs - o0), flat_y,
                (((first_image + image) * groups + g) * outputs + o0) * area, area, epilogue,
                g * vectors * width + o0, width,
            )  # fmt: skip


def _image_bytes(plan, channels, outputs, dtype):
    """What an image takes of a task's scratch memory."""
    return (channels * plan.plane + math.prod(plan.size) * outputs) * dtype.itemsize


def _convolve(x, weight, strides, y, plan, epilogue):
    """Run `_correlate` by a plan; x and y by groups.

    `strides`: elements of the weights from one group and from one output to the next.
    """
    n, groups, channels = x.shape[:3]
    outputs, width = y.shape[2], lanes(x.dtype)
    vectors = -(-outputs // width)
    pairs = -(-vectors // OUTPUT_VECTORS)
    packed = workspace("filters", (groups, plan.places.size * vectors * width), x.dtype)
    _pack(
        np.ascontiguousarray(weight).reshape(-1), packed, outputs, strides, plan.places,
        width,
    )  # fmt: skip
    images = _BLOCK_BYTES // _image_bytes(plan, channels, vectors * width, x.dtype)
    images = max(1, min(images, n * groups // _TASKS))
    parts = min(pairs, -(-MIN_TASKS // (-(-n // images) * groups)))
    place = -(-pairs // parts) * OUTPUT_VECTORS * width
    # Turning over reads up to a square of elements beyond the results.
    most = (images * math.prod(plan.size) + width) * place
    scratch = workspace("conv", (num_threads(), most + images * channels * plan.plane), x.dtype)
    _correlate(
        x, packed, y, scratch, plan[:-2], (images, parts, most, width),
        in_vectors(epilogue, groups, vectors * width),
    )  # fmt: skip


def conv2d_channels(x, weight, y, stride, padding, dilation, groups, epilogue):
    """Write the convolution into y, C-contiguous."""
    plan, _, outputs = _plan_for(
        "y", x.shape, y.shape, weight.shape, stride, padding, dilation, groups
    )
    terms = len(plan.places)
    _convolve(
        grouped(x, groups), weight, (outputs * terms, terms),
        y.reshape(len(y), groups, outputs, -1), plan, epilogue,
    )  # fmt: skip


def input_grad_channels(dy, weight, dx, stride, padding, dilation, groups):
    """Write the gradient by the input into dx, C-contiguous."""
    plan, outputs, channels = _plan_for(
        "dx", dx.shape, dy.shape, weight.shape, stride, padding, dilation, groups
    )
    if plan is None:
        dx[...] = 0
        return
    taps = weight.shape[2] * weight.shape[3]
    _convolve(
        grouped(dy, groups), weight, (outputs * channels * taps, taps),
        dx.reshape(len(dx), groups, channels, -1), plan, plain(groups * channels, dy.dtype),
    )  # fmt: skip
