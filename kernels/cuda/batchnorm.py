"""Batch normalisation on the GPU; the definitions stand in kernels.reference.batchnorm."""

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.reduce import PART, ChannelParts
from kernels.reference.batchnorm import check_batchnorm


def _per_channel(x, count):
    """`count` arrays (C,) in x's dtype."""
    return [runtime.empty(x.shape[1:2], x.dtype) for _ in range(count)]


def _launch_planes(kernel, x, args):
    """On all elements of x (N, C, H, W); the kernel takes x's geometry after `args`."""
    n, channels, h, w = x.shape
    args = (*args, *runtime.ints(channels, h * w), n * channels)
    runtime.launch_planes("batchnorm", kernel, x.dtype, n * channels, h * w, args)


def _normalise(x, mean, rest, inv_std, gamma, beta, others=None, rectify=False):
    y = runtime.empty(x.shape, x.dtype)
    args = (x, mean, rest, inv_std, gamma, beta, others, np.int32(bool(rectify)), y)
    _launch_planes("normalise", x, args)
    return y


def _launch_moments(kernel, x, results, *settings):
    """Reduce the parts of every channel of x, and join them by `kernel`, into `results`."""
    cut = ChannelParts.of(x)
    means, squares = runtime.empty((2, cut.channels, cut.parts), np.float64)
    cut.launch("batchnorm", "part_moments", x.dtype, (x, means, squares))
    channels, part, parts = runtime.ints(cut.channels, PART, cut.parts)
    args = (means, squares, *results, *settings, channels, cut.length, part, parts)
    runtime.launch_warps("batchnorm", kernel, x.dtype, cut.channels, args)


def batchnorm_train(x, gamma, beta, eps, others=None, rectify=False):
    """See kernels.reference.batchnorm_train."""
    check_batchnorm(x, training=True, others=others, gamma=gamma, beta=beta)
    x, gamma, beta, others = runtime.all_contiguous(x, gamma, beta, others)
    mean, rest, var, inv_std = results = _per_channel(x, 4)
    _launch_moments("moments", x, results, np.float64(eps))
    y = _normalise(x, mean, rest, inv_std, gamma, beta, others, rectify)
    return y, mean, var, inv_std


def batchnorm_statistics(x):
    """See kernels.reference.batchnorm_statistics."""
    check_batchnorm(x)
    if x.size == 0:
        raise ValueError(f"x must have a value a channel, got shape {x.shape}")
    mean, var = (runtime.empty(x.shape[1:2], np.float64) for _ in range(2))
    _launch_moments("statistics", runtime.contiguous(x), (mean, var))
    return mean, var


def batchnorm_eval(x, gamma, beta, mean, var, eps):
    """See kernels.reference.batchnorm_eval."""
    check_batchnorm(x, gamma=gamma, beta=beta, mean=mean, var=var)
    x, gamma, beta, mean, var = runtime.all_contiguous(x, gamma, beta, mean, var)
    (inv_std,) = _per_channel(x, 1)
    args = (var, inv_std, np.float64(eps), *runtime.ints(var.size))
    runtime.launch_elements("batchnorm", "inverse_deviation", x.dtype, var.size, args)
    return _normalise(x, mean, None, inv_std, gamma, beta)


def _backward(dy, x, y, gamma, mean, inv_std, training):
    dy, x, y, gamma, mean, inv_std = runtime.all_contiguous(dy, x, y, gamma, mean, inv_std)
    cut = ChannelParts.of(x)
    sums = runtime.empty((3, cut.channels, cut.parts), np.float64)
    cut.launch("batchnorm", "part_gradients", x.dtype, (dy, x, y, mean, sums))
    dgamma, dbeta, mean_plain, mean_weighted, rest = _per_channel(x, 5)
    channels, parts = runtime.ints(cut.channels, cut.parts)
    args = (
        sums, inv_std, dgamma, dbeta, mean_plain, mean_weighted, rest, training, channels,
        cut.length, parts,
    )  # fmt: skip
    runtime.launch_warps("batchnorm", "gradients", x.dtype, cut.channels, args)
    dx = runtime.empty(x.shape, x.dtype)
    args = (dy, x, y, mean, rest, inv_std, gamma, mean_plain, mean_weighted, dx)
    _launch_planes("input_gradient", x, args)
    return dx, dgamma, dbeta


def batchnorm_backward(dy, x, gamma, mean, inv_std, y=None):
    """See kernels.reference.batchnorm_backward."""
    check_batchnorm(x, dy, training=True, y=y, gamma=gamma, mean=mean, inv_std=inv_std)
    return _backward(dy, x, y, gamma, mean, inv_std, True)


def batchnorm_eval_backward(dy, x, gamma, mean, inv_std):
    """See kernels.reference.batchnorm_eval_backward."""
    check_batchnorm(x, dy, gamma=gamma, mean=mean, inv_std=inv_std)
    return _backward(dy, x, None, gamma, mean, inv_std, False)
