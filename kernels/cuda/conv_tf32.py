"""Convolutions on tensor cores: the launchers of conv_tf32.cu.

Operands are rounded to TF32, 10 bits of mantissa; sums are kept in float32. Sums that are too long
for the blocks of a grid to be many are split, and the splits added up in a fixed order.
"""

import math

import numpy as np

from kernels.cuda import runtime

# As in tiles_tf32.cuh and conv_tf32.cuh.
SIDES = (128, 64)
DEPTH, STAGES, THREADS = 16, 3, 128
TAP_BYTES = 16
# Blocks that occupy a large GPU; a split sums at least so many tiles, and no more memory than this
# goes to the results of all splits.
ENOUGH_BLOCKS = 264
FEWEST_TILES = 8
PARTS_BYTES = 64 << 20
# Positions that a split of a weight gradient sums in float32, at most.
MOST_POSITIONS = 16384


def takes(dtype, sizes) -> bool:
    """Whether these kernels can make a convolution of `sizes` (kernels.cuda.conv), and pay.

    Groups of very few channels waste the tiles.
    """
    if dtype != np.float32 or not sizes.positions * sizes.outputs * sizes.taps:
        return False
    thick = max(sizes.group_outputs, sizes.group_channels) >= 4 or sizes.groups == 1
    source = sizes.channels * math.prod(sizes.plane), sizes.outputs * sizes.rows * sizes.columns
    return thick and max(*source, sizes.outputs * sizes.taps) < 2**31


def convolve(x, weight, y, sizes, scale=None, shift=None, others=None, rectify=False) -> None:
    """y = the convolution of x times scale plus shift (O,) plus others, rectified.

    All are C-contiguous.
    """
    forward = (sizes.images, sizes.channels, *sizes.plane, sizes.outputs, sizes.rows, sizes.columns)
    finish = scale, shift, others, bool(rectify)
    _launch_products(
        x, weight, y, finish, 0, forward, sizes, sizes.positions, sizes.group_outputs, sizes.taps, 1
    )


def input_grad(dy, weight, dx, sizes, shift=None) -> None:
    """dx = the gradient by the input, plus shift (C,); all C-contiguous."""
    capacity = sizes.group_outputs * math.prod(map(_most_taps, *_axes(sizes)))
    classes = math.prod(sizes.stride)
    turned = runtime.empty((classes, sizes.channels, capacity), dy.dtype)
    settings = *sizes.kernel_size, *sizes.stride, *sizes.dilation, sizes.groups, capacity
    args = weight, turned, *runtime.ints(sizes.channels, sizes.outputs, *settings)
    runtime.launch_elements("conv_tf32", "turn_filters", dy.dtype, weight.size, args)
    backward = sizes.images, sizes.outputs, sizes.rows, sizes.columns, sizes.channels, *sizes.plane
    largest = [-(-n // step) for n, step in zip(sizes.plane, sizes.stride, strict=True)]
    positions = sizes.images * math.prod(largest)
    finish = None, shift, None, False
    _launch_products(
        dy, turned, dx, finish, capacity, backward, sizes, positions, sizes.group_channels,
        capacity, classes,
    )  # fmt: skip


def weight_grad(dy, x, sizes):
    """(parts, O, C/groups kh kw), each the sum over some of the positions."""
    shape = sizes.outputs, sizes.taps
    side = _side(sizes.taps, sizes.group_outputs, sizes.groups)
    tiles = runtime.blocks(sizes.taps, side) * sizes.groups
    rows = runtime.blocks(sizes.group_outputs, side)
    splits = _splits(tiles * rows, runtime.blocks(sizes.positions, DEPTH), math.prod(shape))
    splits = max(splits, -(-sizes.positions // MOST_POSITIONS))
    length = DEPTH * runtime.blocks(runtime.blocks(sizes.positions, splits), DEPTH)
    splits = runtime.blocks(sizes.positions, length)
    parts = runtime.empty((splits, *shape), dy.dtype)
    args = dy, x, parts, length, *sizes.arguments
    grid = tiles, rows, splits
    _launch(f"conv2d_weight_grad_tf32_{side}", grid, args, side, side)
    return parts


def _launch_products(
    source, filters, target, finish, turned, shapes, sizes, positions, outputs, depth, classes
):
    side = _side(positions, outputs, sizes.groups * classes)
    tiles = runtime.blocks(positions, side) * sizes.groups * classes
    rows = runtime.blocks(outputs, side)
    splits = _splits(tiles * rows, runtime.blocks(depth, DEPTH), target.size)
    settings = runtime.ints(turned, *shapes, *sizes.settings, sizes.groups)
    grid = tiles, rows, splits
    kernel = f"conv2d_tf32_{side}"
    if splits == 1:
        args = source, filters, *finish[:3], target, finish[3], *settings
        _launch(kernel, grid, args, side, 2 * DEPTH)
        return
    parts = runtime.empty((splits, target.size), target.dtype)
    nothing = None, None, None, parts, False
    _launch(kernel, grid, (source, filters, *nothing, *settings), side, 2 * DEPTH)
    numbers = runtime.ints(splits, target.shape[1], math.prod(target.shape[2:]))
    args = parts, *finish[:3], target, finish[3], *numbers, target.size
    runtime.launch_elements("conv_tf32", "finish_splits", target.dtype, target.size, args)


def _side(columns, rows, slices):
    """The largest tile that leaves enough blocks, and is not mostly empty."""
    large = SIDES[0]
    blocks = runtime.blocks(columns, large) * runtime.blocks(rows, large) * slices
    return large if rows > SIDES[1] and blocks >= ENOUGH_BLOCKS // 2 else SIDES[1]


def _splits(blocks, steps, size):
    """How many parts to cut sums of `steps` tiles into, for `size` results."""
    if 2 * blocks > ENOUGH_BLOCKS:
        return 1
    wanted = min(runtime.blocks(ENOUGH_BLOCKS, blocks), steps // FEWEST_TILES)
    return max(1, min(wanted, PARTS_BYTES // (4 * size)))


def _axes(sizes):
    return sizes.kernel_size, sizes.stride, sizes.dilation


def _most_taps(kernel, stride, dilation):
    """Taps along an axis in the class of pixels with the most of them (Residue in windows.cuh)."""
    return -(-kernel // (stride // math.gcd(stride, dilation)))


def _launch(kernel, grid, args, side, table):
    """`table`: how many taps the kernel keeps in shared memory."""
    floats = STAGES * 2 * side * (DEPTH + 4)
    shared = 4 * floats + TAP_BYTES * table
    runtime.launch("conv_tf32", kernel, np.float32, grid, THREADS, args, shared)
