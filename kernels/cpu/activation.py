"""Rectification on all cores; the definitions stand in kernels.reference.activation."""

import math

import numpy as np
from numba import njit, prange

from kernels.cpu.streams import landing, landings, settle
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.workspace import empty
from kernels.geometry import check_dtypes, check_shape


@njit(parallel=True, cache=True)
def _relu(x, y, scratch):
    zero = x.dtype.type(0)  # an int beside a float32 would make Numba compute in float64
    length = scratch.shape[1]
    for chunk in prange((x.size + length - 1) // length):
        start, stop = chunk_bounds(chunk, length, x.size)
        source, target = x[start:stop], landing(y, start, stop, scratch)
        for i in range(source.size):
            value = source[i]
            target[i] = zero if value < zero else value  # a NaN is not below 0: it stays
        settle(y, start, target, scratch)


@njit(parallel=True, cache=True)
def _relu_backward(dy, y, dx, scratch):
    zero = dy.dtype.type(0)
    length = scratch.shape[1]
    for chunk in prange((y.size + length - 1) // length):
        start, stop = chunk_bounds(chunk, length, y.size)
        grad, output, target = dy[start:stop], y[start:stop], landing(dx, start, stop, scratch)
        for i in range(target.size):
            target[i] = grad[i] if output[i] > zero else zero
        settle(dx, start, target, scratch)


@njit(parallel=True, cache=True)
def _bias_relu(x, bias, y):
    zero = x.dtype.type(0)
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        for p in range(size):
            value = x[image, c, p] + bias[c]
            y[image, c, p] = zero if value < zero else value


@njit(parallel=True, cache=True, fastmath={"reassoc", "nsz"})
def _bias_relu_backward(dy, y, dx, sums):
    n, channels, size = y.shape
    zero = dy.dtype.type(0)
    for task in prange(n * channels):
        image, c = split(task, channels)
        total = zero
        for p in range(size):
            value = dy[image, c, p] if y[image, c, p] > zero else zero
            dx[image, c, p] = value
            total += value
        sums[image, c] = total


def _planes(array):
    """(N, C, ...) as a contiguous (N, C, P)."""
    return np.ascontiguousarray(array).reshape(*array.shape[:2], math.prod(array.shape[2:]))


def relu(x, out=None):
    """See kernels.reference.relu."""
    y = empty(x.shape, x.dtype) if out is None else out
    if not y.flags.c_contiguous:
        return np.maximum(x, x.dtype.type(0), out=y)
    _relu(np.ascontiguousarray(x).reshape(-1), y.reshape(-1), landings(y, x))
    return y


def relu_backward(dy, y):
    """See kernels.reference.relu_backward."""
    check_shape("dy", dy.shape, y.shape)
    dx = empty(dy.shape, dy.dtype)
    dy, y = np.ascontiguousarray(dy), np.ascontiguousarray(y)
    _relu_backward(dy.reshape(-1), y.reshape(-1), dx.reshape(-1), landings(dx, dy, y))
    return dx


def bias_relu(x, bias):
    """See kernels.reference.bias_relu."""
    check_dtypes(x=x, bias=bias)
    check_shape("bias", bias.shape, x.shape[1:2])
    planes = _planes(x)
    y = empty(planes.shape, planes.dtype)
    _bias_relu(planes, np.ascontiguousarray(bias), y)
    return y.reshape(x.shape)


def bias_relu_backward(dy, y):
    """See kernels.reference.bias_relu_backward."""
    check_shape("dy", dy.shape, y.shape)
    grads, planes = _planes(dy), _planes(y)
    dx = empty(grads.shape, grads.dtype)
    sums = empty(dy.shape[:2], dy.dtype)
    _bias_relu_backward(grads, planes, dx, sums)
    return dx.reshape(dy.shape), sums.sum(axis=0)
