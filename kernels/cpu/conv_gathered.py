"""Convolution by tiles of pixels that meet the same taps, whatever images they are of.

Where images are small, much of what a kernel meets at their edges is padding: of the taps of a 5x5
kernel on 7x7 pixels a third. Here it is left out. The **kind** of a pixel of the result is the set
of the taps that meet a pixel of the image there; those of one kind, of some images, make the rows
of tiles (kernels.cpu.gather), and vectors run along the outputs:

    y[p, o] = sum over the kind's taps t and channels c of x[row[p] + place[c, t]] w[c, t, o].

So x is read from where it lies, whatever kernel, stride and dilation are. Few images do not fill
tiles of many kinds; if that costs more than padding, the images are padded first, and all taps meet
a pixel. The filters of a **strip** of outputs, as wide as a tile, are turned over, by whom alone
needs them or for all beforehand; those of some channels, a **panel**, stay in a first cache while
the tiles pass by. The sums are turned back when they are stored.

The **gradient by the input** is the same with the filters' channels exchanged: a pixel of dx meets
the taps that read it. A NaN or an infinity among the weights is lost on pixels where it meets only
padding.

A task takes some images, some of their pixels and some of the strips: which, is chosen by what it
costs (kernels.cpu.gathered_plan). How the work is cut depends on the shapes alone, never on the
number of threads, and so do the results, to the last bit.
"""

import math

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, lanes
from kernels.cpu.epilogue import in_vectors, plain
from kernels.cpu.gather import gather_tiles
from kernels.cpu.gathered_plan import plan_for
from kernels.cpu.moves import copy, prefetch
from kernels.cpu.pixels import turn, turn_back
from kernels.cpu.planes import grouped, split_phases
from kernels.cpu.tasks import split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

# Of what it costs so much must be products that are wanted to beat other ways, as measured; larger
# images fill the tiles of those.
_FILLED, _LARGEST_BYTES = 0.5, 8 << 20


def is_gathered(
    result, x_shape, y_shape, weight_shape, stride, padding, dilation, groups, dtype
) -> bool:
    """True where these kernels are the faster ones for "y" or "dx", as measured."""
    image_bytes = (math.prod(x_shape[1:]) + math.prod(y_shape[1:])) * dtype.itemsize
    if 0 in (*x_shape, *weight_shape) or image_bytes > _LARGEST_BYTES:
        return False
    outputs, channels, *taps = weight_shape
    outputs //= groups
    if result == "dx":
        x_shape, y_shape, channels, outputs = y_shape, x_shape, outputs, channels
    geometry = _geometry(y_shape[2:], x_shape[2:], taps, stride, padding, dilation)
    plan = plan_for(result, x_shape[0], groups, channels, outputs, geometry, dtype)
    return plan.filled >= _FILLED


def _geometry(size, extent, taps, stride, padding, dilation):
    """See kernels.cpu.gathered_plan.Geometry."""
    return tuple(size), tuple(extent), tuple(taps), stride, (padding[0], padding[2]), dilation


@njit(parallel=True, cache=True)
def _pad(x, padded, before):
    """padded (N, G, C, H', W') from x (N, G, C, H, W)."""
    groups, channels, rows, pitch = padded.shape[1:]
    layout, flat = (1, 1, rows, pitch, 1, 1), padded.reshape(padded.size)
    for task in prange(padded.shape[0] * groups * channels):
        rest, c = split(task, channels)
        image, g = split(rest, groups)
        first = ((image * groups + g) * channels + c) * rows * pitch
        split_phases(x[image, g, c], flat, first, 0, layout, before[0], before[1], 0)


@njit(cache=True)
def _turn(weight, first, strides, outputs, channels, turned, start, tile, width):
    """turned (channels, T, tile) from weight[first] on; `strides`: of outputs and channels, and T.

    What follows may be overwritten up to a square of elements.
    """
    output, channel, taps = strides
    if output == 1:
        for k in range(channels):
            copy(turned, start + k * tile, weight, first + k * channel, outputs)
    elif channel == taps:
        turn(weight, first, output, outputs, channels * taps, turned, start, tile, width)
    else:
        for c in range(channels):
            at = start + c * taps * tile
            turn(weight, first + c * channel, output, outputs, taps, turned, at, tile, width)


@njit(cache=True)
def _fetch(weight, first, strides, outputs, channels, lines, piece, pieces):
    """Bring a piece of what `_turn` will read into a second cache.

    `lines`: multiples of the longer of the strides.
    """
    output, channel, taps = strides
    rows, run = (outputs, channels * taps) if channel == taps else (channels, outputs * taps)
    prefetch(weight, first, lines, piece * rows // pieces, (piece + 1) * rows // pieces, run)


@njit(inline="always")
def _panel(step, panels, s0, s1, channels):
    """(panel, strip, first channel, how many) of a step; no channels behind the last one."""
    panel, s = step // (s1 - s0), s0 + step % (s1 - s0)
    c = panel * channels // panels
    return panel, s, c, min(channels, (panel + 1) * channels // panels) - c


@njit(inline="always")
def _place(g, s, c, strides, strips, outputs, width):
    """(where the weights of a strip begin, from a channel on; how many outputs it has)."""
    o = strips[s, 0] * width
    at = g * strides[0] + o * strides[1] + c * strides[2]
    return at, min(strips[s, 1] * width, outputs - o)


@njit(parallel=True, cache=True)
def _turn_filters(weight, strides, turned, strips, channels, outputs, width):
    """turned (G, strips, panels, terms, tile) from flat weights."""
    panels, room, tile = turned.shape[2:]
    flat = turned.reshape(turned.size)
    for task in prange(turned.shape[0] * strips.shape[0] * panels):
        rest, panel = split(task, panels)
        g, s = split(rest, strips.shape[0])
        _, _, c, count = _panel(panel, panels, 0, 1, channels)
        at, some = _place(g, s, c, strides, strips, outputs, width)
        _turn(weight, at, strides[1:], some, count, flat, task * room * tile, tile, width)


@njit(parallel=True, cache=True)
def _correlate(x, weight, strides, filters, y, scratch, most, plane, channels, cut, strips, bounds,
               pixels, tiles, terms, rows, places, epilogue, width):  # fmt: skip
    """y (N, G, O, H W) from flat x, whose planes have `plane` elements, and turned filters.

    Tasks that share no filters turn them over themselves, from flat weights. From `cut` on: see
    kernels.cpu.gathered_plan.Plan. Scale and shift fill vectors.
    """
    images, parts, slices = cut
    n, groups, outputs, area = y.shape
    panels, room, tile = filters.shape[2:]
    flat_y, turned = y.reshape(y.size), filters.reshape(filters.size)
    vectors = -(-outputs // width)
    lines = np.arange(max(tile, channels)) * max(strides[1], strides[2])
    shared = n // images * parts > 1
    for task in prange(n // images * groups * slices * parts):
        rest, part = split(task, parts)
        rest, piece = split(rest, slices)
        chunk, g = split(rest, groups)
        s0, s1, first_image = bounds[piece], bounds[piece + 1], chunk * images
        run = pixels[part + 1] - pixels[part]
        # With the row of what tiles have too many of.
        own = (images * run + 1) * tile
        sums, memory = scratch[get_thread_id(), :most], scratch[get_thread_id(), most:]
        sums[: (s1 - s0) * own] = 0
        for step in range(panels * (s1 - s0)):
            panel, s, c, count = _panel(step, panels, s0, s1, channels)
            at, some = _place(g, s, c, strides, strips, outputs, width)
            _, next_s, next_c, more = _panel(step + 1, panels, s0, s1, channels)
            coming, next_some = _place(g, next_s, next_c, strides, strips, outputs, width)
            source, start = turned, ((g * strips.shape[0] + s) * panels + panel) * room * tile
            if not shared:
                source, start = memory, 0
                _turn(weight, at, strides[1:], some, count, memory, 0, tile, width)
            first = ((first_image * groups + g) * channels + c) * plane
            b0, b1 = tiles[part], tiles[part + 1]
            for b in range(b0, b1):
                if not shared and more > 0:
                    # What is turned over next is on its way while this is computed.
                    _fetch(weight, coming, strides[1:], next_some, more, lines, b - b0, b1 - b0)
                gather_tiles(
                    x, first, rows, b * ROWS, places, terms[b, 0], terms[b, 1] * count,
                    source, start, sums, (s - s0) * own, strips[s, 1],
                )  # fmt: skip
        for s in range(s0, s1):
            o = strips[s, 0] * width
            for image in range(images):
                at = ((first_image + image) * groups + g) * outputs + o
                turn_back(
                    sums, (s - s0) * own + image * run * tile, tile, run,
                    min(strips[s, 1] * width, outputs - o), flat_y, at * area + pixels[part], area,
                    epilogue, g * vectors * width + o, width,
                )  # fmt: skip


def _convolve(result, x, weight, strides, y, geometry, epilogue):
    """The result "y" or "dx", y (N, G, O, H W), from x (N, G, C, H, W); `geometry`: the plan's.

    `strides`: elements of the weights from one group, output and channel to the next, and the taps.
    """
    n, groups, channels = x.shape[:3]
    outputs, width = y.shape[2], lanes(x.dtype)
    plan = plan_for(result, n, groups, channels, outputs, geometry, x.dtype)
    if plan.before:
        padded = workspace("planes", (n, groups, channels, *plan.extent), x.dtype)
        _pad(x, padded, plan.before)
        x = padded
    weight = np.ascontiguousarray(weight).reshape(-1)
    # With what a square of elements reaches beyond the last term.
    panels, room = -(-channels // plan.depth), plan.depth * strides[3] + width
    filters = workspace("filters", (groups, len(plan.strips), panels, room, plan.tile), x.dtype)
    if n // plan.cut[0] * plan.cut[1] > 1:
        _turn_filters(weight, strides, filters, plan.strips, channels, outputs, width)
    scratch = workspace("conv", (num_threads(), plan.most + room * plan.tile), x.dtype)
    _correlate(
        x.reshape(-1), weight, strides, filters, y, scratch, plan.most, math.prod(plan.extent),
        channels, *plan[6:], in_vectors(epilogue, groups, -(-outputs // width) * width), width,
    )  # fmt: skip


def conv2d_gathered(x, weight, y, stride, padding, dilation, groups, epilogue):
    """Write the convolution into y, C-contiguous."""
    outputs, (channels, *kernel_size) = y.shape[1] // groups, weight.shape[1:]
    geometry = _geometry(y.shape[2:], x.shape[2:], kernel_size, stride, padding, dilation)
    taps = math.prod(kernel_size)
    strides = outputs * channels * taps, channels * taps, taps, taps
    y = y.reshape(len(y), groups, outputs, -1)
    _convolve("y", grouped(x, groups), weight, strides, y, geometry, epilogue)


def input_grad_gathered(dy, weight, dx, stride, padding, dilation, groups):
    """Write the gradient by the input into dx, C-contiguous."""
    outputs, (channels, *kernel_size) = dy.shape[1] // groups, weight.shape[1:]
    geometry = _geometry(dx.shape[2:], dy.shape[2:], kernel_size, stride, padding, dilation)
    taps, epilogue = math.prod(kernel_size), plain(dx.shape[1], dx.dtype)
    strides = outputs * channels * taps, taps, channels * taps, taps
    dx = dx.reshape(len(dx), groups, channels, -1)
    _convolve("dx", grouped(dy, groups), weight, strides, dx, geometry, epilogue)
