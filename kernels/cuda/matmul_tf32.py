"""Products of matrices that lie in images, on tensor cores: the launchers of matmul_tf32.cu."""

import math
from typing import NamedTuple

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.tiles_tf32 import (
    HEIGHTS,
    WIDTH,
    choose_height,
    choose_splits,
    finish_splits,
    launch,
)

# What is done to results before they are stored: (scale, shift, others, rectify).
NO_FINISH = None, None, None, False


class Stack(NamedTuple):
    """A matrix in an array, or one a group, so many elements apart.

    Along one axis there are neighbours: along k where the matrix is `deep`. `inner` of them lie in
    one piece, and pieces `outer` apart; from one row to the next it is `step`.
    """

    array: object
    deep: bool
    step: int
    inner: int
    outer: int = 0
    group: int = 0


def multiply(
    a: Stack, b: Stack, y: Stack, sizes, groups=1, finish=NO_FINISH, rows=1, length=1, longest=None
):  # fmt: skip
    """y = a b, finished, with sizes (m, n, k) a group. y is wide, and so is b unless a is deep.

    `rows`, `length`: of y's array, as `finish_splits` takes them. `longest`: see `choose_splits`.
    """
    m, n, k = sizes
    height = choose_height(m, n, groups)
    grid = runtime.blocks(n, WIDTH) * groups, runtime.blocks(m, HEIGHTS[height])
    splits = choose_splits(math.prod(grid), k, y.array.size, longest)
    settings = (np.int32(m), n, k, np.int32(groups), *_place(a), *_place(b), *y[2:])
    if splits == 1:
        args = a.array, b.array, *finish[:3], y.array, finish[3], *settings, 0
        launch("matmul_tf32", "multiply_tf32", height, grid, args)
        return
    parts = runtime.empty((splits, y.array.size), y.array.dtype)
    args = a.array, b.array, *NO_FINISH[:3], parts, False, *settings, y.array.size
    launch("matmul_tf32", "multiply_tf32", height, (*grid, splits), args)
    finish_splits(parts, finish, y.array, rows, length)


def _place(stack):
    return np.int32(stack.deep), *stack[2:]
