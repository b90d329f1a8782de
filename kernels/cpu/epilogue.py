"""What a convolution does to its sums while they are at hand, before it stores them."""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import split


class Epilogue(NamedTuple):
    """max(sum scale[o] + shift[o] + others, floor), for each result.

    scale, shift: one number a channel of the result; others: flat, in the order of the results, or
    empty for none. A NaN stays NaN.
    """

    scale: np.ndarray
    shift: np.ndarray
    others: np.ndarray
    floor: np.floating


def plain(channels, dtype, bias=None) -> Epilogue:
    """Nothing but a bias, if there is one."""
    shift = np.zeros(channels, dtype) if bias is None else np.array(bias)
    return Epilogue(np.ones(channels, dtype), shift, _flat(None, dtype), dtype.type(-np.inf))


def affine(scale, shift, others, rectify) -> Epilogue:
    """sum scale + shift, and more where `others` is an array or `rectify` is true."""
    floor = scale.dtype.type(0 if rectify else -np.inf)
    return Epilogue(np.array(scale), np.array(shift), _flat(others, scale.dtype), floor)


def _flat(others, dtype):
    """Always read-only: Numba would compile kernels anew for arrays that are not."""
    flat = np.empty(0, dtype) if others is None else np.ascontiguousarray(others).reshape(-1)
    flat = flat.view()
    flat.flags.writeable = False
    return flat


def in_vectors(epilogue: Epilogue, groups: int, place: int) -> Epilogue:
    """The same, with the numbers of each group's channels followed by zeros up to `place`."""

    def widened(values):
        wide = np.zeros((groups, place), values.dtype)
        wide[:, : len(values) // groups] = values.reshape(groups, -1)
        return wide.reshape(-1)

    return epilogue._replace(scale=widened(epilogue.scale), shift=widened(epilogue.shift))


@njit(parallel=True, cache=True)
def _finish(y, epilogue):
    n, channels, size = y.shape
    scale, shift, others, floor = epilogue
    for task in prange(n * channels):
        image, c = split(task, channels)
        first = (image * channels + c) * size
        for p in range(size):
            value = y[image, c, p] * scale[c] + shift[c]
            if others.size:
                value += others[first + p]
            y[image, c, p] = floor if value < floor else value


def finish(y, epilogue: Epilogue) -> None:
    """Apply an epilogue to sums (N, C, ...) that are stored already."""
    _finish(y.reshape(*y.shape[:2], -1), epilogue)
