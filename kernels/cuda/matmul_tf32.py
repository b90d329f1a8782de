"""Products of matrices that lie in images, on tensor cores: the launchers of matmul_tf32.cu."""

from typing import NamedTuple

import numpy as np

from kernels.cuda.tiles_tf32 import NO_FINISH, launch_products


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


def multiply(a: Stack, b: Stack, y: Stack, sizes, groups, finish=NO_FINISH, longest=None):
    """y = a b, finished, with sizes (m, n, k) a group. y is wide, and so is b unless a is deep.

    y's array is (N, C, H, W). `longest`: see `choose_cut`.
    """
    m, n, k = sizes
    settings = (
        np.int32(m), n, k, np.int32(groups), *_place(a), *_place(b), *y[2:], y.array.size
    )  # fmt: skip
    operands = a.array, b.array
    launch_products(
        "matmul_tf32", "multiply_tf32", operands, y.array, finish, settings, sizes, groups,
        longest=longest,
    )  # fmt: skip


def _place(stack):
    return np.int32(stack.deep), *stack[2:]
