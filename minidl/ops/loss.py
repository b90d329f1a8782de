"""Losses on logits, computed stably: the maximum is subtracted before anything is exponentiated."""

import math

import numpy as np

from kernels.dispatch import kernels_for
from minidl.array_module import get_array_module, is_array, to_device
from minidl.function import Function, check_one_device
from minidl.ops.elementwise import _floating
from minidl.ops.shape import normalize_axes
from minidl.tensor import Tensor, is_grad_enabled

_REDUCTIONS = ("mean", "sum", "none")


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

    `target` holds the weight of every class (N, C, ...), smoothing included. With a `factor`, the
    result is the sum of all losses times it: one node of the graph rather than three. Where the
    backward itself is to be differentiated, it runs as a composition of ops.
    """

    buffers = ("target",)

    def __init__(self, target, factor=None):
        self.target = target
        self.factor = factor

    def forward(self, logits):
        losses = kernels_for(logits).softmax_cross_entropy(logits, self.target)
        return losses if self.factor is None else losses.sum() * logits.dtype.type(self.factor)

    def backward(self, grad):
        (logits,) = self.inputs
        if is_grad_enabled():
            return self._composed(grad, logits)
        array = grad._array
        if self.factor is not None:
            xp, shape = get_array_module(array), (logits.shape[0], *logits.shape[2:])
            factor = array.dtype.type(self.factor)
            array = xp.ascontiguousarray(xp.broadcast_to(array * factor, shape))
        return Tensor._wrap(
            kernels_for(array).softmax_cross_entropy_backward(array, logits._array, self.target)
        )

    def _composed(self, grad, logits):
        target = Tensor._wrap(self.target)
        total = Tensor._wrap(self.target.sum(axis=1, keepdims=True))
        if self.factor is None:
            grad = grad.reshape(grad.shape[0], 1, *grad.shape[1:])
        else:
            grad = grad * self.factor
        return grad * (softmax(logits, axis=1) * total - target)


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
    that requires grad: it receives none.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if logits.ndim < 2 or not logits.shape[1]:
        raise ValueError(f"logits must have shape (N, C, ...), got {logits.shape}")
    if isinstance(target, Tensor) and target.requires_grad:
        raise ValueError("target must not require grad, which would not reach it: detach() it")
    logits = _floating(logits)
    if isinstance(target, Tensor):
        target = target._array
        check_one_device("cross_entropy", (logits._array, target))
    elif not is_array(target):
        target = np.asarray(target)
    if target.dtype.kind == "f":
        weights = _check_probabilities(target, logits)
        counted = weights.size // max(weights.shape[1], 1)
    else:
        weights, counted = _one_hot(target, logits, ignore_index)
    if label_smoothing:
        classes = logits.shape[1]
        mass = weights.sum(axis=1, keepdims=True)
        weights *= 1 - label_smoothing
        weights += mass * (label_smoothing / classes)
    mean = 1.0 / counted if counted else float("nan")
    factor = {"none": None, "sum": 1.0, "mean": mean}[reduction]
    return CrossEntropy(weights, factor)(logits)


def _check_probabilities(target, logits):
    if target.shape != logits.shape:
        raise ValueError(f"target must have the logits' shape {logits.shape}, got {target.shape}")
    return to_device(target.astype(logits.dtype), logits.device)


def _one_hot(labels, logits, ignore_index):
    """(weights in the logits' shape, number of labels that count)."""
    expected = logits.shape[:1] + logits.shape[2:]
    if labels.shape != expected:
        raise ValueError(f"target must have shape {expected}, got {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"target must hold integer labels or probabilities, got {labels.dtype}")
    # Checked where they are, mostly on the CPU: asking the GPU would mean waiting for it.
    labels = labels.astype(np.int64)
    classes = logits.shape[1]
    counts = labels != ignore_index
    wrong = counts & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise ValueError(
            f"target must hold labels in [0, {classes}), got {labels[wrong].ravel()[0]}"
        )
    # Where the ones lie: writing them is less work than comparing every class with the label.
    positions = max(1, math.prod(labels.shape[1:]))
    sample = get_array_module(labels).arange(labels.size)
    images, places = sample // positions, sample % positions
    ones = ((images * classes + labels.ravel()) * positions + places)[counts.ravel()]
    weights = get_array_module(logits._array).zeros(logits.shape, logits.dtype)
    weights.reshape(-1)[to_device(ones, logits.device)] = 1
    return weights, int(counts.sum())


def mse_loss(x: Tensor, y, reduction: str = "mean") -> Tensor:
    """(x - y) ** 2, averaged, summed or as it is. ValueError where the shapes differ."""
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    shape = getattr(y, "shape", ())
    if shape != x.shape:
        raise ValueError(f"y must have x's shape {x.shape}, got {shape}")
    difference = x - y
    squares = difference * difference
    if reduction == "none":
        return squares
    return squares.mean() if reduction == "mean" else squares.sum()


