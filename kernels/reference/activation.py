"""Rectification: max(x, 0), its gradient, and the same fused with a bias (Nair and Hinton 2010)."""

import numpy as np

from kernels.geometry import check_dtypes, check_shape


def relu(x, out=None):
    """max(x, 0), NaN staying NaN; written to `out`, which may be x itself, if one is given."""
    return np.maximum(x, x.dtype.type(0), out=out)


def relu_backward(dy, y, out=None):
    """dx from dy and y = relu(x): dy where y > 0, else 0. ValueError where shapes differ.

    Written to `out`, which may be dy itself, if one is given.
    """
    check_relu_backward(dy, y, out)
    dx = np.empty(dy.shape, dy.dtype) if out is None else out
    dx[...] = np.where(y > 0, dy, dy.dtype.type(0))
    return dx


def check_relu_backward(dy, y, out=None):
    """Check the shapes of a `relu_backward` or `bias_relu_backward`."""
    check_shape("dy", dy.shape, y.shape)
    if out is not None:
        check_shape("out", out.shape, y.shape)


def bias_relu(x, bias):
    """max(x + bias, 0): x (N, C, ...), bias (C,). Raises ValueError for another bias shape."""
    check_dtypes(x=x, bias=bias)
    check_shape("bias", bias.shape, x.shape[1:2])
    return relu(x + bias.reshape(-1, *(1,) * (x.ndim - 2)))


def bias_relu_backward(dy, y, out=None):
    """(dx, dbias) from dy and the output y of `bias_relu`; dbias sums over all but channels.

    dx is written to `out`, which may be dy itself, if one is given.
    """
    dx = relu_backward(dy, y, out)
    return dx, dx.sum(axis=(0, *range(2, dx.ndim)))
