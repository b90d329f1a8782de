"""Gradients of batch normalisation on the GPU; see kernels.reference.batchnorm."""

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.batchnorm import FEW_THREADS, per_channel
from kernels.cuda.packs import launch_channel_packs
from kernels.cuda.reduce import ChannelParts
from kernels.reference.batchnorm import check_batchnorm


def _backward(dy, x, y, gamma, mean, inv_std, training, out=None):
    dx = runtime.empty(x.shape, x.dtype) if out is None else out
    dy, x, y, gamma, mean, inv_std = runtime.all_contiguous(dy, x, y, gamma, mean, inv_std)
    cut = ChannelParts.of(x, most=FEW_THREADS)
    dgamma, dbeta = per_channel(x, 2)
    if cut.parts == 1:
        args = (dy, x, y, gamma, mean, inv_std, training, dx, dgamma, dbeta)
        cut.launch("norm_grad", "channel_gradients", x.dtype, args)
        return dx, dgamma, dbeta
    sums = runtime.empty((3, cut.channels, cut.parts), np.float64)
    cut.launch("norm_grad", "part_gradients", x.dtype, (dy, x, y, mean, sums))
    mean_plain, mean_weighted, rest = means = per_channel(x, 3)
    channels, parts = runtime.ints(cut.channels, cut.parts)
    args = (sums, inv_std, training, dgamma, dbeta, *means, channels, cut.length, parts)
    runtime.launch_warps("norm_grad", "gradients", x.dtype, cut.channels, args)
    args = (dy, x, y, mean, rest, inv_std, gamma, mean_plain, mean_weighted, dx)
    launch_channel_packs("norm_grad", "input_gradient", x, args)
    return dx, dgamma, dbeta


def batchnorm_backward(dy, x, gamma, mean, inv_std, y=None, out=None):
    """See kernels.reference.batchnorm_backward."""
    check_batchnorm(x, dy, training=True, y=y, out=out, gamma=gamma, mean=mean, inv_std=inv_std)
    if not (out is None or out.flags.c_contiguous):
        out[...], *sums = batchnorm_backward(dy, x, gamma, mean, inv_std, y)
        return out, *sums
    return _backward(dy, x, y, gamma, mean, inv_std, True, out)


def batchnorm_eval_backward(dy, x, gamma, mean, inv_std):
    """See kernels.reference.batchnorm_eval_backward."""
    check_batchnorm(x, dy, gamma=gamma, mean=mean, inv_std=inv_std)
    return _backward(dy, x, None, gamma, mean, inv_std, False)
