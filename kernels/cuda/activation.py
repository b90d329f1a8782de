"""Rectification on the GPU; the definitions stand in kernels.reference.activation."""

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.packs import launch_channel_packs, launch_packs
from kernels.cuda.reduce import ChannelParts
from kernels.geometry import check_dtypes, check_shape
from kernels.reference.activation import check_relu_backward


def relu(x, out=None):
    """See kernels.reference.relu. TypeError for other dtypes than float32 and float64."""
    check_dtypes(x=x, out=out)
    if out is not None:
        check_shape("out", out.shape, x.shape)
        if not out.flags.c_contiguous:
            out[...] = relu(x)
            return out
    x = runtime.contiguous(x)
    y = runtime.empty(x.shape, x.dtype) if out is None else out
    launch_packs("activation", "relu", x, (x, y))
    return y


def relu_backward(dy, y, out=None):
    """See kernels.reference.relu_backward. TypeError for other dtypes than float32 and float64."""
    check_dtypes(dy=dy, y=y, out=out)
    check_relu_backward(dy, y, out)
    if out is not None and not out.flags.c_contiguous:
        out[...] = relu_backward(dy, y)
        return out
    dx = runtime.empty(dy.shape, dy.dtype) if out is None else out
    dy, y = runtime.contiguous(dy), runtime.contiguous(y)
    launch_packs("activation", "relu_backward", dy, (dy, y, dx))
    return dx


def bias_relu(x, bias):
    """See kernels.reference.bias_relu."""
    check_dtypes(x=x, bias=bias)
    check_shape("bias", bias.shape, x.shape[1:2])
    x, bias = runtime.contiguous(x), runtime.contiguous(bias)
    y = runtime.empty(x.shape, x.dtype)
    launch_channel_packs("activation", "bias_relu", x, (x, bias, y))
    return y


def bias_relu_backward(dy, y, out=None):
    """See kernels.reference.bias_relu_backward."""
    check_dtypes(dy=dy, y=y, out=out)
    check_relu_backward(dy, y, out)
    if out is not None and not out.flags.c_contiguous:
        out[...], dbias = bias_relu_backward(dy, y)
        return out, dbias
    dx = runtime.empty(dy.shape, dy.dtype) if out is None else out
    dy, y = runtime.contiguous(dy), runtime.contiguous(y)
    cut = ChannelParts.of(dy)
    dbias = cut.launch_sums("activation", "bias_relu_backward", dy.dtype, (dy, y, dx))
    return dx, dbias


def affine_in_place(y, scale, shift, others, rectify) -> None:
    """What kernels.reference.conv2d_affine does to the convolution y, C-contiguous."""
    scale, shift, others = runtime.all_contiguous(scale, shift, others)
    args = (y, scale, shift, others, np.int32(bool(rectify)))
    launch_channel_packs("activation", "affine", y, args)
