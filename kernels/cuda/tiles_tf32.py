"""How products on tensor cores are cut into blocks (tiles_tf32.cuh), and launched."""

import math
from functools import lru_cache

import numpy as np

from kernels.cuda import runtime

# As in tiles_tf32.cuh. Of every kernel there are two, with tiles of so many rows.
HEIGHTS = {"high": 128, "low": 64}
WIDTH, DEPTH, STAGES, THREADS = 128, 16, 3, 128
# How long a grid takes, as measured on an H100, by which grids are chosen: TFLOP/s of each of its
# 132 multiprocessors with one block at a time, two and so on; what the sums of splits cost, in
# microseconds, and bytes of them that are written and read in one. The same for every GPU, so that
# all give the same digits.
MULTIPROCESSORS = 132
RATES = {"high": (1.0, 1.5), "low": (0.75, 0.95, 1.18, 1.24)}
ADDING, PARTS_RATE = 5, 3e6
# A split sums at least so many tiles, and no more memory than this goes to the results of all.
FEWEST_TILES = 8
PARTS_BYTES = 64 << 20
# Of a grid, along z.
MOST_SPLITS = 65535
# What is done to results before they are stored: (scale, shift, others, rectify).
NO_FINISH = None, None, None, False


@lru_cache(maxsize=4096)
def choose_cut(
    rows: int, columns: int, depth: int, slices: int, size: int, begin: float = 1,
    longest: int | None = None, parts: bool = False,
) -> tuple[str, int]:  # fmt: skip
    """(height of tiles, splits of the sums) for `slices` products of so many rows and columns, of
    sums over `depth`, whose results are of `size` elements in all: those that take the least time.

    begin: microseconds a block takes before it multiplies. longest: what a split may sum, at most,
    where that is limited. parts: whether the results of a single split are parts, too.
    """
    fewest = min(runtime.blocks(depth, longest or depth), MOST_SPLITS)
    tiles = runtime.blocks(depth, DEPTH)
    cuts = []
    for height, length in HEIGHTS.items():
        blocks = runtime.blocks(columns, WIDTH) * runtime.blocks(rows, length) * slices
        enough = runtime.blocks(2 * MULTIPROCESSORS * len(RATES[height]), blocks)
        most = min(enough, tiles // FEWEST_TILES, PARTS_BYTES // (4 * size))
        for splits in range(fewest, max(fewest, most) + 1):
            time = _time(height, blocks * splits, runtime.blocks(tiles, splits), begin)
            if splits > 1 or parts:
                time += ADDING + 8 * splits * size / PARTS_RATE
            cuts.append((time, splits, height))
    _, splits, height = min(cuts)
    return height, splits


def _time(height, blocks, tiles, begin):
    """Microseconds of a grid whose blocks sum so many tiles each."""
    rates = RATES[height]
    block = 2e-6 * HEIGHTS[height] * WIDTH * DEPTH * tiles
    rounds, rest = divmod(runtime.blocks(blocks, MULTIPROCESSORS), len(rates))
    time = rounds * (begin + len(rates) * block / rates[-1])
    return time + (begin + rest * block / rates[rest - 1] if rest else 0)


def launch(source: str, kernel: str, height: str, grid, args) -> None:
    """Run <kernel>_<height>."""
    shared = 4 * STAGES * DEPTH * (HEIGHTS[height] + 8 + WIDTH + 8)
    runtime.launch(source, f"{kernel}_{height}", np.float32, grid, THREADS, args, shared)


def launch_products(
    source, kernel, operands, y, finish, settings, sides, slices, begin=1, longest=None
) -> None:  # fmt: skip
    """y (N, C, H, W) = the products of two operands, finished, by <kernel>_<height>.

    sides: (rows, columns, depth) of each of `slices` products. settings: what the kernel takes
    after the operands, the finish and y, which for several splits is an array of parts. `begin`,
    `longest`: see `choose_cut`.
    """
    rows, columns, depth = sides
    height, splits = choose_cut(rows, columns, depth, slices, y.size, begin, longest)
    grid = runtime.blocks(columns, WIDTH) * slices, runtime.blocks(rows, HEIGHTS[height])
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
