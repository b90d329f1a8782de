"""Local response normalisation on all cores; the definitions stand in kernels.reference.lrn.

A task is one image and one stretch of positions, over all channels: the window's sum runs over
channels while the innermost loop runs along the stretch, which is contiguous.
"""

import math

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.reference.lrn import check_lrn

_STRETCH = 256


@njit(inline="always")
def _damp(x, scale, y, beta):
    """y = x scale^-beta along one line; the papers' 3/4 by two square roots, which vectorise."""
    one = scale.dtype.type(1)
    if beta == 0.75:
        for p in range(x.size):
            root = math.sqrt(scale[p])
            y[p] = x[p] * (one / (root * math.sqrt(root)))
    else:
        for p in range(x.size):
            y[p] = x[p] * scale[p] ** -beta


@njit(parallel=True, cache=True, error_model="numpy")
def _lrn(x, y, scale, before, after, alpha, beta, k):
    n, channels, size = x.shape
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        for c in range(channels):
            total = scale[image, c, start:stop]
            for p in range(total.size):
                total[p] = k
            for j in range(max(0, c - before), min(channels, c + after + 1)):
                line = x[image, j, start:stop]
                for p in range(total.size):
                    total[p] += alpha * (line[p] * line[p])
            _damp(x[image, c, start:stop], total, y[image, c, start:stop], beta)


@njit(parallel=True, cache=True, error_model="numpy")
def _lrn_backward(dy, x, scale, dx, scratch, before, after, factor, beta):
    n, channels, size = x.shape
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        through = scratch[get_thread_id()]
        total = through[channels, : stop - start]
        for c in range(channels):
            pixels, scales = x[image, c, start:stop], scale[image, c, start:stop]
            own, line = dx[image, c, start:stop], through[c, : stop - start]
            _damp(dy[image, c, start:stop], scales, own, beta)
            for p in range(own.size):
                line[p] = own[p] * pixels[p] / scales[p]
        for c in range(channels):
            for p in range(total.size):
                total[p] = 0
            for j in range(max(0, c - after), min(channels, c + before + 1)):
                line = through[j, : stop - start]
                for p in range(total.size):
                    total[p] += line[p]
            pixels, own = x[image, c, start:stop], dx[image, c, start:stop]
            for p in range(total.size):
                own[p] -= factor * pixels[p] * total[p]


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
    scratch = workspace("lrn", (num_threads(), x.shape[1] + 1, _STRETCH), x.dtype)
    grads, scale = _planes(dy), _planes(scale)
    _lrn_backward(grads, planes, scale, dx, scratch, *window, factor, number(beta))
    return dx.reshape(x.shape)
