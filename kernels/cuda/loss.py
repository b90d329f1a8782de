"""Softmax and cross-entropy on the GPU; the definitions stand in kernels.reference.loss.

Labels are not checked, since that would mean waiting for the GPU: one that is no class is ignored
like those that are meant to be, but counts in the mean.
"""

import math

import numpy as np

from kernels.cuda import runtime
from kernels.reference.loss import check_cross_entropy, is_labels


def _launch(kernel, arrays, logits, target, result, smoothing, ignore_index):
    """A warp a sample."""
    positions = math.prod(logits.shape[2:])
    samples = logits.shape[0] * positions
    target = runtime.contiguous(target)
    weights, labels = (None, target) if is_labels(target) else (target, None)
    args = (
        *arrays, logits, weights, labels, result, *runtime.ints(logits.shape[1], positions),
        float(smoothing), int(ignore_index), samples,
    )  # fmt: skip
    runtime.launch_warps("loss", kernel, logits.dtype, samples, args)


def _scaled(number, target, reduction, ignore_index):
    """`number`, or in the mean its part for each sample that counts: on the GPU, unseen here."""
    if reduction != "mean":
        return number
    counted = (target != ignore_index).sum() if is_labels(target) else target[:, 0].size
    part = runtime.empty((), number.dtype)
    with np.errstate(all="ignore"):
        part[...] = number / counted
    return part


def softmax_cross_entropy(logits, target, reduction="none", smoothing=0.0, ignore_index=-100):
    """See kernels.reference.softmax_cross_entropy."""
    check_cross_entropy(logits, target, reduction)
    logits = runtime.contiguous(logits)
    losses = runtime.empty((logits.shape[0], *logits.shape[2:]), logits.dtype)
    _launch("softmax_cross_entropy", (), logits, target, losses, smoothing, ignore_index)
    if reduction == "none":
        return losses
    return _scaled(losses.sum(), target, reduction, ignore_index)


def softmax_cross_entropy_backward(
    grad, logits, target, reduction="none", smoothing=0.0, ignore_index=-100
):
    """See kernels.reference.softmax_cross_entropy_backward."""
    check_cross_entropy(logits, target, reduction, grad)
    shared = reduction != "none"
    grad = runtime.contiguous(_scaled(grad, target, reduction, ignore_index))
    logits = runtime.contiguous(logits)
    dlogits = runtime.empty(logits.shape, logits.dtype)
    _launch(
        "softmax_cross_entropy_backward", (grad, shared), logits, target, dlogits, smoothing,
        ignore_index,
    )  # fmt: skip
    return dlogits
