"""How products on tensor cores are cut into blocks (tiles_tf32.cuh), and launched."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.cuda import runtime

WIDTH, STAGES = 128, 3  # as in tiles_tf32.cuh


class Shape(NamedTuple):
    """How a block works (tiles_tf32.cuh, groups_tf32.cuh), and how fast.

    rates: TFLOP/s of a multiprocessor of an H100 that has one such block at a time, two and so on.
    """

    height: int
    depth: int
    padding: int
    threads: int
    rates: tuple[float, ...]
    slack: int = 0

    @property
    def shared_bytes(self) -> int:
        """Of all stages, and the `slack` to begin where the shape's tiles can."""
        return 4 * STAGES * self.depth * (self.height + WIDTH + 2 * self.padding) + self.slack


SHAPES = {
    "high": Shape(128, 16, 8, 128, (1.0, 1.5)),
    "low": Shape(64, 16, 8, 128, (0.75, 0.95, 1.18, 1.24)),
    "group_high": Shape(128, 32, 0, 256, (1.94, 2.13), 1024),
    "group_low": Shape(64, 32, 0, 128, (1.22, 1.43, 1.43), 1024),
}
# Of these there is a kernel for every product; of these where groups of warps multiply.
WARP_SHAPES, GROUP_SHAPES = ("high", "low"), ("group_high", "group_low")
# What else a grid's time comes to on an H100, which has so many multiprocessors: sums of splits, in
# microseconds, and the bytes of them that are written and read in one.
MULTIPROCESSORS = 132
ADDING, PARTS_RATE = 4, 3.5e6
# A split sums at least so many products, and no more memory than this goes to the results of all.
SHORTEST = 128
PARTS_BYTES = 64 << 20
# Of a grid, along z.
MOST_SPLITS = 65535
# What is done to results before they are stored: (scale, shift, others, rectify).
NO_FINISH = None, None, None, False


@lru_cache(maxsize=4096)
def choose_cut(
    rows: int, columns: int, depth: int, slices: int, size: int, begin: float = 1,
    longest: int | None = None, parts: bool = False, shapes: tuple[str, ...] = WARP_SHAPES,
) -> tuple[str, int]:  # fmt: skip
    """(shape, splits of the sums) for `slices` products of so many rows and columns, of
    sums over `depth`, whose results are of `size` elements in all: those that take the least time.

    begin: microseconds a block takes before it multiplies. longest: what a split may sum, at most,
    where that is limited. parts: whether the results of a single split are parts, too.
    """
    fewest = min(runtime.blocks(depth, longest or depth), MOST_SPLITS)
    cuts = []
    for name in shapes:
        shape = SHAPES[name]
        tiles = runtime.blocks(depth, shape.depth)
        blocks = runtime.blocks(columns, WIDTH) * runtime.blocks(rows, shape.height) * slices
        enough = runtime.blocks(2 * MULTIPROCESSORS * len(shape.rates), blocks)
        most = min(enough, depth // SHORTEST, PARTS_BYTES // (4 * max(size, 1)))
        for splits in range(fewest, max(fewest, most) + 1):
            time = _time(shape, blocks * splits, runtime.blocks(tiles, splits), begin)
            if splits > 1 or parts:
                time += ADDING + 8 * splits * size / PARTS_RATE
            cuts.append((time, splits, name))
    _, splits, name = min(cuts)
    return name, splits


def _time(shape, blocks, tiles, begin):
    """Microseconds of a grid whose blocks sum so many tiles each."""
    rates = shape.rates
    block = 2e-6 * shape.height * WIDTH * shape.depth * tiles
    rounds, rest = divmod(runtime.blocks(blocks, MULTIPROCESSORS), len(rates))
    time = rounds * (begin + len(rates) * block / rates[-1])
    return time + (begin + rest * block / rates[rest - 1] if rest else 0)


def launch(source: str, kernel: str, shape: str, grid, args) -> None:
    """Run <kernel>_<shape>."""
    threads, shared = SHAPES[shape].threads, SHAPES[shape].shared_bytes
    runtime.launch(source, f"{kernel}_{shape}", np.float32, grid, threads, args, shared)


def launch_products(
    source, kernel, operands, y, finish, settings, sides, slices, begin=1, longest=None,
    shapes=WARP_SHAPES,
) -> None:  # fmt: skip
    """y (N, C, H, W) = the products of two operands, finished, by <kernel>_<shape>.

    sides: (rows, columns, depth) of each of `slices` products. settings: what the kernel takes
    after the operands, the finish and y, which for several splits is an array of parts. `begin`,
    `longest`, `shapes`: see `choose_cut`.
    """
    rows, columns, depth = sides
    name, splits = choose_cut(rows, columns, depth, slices, y.size, begin, longest, shapes=shapes)
    shape = SHAPES[name]
    grid = runtime.blocks(columns, WIDTH) * slices, runtime.blocks(rows, shape.height)
    if splits == 1:
        *arrays, rectify = finish
        launch(source, kernel, name, grid, (*operands, *arrays, y, rectify, *settings))
        return
    parts = runtime.empty((splits, y.size), y.dtype)
    *arrays, rectify = NO_FINISH
    args = *operands, *arrays, parts, rectify, *settings
    launch(source, kernel, name, (*grid, splits), args)
    _finish_splits(parts, finish, y)


def _finish_splits(parts, finish, y):
    """y (N, C, H, W) = the sums of the parts (splits, size), finished."""
    *arrays, rectify = finish
    numbers = runtime.ints(len(parts), y.shape[1], math.prod(y.shape[2:]))
    args = parts, *arrays, y, rectify, *numbers, y.size
    runtime.launch_elements("matmul_tf32", "finish_splits", y.dtype, y.size, args)
