"""Batch normalisation on all cores; the definitions stand in kernels.reference.batchnorm.

A task is one plane (image, channel): what its H W values come to goes to one cell of an (N, C)
table in float64, and the table is put together in a fixed order. So the cores share the work
however few channels there are, and the result does not depend on their number.
"""

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import split
from kernels.cpu.workspace import empty
from kernels.reference.batchnorm import check_batchnorm

_SUM_FLAGS = {"reassoc", "nsz", "contract"}


@njit(parallel=True, cache=True, fastmath=_SUM_FLAGS)
def _plane_moments(x, means, squares):
    """The mean of every plane, and the sum of its squares about it.

    The second walk over a plane finds it in the cache. E[x^2] - E[x]^2, which needs one walk only,
    would cancel where the mean is large.
    """
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        plane = x[image, c]
        total = 0.0
        for p in range(size):
            total += plane[p]
        # In the dtype of x the loop is twice as wide; the squares are then off by the same for all.
        mean = total / size
        near = x.dtype.type(mean)
        square = 0.0
        for p in range(size):
            centred = plane[p] - near
            square += centred * centred
        means[image, c] = mean
        squares[image, c] = square - size * (mean - near) ** 2


@njit(parallel=True, cache=True)
def _scale_shift(x, mean, scale, shift, others, floor, y):
    """y = max((x - mean) scale + shift + others, floor); others may be empty, a NaN stays NaN."""
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        centre, factor, term = mean[c], scale[c], shift[c]
        source, result = x[image, c], y[image, c]
        if others.size:
            other = others[image, c]
            for p in range(size):
                value = (source[p] - centre) * factor + term + other[p]
                result[p] = floor if value < floor else value
        else:
            for p in range(size):
                value = (source[p] - centre) * factor + term
                result[p] = floor if value < floor else value


@njit(parallel=True, cache=True, fastmath=_SUM_FLAGS)
def _gradient_sums(dy, x, y, mean, inv_std, sums):
    """`y`, unless empty: dy counts where it is positive."""
    n, channels, size = x.shape
    zero = x.dtype.type(0)
    for task in prange(n * channels):
        image, c = split(task, channels)
        plain = 0.0
        weighted = 0.0
        if y.size:
            for p in range(size):
                grad = dy[image, c, p] if y[image, c, p] > zero else zero
                plain += grad
                weighted += grad * (x[image, c, p] - mean[c])
        else:
            for p in range(size):
                grad = dy[image, c, p]
                plain += grad
                weighted += grad * (x[image, c, p] - mean[c])
        sums[0, image, c] = weighted * inv_std[c]
        sums[1, image, c] = plain


@njit(parallel=True, cache=True)
def _input_grad(dy, x, y, mean, inv_std, scale, mean_weighted, mean_plain, dx):
    """`y`: as in _gradient_sums."""
    n, channels, size = x.shape
    zero = x.dtype.type(0)
    for task in prange(n * channels):
        image, c = split(task, channels)
        for p in range(size):
            grad = dy[image, c, p]
            if y.size:
                grad = grad if y[image, c, p] > zero else zero
            normal = (x[image, c, p] - mean[c]) * inv_std[c]
            spread = grad - mean_plain[c] - normal * mean_weighted[c]
            dx[image, c, p] = scale[c] * spread


def _planes(x):
    return np.ascontiguousarray(x).reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def _optional(x, dtype):
    """Planes of x, or none; read-only either way, since Numba compiles for each kind anew."""
    planes = np.empty((0, 0, 0), dtype) if x is None else _planes(x).view()
    planes.flags.writeable = False
    return planes


def _normalise(planes, mean, scale, shift, others=None, rectify=False):
    y = empty(planes.shape, planes.dtype)
    floor = planes.dtype.type(0 if rectify else -np.inf)
    _scale_shift(planes, mean, scale, shift, _optional(others, planes.dtype), floor, y)
    return y


def batchnorm_train(x, gamma, beta, eps, others=None, rectify=False):
    """See kernels.reference.batchnorm_train."""
    check_batchnorm(x, training=True, others=others, gamma=gamma, beta=beta)
    planes = _planes(x)
    mean, var = (moment.astype(x.dtype) for moment in _moments(planes))
    inv_std = 1 / np.sqrt(var + x.dtype.type(eps))
    y = _normalise(planes, mean, gamma * inv_std, np.ascontiguousarray(beta), others, rectify)
    return y.reshape(x.shape), mean, var, inv_std


def _moments(planes):
    """Mean and biased variance of every channel, from those of its planes (Chan et al. 1979)."""
    n, channels, size = planes.shape
    means, squares = np.empty((2, n, channels))
    _plane_moments(planes, means, squares)
    mean = means.mean(axis=0)
    return mean, squares.sum(axis=0) / (n * size) + ((means - mean) ** 2).mean(axis=0)


def batchnorm_statistics(x):
    """See kernels.reference.batchnorm_statistics."""
    check_batchnorm(x)
    if x.size == 0:
        raise ValueError(f"x must have a value a channel, got shape {x.shape}")
    return _moments(_planes(x))


def batchnorm_eval(x, gamma, beta, mean, var, eps):
    """See kernels.reference.batchnorm_eval."""
    check_batchnorm(x, gamma=gamma, beta=beta, mean=mean, var=var)
    scale = gamma / np.sqrt(var + x.dtype.type(eps))
    mean, beta = np.ascontiguousarray(mean), np.ascontiguousarray(beta)
    return _normalise(_planes(x), mean, scale, beta).reshape(x.shape)


def _sums(dy, x, y, mean, inv_std):
    sums = np.empty((2, *x.shape[:2]))
    _gradient_sums(dy, x, y, mean, inv_std, sums)
    return sums.sum(axis=1).astype(x.dtype)


def batchnorm_backward(dy, x, gamma, mean, inv_std, y=None):
    """See kernels.reference.batchnorm_backward."""
    check_batchnorm(x, dy, y=y, gamma=gamma, mean=mean, inv_std=inv_std)
    grads, planes, results = _planes(dy), _planes(x), _optional(y, x.dtype)
    mean, inv_std = np.ascontiguousarray(mean), np.ascontiguousarray(inv_std)
    dgamma, dbeta = _sums(grads, planes, results, mean, inv_std)
    count = x.dtype.type(x.size // x.shape[1])
    dx = empty(planes.shape, planes.dtype)
    _input_grad(
        grads, planes, results, mean, inv_std, gamma * inv_std, dgamma / count, dbeta / count, dx
    )
    return dx.reshape(x.shape), dgamma, dbeta


def batchnorm_eval_backward(dy, x, gamma, mean, inv_std):
    """See kernels.reference.batchnorm_eval_backward."""
    check_batchnorm(x, dy, gamma=gamma, mean=mean, inv_std=inv_std)
    grads = _planes(dy)
    mean, inv_std = np.ascontiguousarray(mean), np.ascontiguousarray(inv_std)
    dgamma, dbeta = _sums(grads, _planes(x), _optional(None, x.dtype), mean, inv_std)
    zero = np.zeros_like(mean)
    dx = _normalise(grads, zero, gamma * inv_std, zero)
    return dx.reshape(x.shape), dgamma, dbeta
