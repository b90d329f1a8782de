"""Local response normalisation on all cores; the definitions stand in kernels.reference.lrn.

A task is one image and one stretch of positions, over all channels: the window's sum runs over
channels while the innermost loop runs along the stretch, which is contiguous.
"""

import math

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.workspace import empty
from kernels.reference.lrn import check_lrn

_STRETCH = 256


@njit(inline="always")
def _power(scale, beta):
    """scale ** -beta; the papers' 3/4 by two square roots, which vectorise."""
    if beta == 0.75:
        root = math.sqrt(scale)
        return 1 / (root * math.sqrt(root))
    return scale**-beta


@njit(parallel=True, cache=True)
def _lrn(x, y, scale, before, after, alpha, beta, k):
    n, channels, size = x.shape
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        for c in range(channels):
            total = scale[image, c]
            for p in range(start, stop):
                total[p] = 0
            for j in range(max(0, c - before), min(channels, c + after + 1)):
                for p in range(start, stop):
                    total[p] += x[image, j, p] * x[image, j, p]
            for p in range(start, stop):
                total[p] = k + alpha * total[p]
            for p in range(start, stop):
                y[image, c, p] = x[image, c, p] * _power(total[p], beta)


@njit(parallel=True, cache=True)
def _lrn_backward(dy, x, scale, dx, before, after, factor, beta):
    n, channels, size = x.shape
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        width = stop - start
        damp = np.empty((channels, width), x.dtype)
        through = np.empty((channels, width), x.dtype)
        total = np.empty(width, x.dtype)
        for c in range(channels):
            for p in range(width):
                s = scale[image, c, start + p]
                damp[c, p] = _power(s, beta)
            for p in range(width):
                q = start + p
                weighted = dy[image, c, q] * damp[c, p]
                through[c, p] = weighted * x[image, c, q] / scale[image, c, q]
        for c in range(channels):
            for p in range(width):
                total[p] = 0
            for j in range(max(0, c - after), min(channels, c + before + 1)):
                for p in range(width):
                    total[p] += through[j, p]
            for p in range(width):
                q = start + p
                own = dy[image, c, q] * damp[c, p]
                dx[image, c, q] = own - factor * x[image, c, q] * total[p]


def _planes(x):
    n, c, h, w = x.shape
    return np.ascontiguousarray(x).reshape(n, c, h * w)


def lrn(x, size, alpha, beta, k, size_normalized=False):
    """See kernels.reference.lrn."""
    check_lrn(size, x=x)
    alpha = alpha / size if size_normalized else alpha
    planes = _planes(x)
    y, scale = empty(planes.shape, planes.dtype), empty(planes.shape, planes.dtype)
    number = x.dtype.type
    _lrn(planes, y, scale, size // 2, (size - 1) // 2, number(alpha), number(beta), number(k))
    return y.reshape(x.shape), scale.reshape(x.shape)


def lrn_backward(dy, x, scale, size, alpha, beta, k, size_normalized=False):
    """See kernels.reference.lrn_backward."""
    check_lrn(size, x=x, dy=dy, scale=scale)
    alpha = alpha / size if size_normalized else alpha
    planes = _planes(x)
    dx = empty(planes.shape, planes.dtype)
    number = x.dtype.type
    window = size // 2, (size - 1) // 2
    factor = number(2 * alpha * beta)
    _lrn_backward(_planes(dy), planes, _planes(scale), dx, *window, factor, number(beta))
    return dx.reshape(x.shape)
