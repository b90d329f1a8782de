"""Softmax and cross-entropy on the GPU; the definitions stand in kernels.reference.loss.

Labels are not checked, since that would mean waiting for the GPU: one that is no class makes the
loss and the gradients of its sample NaN.
"""

import math

from kernels.cuda import runtime
from kernels.reference.loss import check_cross_entropy, is_labels

# Of the one block that adds up what all samples have.
_ADDING_THREADS = 1024


def _launch(kernel, arrays, logits, target, result, smoothing, ignore_index):
    """A warp a sample."""
    positions, samples = math.prod(logits.shape[2:]), _samples(logits)
    weights, labels = (None, target) if is_labels(target) else (target, None)
    args = (
        *arrays, logits, weights, labels, result, *runtime.ints(logits.shape[1], positions),
        float(smoothing), int(ignore_index), samples,
    )  # fmt: skip
    runtime.launch_warps("loss", kernel, logits.dtype, samples, args)


def _launch_adding(kernel, array, logits, target, *numbers):
    """Make one number of `array` and the labels of all samples."""
    y = runtime.empty((), logits.dtype)
    labels = target if is_labels(target) else None
    args = array, labels, y, *numbers, _samples(logits)
    runtime.launch("loss", kernel, logits.dtype, 1, _ADDING_THREADS, args)
    return y


def _samples(logits):
    return logits.shape[0] * math.prod(logits.shape[2:])


def softmax_cross_entropy(logits, target, reduction="none", smoothing=0.0, ignore_index=-100):
    """See kernels.reference.softmax_cross_entropy."""
    check_cross_entropy(logits, target, reduction)
    logits, target = runtime.contiguous(logits), runtime.contiguous(target)
    losses = runtime.empty((logits.shape[0], *logits.shape[2:]), logits.dtype)
    _launch("softmax_cross_entropy", (), logits, target, losses, smoothing, ignore_index)
    if reduction == "none":
        return losses
    mean = reduction == "mean"
    return _launch_adding("total_loss", losses, logits, target, mean, int(ignore_index))


def softmax_cross_entropy_backward(
    grad, logits, target, reduction="none", smoothing=0.0, ignore_index=-100
):
    """See kernels.reference.softmax_cross_entropy_backward."""
    check_cross_entropy(logits, target, reduction, grad)
    grad, logits, target = runtime.all_contiguous(grad, logits, target)
    if reduction == "mean":
        grad = _launch_adding("mean_grad", grad, logits, target, int(ignore_index))
    dlogits = runtime.empty(logits.shape, logits.dtype)
    shared = reduction != "none"
    _launch(
        "softmax_cross_entropy_backward", (grad, shared), logits, target, dlogits, smoothing,
        ignore_index,
    )  # fmt: skip
    return dlogits
