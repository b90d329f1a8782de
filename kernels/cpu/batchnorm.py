"""Batch normalisation on all cores; the definitions stand in kernels.reference.batchnorm.

A task is one plane (image, channel): it sums its H W values into one cell of an (N, C) table in
float64, and the table is added up in a fixed order. So the cores share the work however few
channels there are, and the result does not depend on their number.
"""

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import split
from kernels.cpu.workspace import empty
from kernels.geometry import check_shape
from kernels.reference.batchnorm import check_batchnorm

_SUM_FLAGS = {"reassoc", "nsz", "contract"}


@njit(parallel=True, cache=True, fastmath=_SUM_FLAGS)
def _plane_sums(x, sums):
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        total = 0.0
        for p in range(size):
            total += x[image, c, p]
        sums[image, c] = total


@njit(parallel=True, cache=True, fastmath=_SUM_FLAGS)
def _plane_squares(x, mean, sums):
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        total = 0.0
        for p in range(size):
            centred = x[image, c, p] - mean[c]
            total += centred * centred
        sums[image, c] = total


@njit(parallel=True, cache=True)
def _scale_shift(x, mean, scale, shift, y):
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        for p in range(size):
            y[image, c, p] = (x[image, c, p] - mean[c]) * scale[c] + shift[c]


@njit(parallel=True, cache=True, fastmath=_SUM_FLAGS)
def _gradient_sums(dy, x, mean, inv_std, sums):
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        plain = 0.0
        weighted = 0.0
        for p in range(size):
            grad = dy[image, c, p]
            plain += grad
            weighted += grad * (x[image, c, p] - mean[c])
        sums[0, image, c] = weighted * inv_std[c]
        sums[1, image, c] = plain


@njit(parallel=True, cache=True)
def _input_grad(dy, x, mean, inv_std, scale, mean_weighted, mean_plain, dx):
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        for p in range(size):
            normal = (x[image, c, p] - mean[c]) * inv_std[c]
            spread = dy[image, c, p] - mean_plain[c] - normal * mean_weighted[c]
            dx[image, c, p] = scale[c] * spread


def _planes(x):
    return np.ascontiguousarray(x).reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def batchnorm_train(x, gamma, beta, eps):
    """See kernels.reference.batchnorm_train."""
    check_batchnorm(x, training=True, gamma=gamma, beta=beta)
    planes = _planes(x)
    mean, var = (moment.astype(x.dtype) for moment in _moments(planes))
    inv_std = 1 / np.sqrt(var + x.dtype.type(eps))
    y = empty(planes.shape, planes.dtype)
    _scale_shift(planes, mean, gamma * inv_std, np.ascontiguousarray(beta), y)
    return y.reshape(x.shape), mean, var, inv_std


def _moments(planes):
    n, channels, size = planes.shape
    sums = np.empty((n, channels))
    _plane_sums(planes, sums)
    mean = sums.sum(axis=0) / (n * size)
    # In the dtype of x the loop is twice as wide; the squares are then off by the same everywhere.
    near = mean.astype(planes.dtype)
    _plane_squares(planes, near, sums)
    return mean, sums.sum(axis=0) / (n * size) - (mean - near) ** 2


def batchnorm_statistics(x):
    """See kernels.reference.batchnorm_statistics."""
    check_batchnorm(x)
    if x.size == 0:
        raise ValueError(f"x must have a value a channel, got shape {x.shape}")
    return _moments(_planes(x))


def batchnorm_eval(x, gamma, beta, mean, var, eps):
    """See kernels.reference.batchnorm_eval."""
    check_batchnorm(x, gamma=gamma, beta=beta, mean=mean, var=var)
    planes = _planes(x)
    scale = gamma / np.sqrt(var + x.dtype.type(eps))
    y = empty(planes.shape, planes.dtype)
    _scale_shift(planes, np.ascontiguousarray(mean), scale, np.ascontiguousarray(beta), y)
    return y.reshape(x.shape)


def _sums(dy, x, mean, inv_std):
    sums = np.empty((2, *x.shape[:2]))
    _gradient_sums(dy, x, mean, inv_std, sums)
    return sums.sum(axis=1).astype(x.dtype)


def batchnorm_backward(dy, x, gamma, mean, inv_std):
    """See kernels.reference.batchnorm_backward."""
    check_batchnorm(x, gamma=gamma, mean=mean, inv_std=inv_std)
    check_shape("dy", dy.shape, x.shape)
    grads, planes = _planes(dy), _planes(x)
    mean, inv_std = np.ascontiguousarray(mean), np.ascontiguousarray(inv_std)
    dgamma, dbeta = _sums(grads, planes, mean, inv_std)
    count = x.dtype.type(x.size // x.shape[1])
    dx = empty(planes.shape, planes.dtype)
    _input_grad(
        grads, planes, mean, inv_std, gamma * inv_std, dgamma / count, dbeta / count, dx
    )
    return dx.reshape(x.shape), dgamma, dbeta


def batchnorm_eval_backward(dy, x, gamma, mean, inv_std):
    """See kernels.reference.batchnorm_eval_backward."""
    check_batchnorm(x, gamma=gamma, mean=mean, inv_std=inv_std)
    check_shape("dy", dy.shape, x.shape)
    grads = _planes(dy)
    mean, inv_std = np.ascontiguousarray(mean), np.ascontiguousarray(inv_std)
    dgamma, dbeta = _sums(grads, _planes(x), mean, inv_std)
    zero = np.zeros_like(mean)
    dx = empty(grads.shape, grads.dtype)
    _scale_shift(grads, zero, gamma * inv_std, zero, dx)
    return dx.reshape(x.shape), dgamma, dbeta
