"""How products on tensor cores are cut into blocks (tiles_tf32.cuh), and launched."""

import numpy as np

from kernels.cuda import runtime

# As in tiles_tf32.cuh.
SIDES = (128, 64)
DEPTH, STAGES, THREADS = 16, 4, 128
# Blocks that occupy a large GPU; a split sums at least so many tiles, and no more memory than this
# goes to the results of all splits.
ENOUGH_BLOCKS = 264
FEWEST_TILES = 8
PARTS_BYTES = 64 << 20


def choose_side(rows: int, columns: int, slices: int) -> int:
    """The larger tile where it is filled, and there are enough of them for `slices` products."""
    large, small = SIDES
    blocks = runtime.blocks(columns, large) * runtime.blocks(rows, large) * slices
    return large if rows > small and blocks >= ENOUGH_BLOCKS // 2 else small


def choose_splits(blocks: int, depth: int, size: int) -> int:
    """How many parts to cut sums over `depth` into, for `size` results in so many blocks."""
    if 2 * blocks > ENOUGH_BLOCKS:
        return 1
    wanted = min(runtime.blocks(ENOUGH_BLOCKS, blocks), depth // (DEPTH * FEWEST_TILES))
    return max(1, min(wanted, PARTS_BYTES // (4 * size)))


def launch(source: str, kernel: str, side: int, grid, args) -> None:
    """Run <kernel>_<side>."""
    shared = 4 * STAGES * 2 * side * (DEPTH + 4)
    runtime.launch(source, f"{kernel}_{side}", np.float32, grid, THREADS, args, shared)


def finish_splits(parts, finish, y, rows: int, length: int) -> None:
    """y = the sums of the parts (splits, size), finished, in rows of `length`."""
    *arrays, rectify = finish
    args = parts, *arrays, y, rectify, *runtime.ints(len(parts), rows, length), y.size
    runtime.launch_elements("matmul_tf32", "finish_splits", y.dtype, y.size, args)
