"""Softmax and cross-entropy in one, on logits, of which the largest is taken off first.

With the logits z_c of one sample and the weight t_c of every class, T = sum t,

    log softmax(z)_c = z_c - max z - log sum_j exp(z_j - max z)
    loss = -sum_c t_c log softmax(z)_c        d loss / d z = T softmax(z) - t

Classes lie on axis 1: logits and weights (N, C, ...), losses (N, ...). A label gives its class the
weight 1 and the others 0.

Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs" (1990);
Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions" (2021),
algorithm 3.1.
"""

import math

import numpy as np

from kernels.geometry import check_dtypes, check_shape

REDUCTIONS = ("mean", "sum", "none")


def softmax_cross_entropy(logits, target, reduction="none", smoothing=0.0, ignore_index=-100):
    """The loss of every sample, (N, ...), or their "sum" or "mean", ().

    `target`: the weight of every class, (N, C, ...), or int64 labels, (N, ...), of which those
    equal to `ignore_index` add nothing and do not count in the mean (NaN if none does).
    `smoothing` spreads that part of a sample's weight evenly over all classes. A class of weight 0
    adds nothing, whatever its logit, even -inf.

    Raises TypeError for mixed dtypes or other than float32, float64 and int64 labels, ValueError
    for shapes that differ, no classes, another reduction, or a label outside of [0, C).
    """
    check_cross_entropy(logits, target, reduction)
    losses = weighted_losses(logits, class_weights(logits, target, smoothing, ignore_index))
    if reduction == "none":
        return losses
    return np.asarray(losses.sum() * sample_factor(target, reduction, ignore_index))


def softmax_cross_entropy_backward(
    grad, logits, target, reduction="none", smoothing=0.0, ignore_index=-100
):
    """The gradient by the logits, (N, C, ...), from that by the result, `grad`.

    Raises as `softmax_cross_entropy`, and ValueError for another shape of grad.
    """
    check_cross_entropy(logits, target, reduction, grad)
    weights = class_weights(logits, target, smoothing, ignore_index)
    grad = grad * logits.dtype.type(sample_factor(target, reduction, ignore_index))
    grad = np.broadcast_to(grad, (logits.shape[0], *logits.shape[2:]))
    return weighted_losses_backward(grad, logits, weights)


def weighted_losses(logits, weights):
    """The loss of every sample, (N, ...), from logits and the weights of classes (N, C, ...).

    A class of weight 0 adds nothing, whatever its logit, even -inf.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    terms = np.where(weights == 0, logits.dtype.type(0), log_total - shifted) * weights
    return terms.sum(axis=1)


def weighted_losses_backward(grad, logits, weights):
    """The gradient by the logits, (N, C, ...), from that by the losses, `grad` (N, ...)."""
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = e / e.sum(axis=1, keepdims=True)
    return np.expand_dims(grad, 1) * (softmax * weights.sum(axis=1, keepdims=True) - weights)


def class_weights(logits, target, smoothing, ignore_index):
    """What every class of every sample weighs, (N, C, ...), as `softmax_cross_entropy` takes it."""
    weights = target
    if is_labels(target):
        check_labels(target, logits.shape[1], ignore_index)
        classes = np.arange(logits.shape[1]).reshape(-1, *[1] * (logits.ndim - 2))
        labels = np.expand_dims(target, 1)
        weights = ((labels == classes) & (labels != ignore_index)).astype(logits.dtype)
    if smoothing:
        mass = weights.sum(axis=1, keepdims=True)
        weights = weights * (1 - smoothing) + mass * (smoothing / logits.shape[1])
    return weights


def sample_factor(target, reduction, ignore_index) -> float:
    """What `reduction` multiplies every loss by."""
    if reduction != "mean":
        return 1.0
    labels = is_labels(target)
    counted = int((target != ignore_index).sum()) if labels else target[:, 0].size
    return 1 / counted if counted else math.nan


def is_labels(target) -> bool:
    """Whether a target is labels, and not weights of classes."""
    return target.dtype.kind in "iu"


def check_labels(labels, classes: int, ignore_index: int) -> None:
    """ValueError unless all labels are in [0, classes) or equal to `ignore_index`."""
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if wrong.any():
        raise wrong_label(labels[wrong][0], classes)


def wrong_label(label: int, classes: int) -> ValueError:
    """The error of a label that is outside of [0, classes)."""
    return ValueError(f"target must hold labels in [0, {classes}), got {label}")


def check_cross_entropy(logits, target, reduction, grad=None) -> None:
    """Check the arguments of a `softmax_cross_entropy` or its gradient, save for the labels."""
    shape = logits.shape
    if len(shape) < 2 or not shape[1]:
        raise ValueError(f"logits must have shape (N, C, ...) and a class on axis 1, got {shape}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    labels, samples = is_labels(target), shape[:1] + shape[2:]
    if labels and target.dtype != np.int64:
        raise TypeError(f"target must hold int64 labels, got {target.dtype}")
    check_dtypes(logits=logits, target=None if labels else target, grad=grad)
    check_shape("target", target.shape, samples if labels else shape)
    if grad is not None:
        check_shape("grad", grad.shape, samples if reduction == "none" else ())
