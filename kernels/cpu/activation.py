"""Rectification on all cores; the definitions stand in kernels.reference.activation.

What is one piece alone does not wake other threads, which takes longer than such a piece.
"""

import math

import numpy as np
from numba import njit, prange

from kernels.cpu.planes import flat
from kernels.cpu.reduce import STRETCH, total_of
from kernels.cpu.streams import LONG_PIECE, landing, landings, settle
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.workspace import empty
from kernels.geometry import check_dtypes, check_shape
from kernels.reference.activation import check_relu_backward


@njit(cache=True)
def _relu_piece(x, y):
    zero = x.dtype.type(0)  # an int beside a float32 would make Numba compute in float64
    for i in range(y.size):
        value = x[i]
        y[i] = zero if value < zero else value  # a NaN is not below 0: it stays


@njit(parallel=True, cache=True)
def _relu(x, y, scratch):
    length = scratch.shape[1]
    for chunk in prange((x.size + length - 1) // length):
        start, stop = chunk_bounds(chunk, length, x.size)
        target = landing(y, start, stop, scratch)
        _relu_piece(x[start:stop], target)
        settle(y, start, target, scratch)


@njit(parallel=True, cache=True)
def _relu_in_place(x):
    """Given as operand and result of one function, x would not become vector code."""
    zero = x.dtype.type(0)
    for chunk in prange((x.size + LONG_PIECE - 1) // LONG_PIECE):
        start, stop = chunk_bounds(chunk, LONG_PIECE, x.size)
        piece = x[start:stop]
        for i in range(piece.size):
            value = piece[i]
            piece[i] = zero if value < zero else value


@njit(cache=True)
def _relu_backward_piece(dy, y, dx):
    zero = dy.dtype.type(0)
    for i in range(dx.size):
        dx[i] = dy[i] if y[i] > zero else zero


@njit(parallel=True, cache=True)
def _relu_backward(dy, y, dx, scratch):
    length = scratch.shape[1]
    for chunk in prange((y.size + length - 1) // length):
        start, stop = chunk_bounds(chunk, length, y.size)
        target = landing(dx, start, stop, scratch)
        _relu_backward_piece(dy[start:stop], y[start:stop], target)
        settle(dx, start, target, scratch)


@njit(cache=True)
def _mask_piece(dy, y):
    """As `_relu_backward_piece`, in place: see `_relu_in_place`."""
    zero = dy.dtype.type(0)
    for i in range(dy.size):
        dy[i] = dy[i] if y[i] > zero else zero


@njit(parallel=True, cache=True)
def _mask(dy, y):
    for chunk in prange((y.size + LONG_PIECE - 1) // LONG_PIECE):
        start, stop = chunk_bounds(chunk, LONG_PIECE, y.size)
        _mask_piece(dy[start:stop], y[start:stop])


@njit(parallel=True, cache=True)
def _bias_relu(x, bias, y):
    zero = x.dtype.type(0)
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        for p in range(size):
            value = x[image, c, p] + bias[c]
            y[image, c, p] = zero if value < zero else value


@njit(parallel=True, cache=True)
def _bias_relu_backward(dy, y, dx, in_place, sums, size):
    """dy, y, dx flat, of which the first may be the last, `in_place`; sums (N, C)."""
    n, channels = sums.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        begin = (image * channels + c) * size
        total = 0.0
        for first in range(0, size, STRETCH):
            start = begin + first
            stop = start + min(STRETCH, size - first)
            if in_place:
                _mask_piece(dx[start:stop], y[start:stop])
            else:
                _relu_backward_piece(dy[start:stop], y[start:stop], dx[start:stop])
            total += total_of(dx, start, stop - start)
        sums[image, c] = total


def _planes(array):
    """(N, C, ...) as a contiguous (N, C, P)."""
    return np.ascontiguousarray(array).reshape(*array.shape[:2], math.prod(array.shape[2:]))


def relu(x, out=None):
    """See kernels.reference.relu."""
    y = empty(x.shape, x.dtype) if out is None else out
    if not y.flags.c_contiguous or (y is x and y.size <= LONG_PIECE):
        return np.maximum(x, x.dtype.type(0), out=y)
    if y is x:
        _relu_in_place(flat(y))
    elif y.size <= LONG_PIECE:
        _relu_piece(flat(x), flat(y))
    else:
        _relu(flat(x), flat(y), landings(y, x))
    return y


def relu_backward(dy, y, out=None):
    """See kernels.reference.relu_backward."""
    check_relu_backward(dy, y, out)
    dx = empty(dy.shape, dy.dtype) if out is None else out
    if not dx.flags.c_contiguous:
        dx[...] = relu_backward(dy, y)
    elif dx is dy and dx.size <= LONG_PIECE:
        _mask_piece(flat(dx), flat(y))
    elif dx is dy:
        _mask(flat(dx), flat(y))
    elif dx.size <= LONG_PIECE:
        _relu_backward_piece(flat(dy), flat(y), flat(dx))
    else:
        _relu_backward(flat(dy), flat(y), flat(dx), landings(dx, dy, y))
    return dx


def bias_relu(x, bias):
    """See kernels.reference.bias_relu."""
    check_dtypes(x=x, bias=bias)
    check_shape("bias", bias.shape, x.shape[1:2])
    planes = _planes(x)
    y = empty(planes.shape, planes.dtype)
    _bias_relu(planes, np.ascontiguousarray(bias), y)
    return y.reshape(x.shape)


def bias_relu_backward(dy, y, out=None):
    """See kernels.reference.bias_relu_backward."""
    check_relu_backward(dy, y, out)
    if dy.size == dy.shape[0] * dy.shape[1] or not (out is None or out.flags.c_contiguous):
        dx = relu_backward(dy, y, out)
        return dx, dx.sum(axis=(0, *range(2, dx.ndim)))
    dx = empty(dy.shape, dy.dtype) if out is None else out
    sums = empty(dy.shape[:2], dy.dtype)
    _bias_relu_backward(flat(dy), flat(y), flat(dx), dx is dy, sums, math.prod(dy.shape[2:]))
    return dx, sums.sum(axis=0)
