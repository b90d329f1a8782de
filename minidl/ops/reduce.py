"""Reductions over axes: `axis` is None (all), an int or a tuple; `keepdims` as in NumPy."""

import math

import numpy as np

from minidl.array_module import get_array_module
from minidl.function import Function
from minidl.ops.elementwise import _constant, _floating
from minidl.ops.shape import broadcast_to, normalize_axes, reshape, sum_over
from minidl.tensor import Tensor


def _kept_shape(shape, axes):
    """`shape` with the reduced axes as 1."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


class Sum(Function):
    keep_inputs = False

    def __init__(self, axes, keepdims):
        self.axes = axes
        self.keepdims = keepdims

    def forward(self, x):
        self.shape = x.shape
        return sum_over(x, self.axes, self.keepdims)

    def backward(self, grad):
        return broadcast_to(reshape(grad, *_kept_shape(self.shape, self.axes)), self.shape)


class Max(Function):
    """The largest element; equal largest elements share the gradient evenly."""

    keep_outputs = True

    def __init__(self, axes, keepdims):
        self.axes = axes
        self.keepdims = keepdims

    def forward(self, x):
        return x.max(axis=self.axes, keepdims=self.keepdims)

    def backward(self, grad):
        x = self.inputs[0]._array
        kept = _kept_shape(x.shape, self.axes)
        winners = x == self.outputs[0]._array.reshape(kept)
        share = _constant(winners, grad)
        share._array /= share._array.sum(axis=self.axes, keepdims=True)
        return reshape(grad, *kept) * share


class LogSumExp(Function):
    keep_outputs = True

    def __init__(self, axes, keepdims):
        self.axes = axes
        self.keepdims = keepdims

    def forward(self, x):
        xp = get_array_module(x)
        top = x.max(axis=self.axes, keepdims=True)
        top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))  # inf - inf would be NaN
        with np.errstate(divide="ignore"):  # log 0 = -inf is right for a row of -inf
            y = xp.log(xp.exp(x - top).sum(axis=self.axes, keepdims=True)) + top
        return y if self.keepdims else y.reshape(
            [n for i, n in enumerate(x.shape) if i not in self.axes]
        )

    def backward(self, grad):
        (x,) = self.inputs
        kept = _kept_shape(x.shape, self.axes)
        y = reshape(self.outputs[0], *kept)
        return reshape(grad, *kept) * (x - y).exp()


def sum(x, axis=None, keepdims: bool = False) -> Tensor:
    """Sum of elements; integer and boolean tensors sum to int64."""
    return Sum(normalize_axes(axis, x.ndim), keepdims)(x)


def mean(x, axis=None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean; NaN of no elements."""
    x = _floating(x)
    axes = normalize_axes(axis, x.ndim)
    count = math.prod(x.shape[a] for a in axes)
    return Sum(axes, keepdims)(x) * (1.0 / count if count else math.nan)


def var(x, axis=None, keepdims: bool = False, correction: int = 1) -> Tensor:
    """Variance, the sum of squared deviations over (count - correction), in two passes.

    ValueError where there are no more than `correction` elements to reduce.
    """
    x = _floating(x)
    axes = normalize_axes(axis, x.ndim)
    count = math.prod(x.shape[a] for a in axes)
    if count <= correction:
        raise ValueError(f"var needs more than correction={correction} elements, got {count}")
    centred = x - mean(x, axes, keepdims=True)
    return Sum(axes, keepdims)(centred * centred) * (1.0 / (count - correction))


def max(x, axis=None, keepdims: bool = False) -> Tensor:
    """Largest element; equal largest elements share the gradient. ValueError of no elements."""
    axes = normalize_axes(axis, x.ndim)
    if not math.prod(x.shape[a] for a in axes):
        raise ValueError(f"max needs at least one element along axis {axis}, got shape {x.shape}")
    return Max(axes, keepdims)(x)


def logsumexp(x, axis=None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))), with the maximum taken out first. ValueError of no elements."""
    x = _floating(x)
    axes = normalize_axes(axis, x.ndim)
    if not math.prod(x.shape[a] for a in axes):
        raise ValueError(f"logsumexp needs an element along axis {axis}, got shape {x.shape}")
    return LogSumExp(axes, keepdims)(x)
