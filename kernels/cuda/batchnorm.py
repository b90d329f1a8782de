"""Batch normalisation on the GPU; the definitions stand in kernels.reference.batchnorm."""

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.packs import launch_channel_packs
from kernels.cuda.reduce import ChannelParts
from kernels.reference.batchnorm import check_affine, check_batchnorm, check_batchnorm_train

# Packs of a long channel that a thread holds, as batchnorm.cu has it.
LONG_SHARE = 13
# Of a block whose threads hold a long channel, or the values of x and those of dy.
FEW_THREADS = 512


def per_channel(x, count) -> list:
    """`count` arrays (C,) in x's dtype."""
    return [runtime.empty(x.shape[1:2], x.dtype) for _ in range(count)]


def _normalise(x, mean, rest, inv_std, gamma, beta, others=None, rectify=False):
    y = runtime.empty(x.shape, x.dtype)
    args = (x, mean, rest, inv_std, gamma, beta, others, np.int32(bool(rectify)), y)
    launch_channel_packs("batchnorm", "normalise", x, args)
    return y


def _launch_moments(reduce, join, x, args):
    """Reduce the parts of every channel of x by one kernel, and join them by another."""
    cut = ChannelParts.of(x)
    means, squares = runtime.empty((2, cut.channels, cut.parts), np.float64)
    cut.launch("batchnorm", reduce, x.dtype, (x, means, squares))
    channels, part, parts = runtime.ints(cut.channels, cut.part, cut.parts)
    args = (means, squares, *args, channels, cut.length, part, parts)
    runtime.launch_warps("batchnorm", join, x.dtype, cut.channels, args)


def batchnorm_train(x, gamma, beta, eps, others=None, rectify=False, running=None):
    """See kernels.reference.batchnorm_train."""
    check_batchnorm_train(x, gamma, beta, others, running)
    x, gamma, beta, others = runtime.all_contiguous(x, gamma, beta, others)
    *moving, momentum = (None, None, 0.0) if running is None else running
    moved = runtime.all_contiguous(*moving)
    mean, var, inv_std = results = per_channel(x, 3)
    statistics = (*results, *moved, float(1 - momentum), float(momentum), np.float64(eps))
    for kernel, cut in (
        ("normalise_channels", ChannelParts.of(x)),
        ("normalise_long_channels", ChannelParts.of(x, LONG_SHARE, FEW_THREADS)),
    ):
        if cut.parts == 1:
            y = runtime.empty(x.shape, x.dtype)
            args = (x, gamma, beta, others, np.int32(bool(rectify)), y, *statistics)
            cut.launch("batchnorm", kernel, x.dtype, args)
            break
    else:
        (rest,) = per_channel(x, 1)
        _launch_moments("part_moments", "moments", x, (rest, *statistics))
        y = _normalise(x, mean, rest, inv_std, gamma, beta, others, rectify)
    for given, array in zip(moving, moved, strict=True):
        if array is not given:
            given[...] = array
    return y, mean, var, inv_std


def batchnorm_statistics(x):
    """See kernels.reference.batchnorm_statistics."""
    check_batchnorm(x)
    if x.size == 0:
        raise ValueError(f"x must have a value a channel, got shape {x.shape}")
    mean, var = (runtime.empty(x.shape[1:2], np.float64) for _ in range(2))
    _launch_moments("exact_part_moments", "statistics", runtime.contiguous(x), (mean, var))
    return mean, var


def batchnorm_eval(x, gamma, beta, mean, var, eps):
    """See kernels.reference.batchnorm_eval."""
    check_batchnorm(x, gamma=gamma, beta=beta, mean=mean, var=var)
    x, gamma, beta, mean, var = runtime.all_contiguous(x, gamma, beta, mean, var)
    (inv_std,) = per_channel(x, 1)
    args = (var, inv_std, np.float64(eps), *runtime.ints(var.size))
    runtime.launch_elements("batchnorm", "inverse_deviation", x.dtype, var.size, args)
    return _normalise(x, mean, None, inv_std, gamma, beta)


def batchnorm_affine(gamma, beta, mean, var, eps):
    """See kernels.reference.batchnorm_affine."""
    check_affine(gamma, beta, mean, var)
    given = runtime.all_contiguous(gamma, beta, mean, var)
    scale, shift = (runtime.empty(gamma.shape, gamma.dtype) for _ in range(2))
    args = (*given, scale, shift, np.float64(eps), *runtime.ints(gamma.size))
    runtime.launch_elements("batchnorm", "affine", gamma.dtype, gamma.size, args)
    return scale, shift
