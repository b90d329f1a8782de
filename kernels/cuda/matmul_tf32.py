"""Products of matrices on tensor cores: the launchers of matmul_tf32.cu."""

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


def multiply(a: Stack, b: Stack, y: Stack, sizes, groups=1, finish=NO_FINISH, rows=1, length=1):
    """y = a b, finished, with sizes (m, n, k) a group; y is wide.

    `rows`, `length`: of y's array, as `finish_splits` takes them.
    """
    m, n, k = sizes
    height = choose_height(m, n, groups)
    grid = runtime.blocks(n, WIDTH) * groups, runtime.blocks(m, HEIGHTS[height])
    splits = choose_splits(math.prod(grid), k, y.array.size)
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


def matmul(a, b):
    """a (m, k) times b (k, n), none of them 0."""
    (m, k), n = a.shape, b.shape[1]
    y = runtime.empty((m, n), a.dtype)
    turned, b = _lying(b.T)
    deep, a = _lying(a)
    left = Stack(a, deep, k if deep else m, k if deep else m)
    right = Stack(b, turned, k if turned else n, k if turned else n)
    multiply(left, right, Stack(y, False, n, n), (m, n, k))
    return y


def _lying(x):
    """(whether neighbours of x lie along its rows, the array in C order)."""
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        return False, x.T
    return True, runtime.contiguous(x)
