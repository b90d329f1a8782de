"""What a convolution does to its sums while they are at hand, before it stores them."""

import math
from functools import lru_cache
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
    nothing = _nothing(channels, dtype)
    return nothing if bias is None else nothing._replace(shift=np.array(bias))


@lru_cache(maxsize=256)
def _nothing(channels, dtype):
    zeros, ones = np.zeros(channels, dtype), np.ones(channels, dtype)
    return Epilogue(ones, zeros, _flat(np.empty(0, dtype)), dtype.type(-np.inf))


def affine(scale, shift, others, rectify) -> Epilogue:
    """sum scale + shift, and more where `others` is an array or `rectify` is true.

    scale: None for 1.
    """
    scale = np.ones_like(shift) if scale is None else scale
    floor = scale.dtype.type(0 if rectify else -np.inf)
    none = _nothing(len(scale), scale.dtype).others
    others = none if others is None else _flat(others)
    return Epilogue(np.array(scale), np.array(shift), others, floor)


def _flat(others):
    """Always read-only: Numba would compile kernels anew for arrays that are not."""
    flat = np.ascontiguousarray(others).reshape(-1).view()
    flat.setflags(write=False)
    return flat


def in_vectors(epilogue: Epilogue, groups: int, place: int) -> Epilogue:
    """The same, with the numbers of each group's channels followed by zeros up to `place`."""

    def widened(values):
        wide = np.zeros((groups, place), values.dtype)
        wide[:, : len(values) // groups] = values.reshape(groups, -1)
        return wide.reshape(-1)

    return epilogue._replace(scale=widened(epilogue.scale), shift=widened(epilogue.shift))


@njit(parallel=True, cache=True)
def _finish_rows(y, epilogue):
    """As `_finish`, of one pixel an image."""
    scale, shift, others, floor = epilogue
    n, channels = y.shape
    for task in prange(n):
        image = np.int64(task)
        line, more = y[image], others[image * channels : (image + 1) * channels]
        for c in range(channels):
            value = line[c] * scale[c] + shift[c]
            if others.size:
                value += more[c]
            line[c] = floor if value < floor else value


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
    n, channels, *size = y.shape
    if math.prod(size) == 1:
        _finish_rows(y.reshape(n, channels), epilogue)
    else:
        _finish(y.reshape(n, channels, -1), epilogue)
