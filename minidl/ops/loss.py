"""Losses on logits, computed stably: the maximum is subtracted before anything is exponentiated."""

import numpy as np

from kernels.dispatch import kernels_for
from kernels.reference.loss import (
    REDUCTIONS,
    check_cross_entropy,
    check_labels,
    class_weights,
    is_labels,
    sample_factor,
)
from minidl.array_module import get_array_module, is_array, is_recording, to_device
from minidl.function import Function, check_one_device
from minidl.ops.elementwise import _floating
from minidl.ops.shape import normalize_axes
from minidl.tensor import Tensor, is_grad_enabled


class LogSoftmax(Function):
    keep_inputs = False
    keep_outputs = True

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        xp = get_array_module(x)
        shifted = x - x.max(axis=self.axis, keepdims=True)
        return shifted - xp.log(xp.exp(shifted).sum(axis=self.axis, keepdims=True))

    def backward(self, grad):
        (y,) = self.outputs
        return grad - y.exp() * grad.sum(axis=self.axis, keepdims=True)


class Softmax(Function):
    keep_inputs = False
    keep_outputs = True

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        xp = get_array_module(x)
        e = xp.exp(x - x.max(axis=self.axis, keepdims=True))
        e /= e.sum(axis=self.axis, keepdims=True)
        return e

    def backward(self, grad):
        (y,) = self.outputs
        product = grad * y
        return product - y * product.sum(axis=self.axis, keepdims=True)


class CrossEntropy(Function):
    """sum_c of -t_c log softmax(z)_c along axis 1, with a gradient of (sum t) softmax(z) - t.

    The kernel knows targets, reductions and label smoothing. Where the backward itself is to be
    differentiated, it runs as a composition of ops.
    """

    buffers = ("target",)

    def __init__(self, target, reduction, smoothing, ignore_index):
        self.target = target
        self.settings = reduction, smoothing, ignore_index

    def forward(self, logits):
        return kernels_for(logits).softmax_cross_entropy(logits, self.target, *self.settings)

    def backward(self, grad):
        (logits,) = self.inputs
        if is_grad_enabled():
            return self._composed(grad, logits)
        array = grad._array
        return Tensor._wrap(
            kernels_for(array).softmax_cross_entropy_backward(
                array, logits._array, self.target, *self.settings
            )
        )

    def _composed(self, grad, logits):
        reduction, smoothing, ignore_index = self.settings
        target = to_device(self.target, "cpu")
        weights = class_weights(logits, target, smoothing, ignore_index)
        total = Tensor(weights.sum(axis=1, keepdims=True)).to(logits.device)
        weights = Tensor(weights).to(logits.device)
        if reduction == "none":
            grad = grad.reshape(grad.shape[0], 1, *grad.shape[1:])
        else:
            grad = grad * sample_factor(target, reduction, ignore_index)
        return grad * (softmax(logits, axis=1) * total - weights)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`; integers count as float32. ValueError of no elements."""
    return Softmax(_axis(axis, x))(_floating(x))


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - logsumexp(x) along `axis`; integers count as float32. ValueError of no elements."""
    return LogSoftmax(_axis(axis, x))(_floating(x))


def _axis(axis, x):
    (axis,) = normalize_axes(axis, x.ndim)
    if not x.shape[axis]:
        raise ValueError(f"softmax needs an element along axis {axis}, got shape {x.shape}")
    return axis


def cross_entropy(
    logits: Tensor,
    target,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy of softmax(logits) with the target distribution, in nats.

    logits (N, C) or (N, C, d1, ...). `target`: integer labels (N, d1, ...), of which those equal
    to `ignore_index` neither count nor receive a gradient; or class probabilities in the logits'
    shape. Label smoothing e moves e of the weight evenly over all C classes (Szegedy et al. 2016,
    section 7). "mean" divides by the number of labels that count (NaN if none), "sum" adds,
    "none" returns one loss a label. A target that is an array may be on another device.

    Raises ValueError for a label outside [0, C), shapes that do not fit, a bad option, or a target
    that requires grad: it receives none. Replays of a recording (`minidl.capture`) check no labels:
    one outside makes the loss NaN there.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    logits = _floating(logits)
    if isinstance(target, Tensor):
        if target.requires_grad:
            raise ValueError("target must not require grad, which would not reach it: detach() it")
        target = target._array
        check_one_device("cross_entropy", (logits._array, target))
    elif not is_array(target):
        target = np.asarray(target)
    if target.dtype.kind not in "fiu":
        raise ValueError(f"target must hold integer labels or probabilities, got {target.dtype}")
    target = target.astype(logits.dtype if target.dtype.kind == "f" else np.int64)  # a copy
    if logits.device != "cpu":
        check_cross_entropy(logits, target, reduction)
        # Labels are checked where they are, mostly on the CPU: to ask the GPU is to wait for it,
        # which a recording cannot.
        if is_labels(target) and not is_recording():
            check_labels(target, logits.shape[1], ignore_index)
        target = to_device(target, logits.device)
    return CrossEntropy(target, reduction, label_smoothing, ignore_index)(logits)


def mse_loss(x: Tensor, y, reduction: str = "mean") -> Tensor:
    """(x - y) ** 2, averaged, summed or as it is. ValueError where the shapes differ."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    shape = getattr(y, "shape", ())
    if shape != x.shape:
        raise ValueError(f"y must have x's shape {x.shape}, got {shape}")
    difference = x - y
    squares = difference * difference
    if reduction == "none":
        return squares
    return squares.mean() if reduction == "mean" else squares.sum()


