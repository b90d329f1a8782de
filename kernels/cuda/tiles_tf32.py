"""How products on tensor cores are cut into blocks (tiles_tf32.cuh), and launched."""

import math

import numpy as np

from kernels.cuda import runtime

# As in tiles_tf32.cuh. Of every kernel there are two, with tiles of so many rows.
HEIGHTS = {"high": 128, "low": 64}
WIDTH, DEPTH, STAGES, THREADS = 128, 16, 3, 128
# Blocks that occupy a large GPU; a split sums at least so many tiles, and no more memory than this
# goes to the results of all splits.
ENOUGH_BLOCKS = 264
FEWEST_TILES = 8
PARTS_BYTES = 64 << 20
# Of a grid, along z.
MOST_SPLITS = 65535
# What is done to results before they are stored: (scale, shift, others, rectify).
NO_FINISH = None, None, None, False


def choose_height(rows: int, columns: int, slices: int) -> str:
    """Of the tiles of `slices` products: high ones where they are filled, and enough."""
    high = HEIGHTS["high"]
    blocks = runtime.blocks(columns, WIDTH) * runtime.blocks(rows, high) * slices
    return "high" if rows > HEIGHTS["low"] and blocks >= ENOUGH_BLOCKS // 2 else "low"


def choose_splits(blocks: int, depth: int, size: int, longest: int | None = None) -> int:
    """How many parts to cut sums over `depth` into, for `size` results in so many blocks.

    `longest`: what a part may sum, at most, where that is limited.
    """
    fewest = min(runtime.blocks(depth, longest or depth), MOST_SPLITS)
    if 2 * blocks > ENOUGH_BLOCKS:
        return fewest
    wanted = min(runtime.blocks(ENOUGH_BLOCKS, blocks), depth // (DEPTH * FEWEST_TILES))
    return max(fewest, min(wanted, PARTS_BYTES // (4 * size)))


def launch(source: str, kernel: str, height: str, grid, args) -> None:
    """Run <kernel>_<height>."""
    shared = 4 * STAGES * DEPTH * (HEIGHTS[height] + 8 + WIDTH + 8)
    runtime.launch(source, f"{kernel}_{height}", np.float32, grid, THREADS, args, shared)


def launch_products(
    source, kernel, operands, y, finish, settings, sides, slices, longest=None
) -> None:  # fmt: skip
    """y (N, C, H, W) = the products of two operands, finished, by <kernel>_<height>.

    sides: (rows, columns, depth) of each of `slices` products. settings: what the kernel takes
    after the operands, the finish and y, which for several splits is an array of parts. `longest`:
    see `choose_splits`.
    """
    rows, columns, depth = sides
    height = choose_height(rows, columns, slices)
    grid = runtime.blocks(columns, WIDTH) * slices, runtime.blocks(rows, HEIGHTS[height])
    splits = choose_splits(math.prod(grid), depth, y.size, longest)
    if splits == 1:
        *arrays, rectify = finish
        launch(source, kernel, height, grid, (*operands, *arrays, y, rectify, *settings))
        return
    parts = runtime.empty((splits, y.size), y.dtype)
    *arrays, rectify = NO_FINISH
    args = *operands, *arrays, parts, rectify, *settings
    launch(source, kernel, height, (*grid, splits), args)
    _finish_splits(parts, finish, y)


def _finish_splits(parts, finish, y):
    """y (N, C, H, W) = the sums of the parts (splits, size), finished."""
    *arrays, rectify = finish
    numbers = runtime.ints(len(parts), y.shape[1], math.prod(y.shape[2:]))
    args = parts, *arrays, y, rectify, *numbers, y.size
    runtime.launch_elements("matmul_tf32", "finish_splits", y.dtype, y.size, args)
