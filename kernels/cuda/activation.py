"""Rectification on the GPU; the definitions stand in kernels.reference.activation."""

import math

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.reduce import ChannelParts, sum_parts
from kernels.geometry import check_dtypes, check_shape


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
    runtime.launch_elements("activation", "relu", x.dtype, x.size, (x, y, x.size))
    return y


def relu_backward(dy, y):
    """See kernels.reference.relu_backward. TypeError for other dtypes than float32 and float64."""
    check_dtypes(dy=dy, y=y)
    check_shape("dy", dy.shape, y.shape)
    dy, y = runtime.contiguous(dy), runtime.contiguous(y)
    dx = runtime.empty(dy.shape, dy.dtype)
    runtime.launch_elements("activation", "relu_backward", dy.dtype, dy.size, (dy, y, dx, dy.size))
    return dx


def bias_relu(x, bias):
    """See kernels.reference.bias_relu."""
    check_dtypes(x=x, bias=bias)
    check_shape("bias", bias.shape, x.shape[1:2])
    x, bias = runtime.contiguous(x), runtime.contiguous(bias)
    y = runtime.empty(x.shape, x.dtype)
    planes, positions = x.shape[0] * x.shape[1], math.prod(x.shape[2:])
    args = (x, bias, y, *runtime.ints(x.shape[1], positions), planes)
    runtime.launch_planes("activation", "bias_relu", x.dtype, planes, positions, args)
    return y


def bias_relu_backward(dy, y):
    """See kernels.reference.bias_relu_backward."""
    check_dtypes(dy=dy, y=y)
    check_shape("dy", dy.shape, y.shape)
    dy, y = runtime.contiguous(dy), runtime.contiguous(y)
    dx = runtime.empty(dy.shape, dy.dtype)
    cut = ChannelParts.of(dy)
    sums = runtime.empty((cut.channels, cut.parts), np.float64)
    cut.launch("activation", "bias_relu_backward", dy.dtype, (dy, y, dx, sums))
    return dx, sum_parts(sums, cut, dy.dtype)


def affine_in_place(y, scale, shift, others, rectify) -> None:
    """What kernels.reference.conv2d_affine does to the convolution y, C-contiguous."""
    scale, shift, others = runtime.all_contiguous(scale, shift, others)
    planes, positions = y.shape[0] * y.shape[1], math.prod(y.shape[2:])
    args = (
        y, scale, shift, others, np.int32(bool(rectify)), *runtime.ints(y.shape[1], positions),
        planes,
    )  # fmt: skip
    runtime.launch_planes("activation", "affine", y.dtype, planes, positions, args)
