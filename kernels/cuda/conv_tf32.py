"""Convolutions on tensor cores: the launchers of conv_tf32.cu.

Operands are rounded to TF32, 10 bits of mantissa; sums are kept in float32. How high the tiles of
blocks are, and into how many splits sums are cut that are then added up in a fixed order, a model
of the time decides (`tiles_tf32.choose_cut`). On Hopper convolutions and gradients by the input may
be products of groups of warps (groups_tf32.cuh).

A 1x1 convolution is a product of matrices that lie in the images as they are (matmul_tf32.cu). For
others, images are copied with the channels last, so that the four neighbours which a thread copies
at a time are channels of one pixel; filters likewise.
"""

import math
from functools import lru_cache

from kernels.cuda import runtime
from kernels.cuda.matmul_tf32 import Stack, multiply
from kernels.cuda.tiles_tf32 import (
    GROUP_SHAPES,
    SHAPES,
    WARP_SHAPES,
    WIDTH,
    choose_cut,
    launch,
    launch_products,
)

# Positions that a split of a weight gradient sums in float32, at most.
MOST_POSITIONS = 16384
# Of a kernel along an axis: as many as there are bits in a word (Axis in conv_tf32.cuh).
MOST_TAPS = 32
# Microseconds in which a block finds out what the windows of its positions read (choose_cut).
BEGIN = 4
# Of a filter's channel, that a thread lays (conv_tf32.cu).
LAID_TAPS = 9
# Up to so many channels a tile of 32 pixels x 32 channels would be mostly empty.
FEW_CHANNELS = 16


@lru_cache(maxsize=4096)
def takes(sizes) -> bool:
    """Whether these kernels can make a convolution of `sizes` (kernels.cuda.conv), and pay.

    Groups of very few channels waste the tiles.
    """
    if not sizes.positions * sizes.outputs * sizes.taps * math.prod(sizes.plane):
        return False
    thick = max(sizes.group_outputs, sizes.group_channels) >= 4 or sizes.groups == 1
    weights = 4 * sizes.outputs * (sizes.taps + 3 * sizes.area)
    plane, target = math.prod(sizes.plane), sizes.rows * sizes.columns
    pixels = sizes.images * max(plane, target)
    filled = _filled(sizes.group_channels), _filled(sizes.group_outputs)
    quads = sizes.images * sizes.groups * max(plane * filled[0], target * filled[1]) // 4
    # Of tiles that axes y and z of a grid number, those of 32 channels are the most: of groups that
    # have one, they are filled up to four.
    tiles = max(sizes.images, sizes.groups, sizes.channels // 8 + 1, sizes.outputs // 8 + 1)
    turned = math.prod(sizes.stride) * sizes.channels * _turned_length(sizes)
    padded = max(sizes.plane) + 2 * max(sizes.padding)  # is not FAR (conv_tf32.cuh)
    # A tile may end beyond the last pixel.
    fits = max(weights, pixels + 128, quads, 4 * turned, 4 * padded) < 2**31 and tiles < 2**16
    return thick and fits and max(sizes.kernel_size) <= MOST_TAPS


def _lies_right(sizes):
    """Whether its matrices are the images, and can be copied four values at a time."""
    return sizes.is_pointwise and sizes.rows * sizes.columns % 4 == 0


def convolve(x, weight, y, sizes, scale=None, shift=None, others=None, rectify=False) -> None:
    """y = the convolution of x times scale plus shift (O,) plus others, rectified.

    All are C-contiguous.
    """
    finish = scale, shift, others, bool(rectify)
    if _lies_right(sizes):
        _multiply_images(weight, x, y, sizes, finish, turned=False)
        return
    source = _channels_last(x, sizes.groups)
    filled = _filled(sizes.group_channels)
    laid = _lay_filters(weight, sizes, filled)
    shapes = sizes.images, sizes.groups * filled, *sizes.plane, *y.shape[1:]
    _convolve(source, laid, y, finish, 0, shapes, sizes, sizes.positions, 1)


def input_grad(dy, weight, dx, sizes, shift=None) -> None:
    """dx = the gradient by the input, plus shift (C,); all C-contiguous."""
    finish = None, shift, None, False
    if _lies_right(sizes):
        _multiply_images(weight, dy, dx, sizes, finish, turned=True)
        return
    source = _channels_last(dy, sizes.groups)
    filled = _filled(sizes.group_outputs)
    classes, length = math.prod(sizes.stride), _turned_length(sizes)
    turned = runtime.empty((classes, sizes.channels, length), dy.dtype)
    settings = (
        *sizes.kernel_size, *sizes.stride, *sizes.dilation, sizes.groups, filled, _chunk(filled),
        length,
    )  # fmt: skip
    args = weight, turned, *runtime.ints(sizes.channels, sizes.outputs, *settings)
    grid = runtime.blocks(sizes.taps, 32), runtime.blocks(filled, 32), sizes.groups
    runtime.launch("conv_tf32", "turn_filters", dy.dtype, grid, (32, 8), args)
    shapes = sizes.images, sizes.groups * filled, sizes.rows, sizes.columns, *dx.shape[1:]
    positions = sizes.class_pixels
    _convolve(source, turned, dx, finish, length, shapes, sizes, positions, classes)


def weight_grad(dy, x, sizes):
    """The gradient by the filters (O, C/groups, kh, kw)."""
    dw = runtime.empty((sizes.outputs, sizes.group_channels, *sizes.kernel_size), dy.dtype)
    if _lies_right(sizes):
        _correlate_images(dy, x, dw, sizes)
        return dw
    groups, channels, outputs = sizes.groups, _filled(sizes.group_channels), sizes.group_outputs
    planes = sizes.rows * sizes.columns % 4 == 0  # which can be copied four values at a time
    if not planes:
        dy, outputs = _channels_last(dy, groups), _filled(outputs)
    taps = sizes.area * channels
    name, splits = choose_cut(
        outputs, taps, sizes.positions, groups, groups * outputs * taps, longest=MOST_POSITIONS,
        parts=True,
    )  # fmt: skip
    shape = SHAPES[name]
    grid = runtime.blocks(taps, WIDTH) * groups, runtime.blocks(outputs, shape.height)
    length = shape.depth * runtime.blocks(runtime.blocks(sizes.positions, splits), shape.depth)
    splits = runtime.blocks(sizes.positions, length)
    parts = runtime.empty((splits, groups * outputs, taps), dw.dtype)
    shapes = (
        sizes.images, groups * channels, *sizes.plane, groups * outputs, sizes.rows, sizes.columns
    )  # fmt: skip
    args = (
        dy, _channels_last(x, groups), parts, planes, length,
        *runtime.ints(*shapes, *sizes.settings, groups),
    )  # fmt: skip
    launch("conv_tf32", "conv2d_weight_grad_tf32", name, (*grid, splits), args)
    numbers = runtime.ints(
        splits, sizes.group_channels, channels, _chunk(channels), sizes.group_outputs, outputs,
        sizes.area,
    )  # fmt: skip
    args = parts, dw, *numbers, parts[0].size
    runtime.launch_elements("conv_tf32", "sum_weight_parts", dw.dtype, parts[0].size, args)
    return dw


def _filled(channels):
    """So many channels fill copies of four."""
    return -(-channels // 4) * 4


def _chunk(filled):
    """Channels that pass all taps at a time (Channels in conv_tf32.cuh)."""
    return math.gcd(filled, 16)


def _channels_last(x, groups):
    """x (N, C, H, W) as (N, H, W, C), each group's channels filled up with zeros."""
    n, channels, h, w = x.shape
    filled = _filled(channels // groups)
    turned = runtime.empty((n, h, w, groups * filled), x.dtype)
    args = x, turned, *runtime.ints(channels // groups, filled, groups, h * w)
    if turned.shape[3] <= FEW_CHANNELS:
        grid = runtime.blocks(h * w), turned.shape[3] // 4, n
        runtime.launch("conv_tf32", "put_few_channels_last", x.dtype, grid, runtime.THREADS, args)
    elif h * w % 4:
        grid = runtime.blocks(h * w, 32), runtime.blocks(turned.shape[3], 32), n
        runtime.launch("conv_tf32", "put_channels_last", x.dtype, grid, (32, 8), args)
    else:
        grid = runtime.blocks(h * w, 128), runtime.blocks(turned.shape[3], 32), n
        runtime.launch("conv_tf32", "put_channels_last_by_four", x.dtype, grid, 256, args)
    return turned


def _lay_filters(weight, sizes, filled):
    laid = runtime.empty((sizes.outputs, sizes.area, filled), weight.dtype)
    numbers = runtime.ints(sizes.group_channels, sizes.area, filled, _chunk(filled))
    size = sizes.outputs * filled
    grid = runtime.blocks(size), runtime.blocks(sizes.area, LAID_TAPS)
    args = weight, laid, *numbers, size
    runtime.launch("conv_tf32", "lay_filters", weight.dtype, grid, runtime.THREADS, args)
    return laid


def _turned_length(sizes):
    """Of what the gradient by the input has in place of a filter, for one of its classes."""
    capacity = math.prod(map(_most_taps, sizes.kernel_size, sizes.stride, sizes.dilation))
    return capacity * _filled(sizes.group_outputs)


def _most_taps(kernel, stride, dilation):
    """Taps along an axis in the class of pixels with the most of them (Residue in windows.cuh)."""
    return -(-kernel // (stride // math.gcd(stride, dilation)))


def _convolve(source, filters, y, finish, turned, shapes, sizes, positions, classes):
    """`positions`: of a class, at most; `turned`: the length of a turned filter, 0 for others."""
    settings = runtime.ints(turned, *shapes, *sizes.settings, sizes.groups)
    depth = filters.size // (classes * y.shape[1])
    sides = y.shape[1] // sizes.groups, positions, depth
    blocks = WARP_SHAPES + (GROUP_SHAPES if runtime.multiplies_by_groups() else ())
    launch_products(
        "conv_tf32", "conv2d_tf32", (source, filters), y, finish, settings, sides,
        sizes.groups * classes, BEGIN, shapes=blocks,
    )  # fmt: skip


def _multiply_images(weight, source, target, sizes, finish, turned):
    """The weights (O, C/groups) of every group, or transposed (`turned`), times its images."""
    pixels, groups = sizes.rows * sizes.columns, sizes.groups
    sides = sizes.group_channels, sizes.group_outputs
    inner, outer = sides[::-1] if turned else sides
    step = sizes.group_channels
    filters = Stack(weight, not turned, step, step, 0, math.prod(sides))
    images = Stack(source, False, pixels, pixels, groups * inner * pixels, inner * pixels)
    results = Stack(target, False, pixels, pixels, groups * outer * pixels, outer * pixels)
    multiply(filters, images, results, (outer, sizes.positions, inner), groups, finish)


def _correlate_images(dy, x, dw, sizes):
    pixels, groups, (rows, columns) = (
        sizes.rows * sizes.columns, sizes.groups, (sizes.group_outputs, sizes.group_channels)
    )  # fmt: skip
    slopes = Stack(dy, True, pixels, pixels, groups * rows * pixels, rows * pixels)
    images = Stack(x, True, pixels, pixels, groups * columns * pixels, columns * pixels)
    results = Stack(dw, False, columns, columns, 0, rows * columns)
    sides = rows, columns, sizes.positions
    multiply(slopes, images, results, sides, groups, longest=MOST_POSITIONS)
