"""How products on tensor cores are cut into blocks (tiles_tf32.cuh), and launched."""

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


def finish_splits(parts, finish, y, rows: int, length: int) -> None:
    """y = the sums of the parts (splits, size), finished, in rows of `length`."""
    *arrays, rectify = finish
    args = parts, *arrays, y, rectify, *runtime.ints(len(parts), rows, length), y.size
    runtime.launch_elements("matmul_tf32", "finish_splits", y.dtype, y.size, args)
