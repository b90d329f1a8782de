"""Softmax and cross-entropy on the GPU; the definitions stand in kernels.reference.loss."""

import math

from kernels.cuda import runtime
from kernels.reference.loss import check_cross_entropy


def _launch(kernel, arrays, logits):
    """A warp a sample; the kernel takes the geometry of the logits after `arrays`."""
    positions = math.prod(logits.shape[2:])
    samples = logits.shape[0] * positions
    args = (*arrays, *runtime.ints(logits.shape[1], positions), samples)
    runtime.launch_warps("loss", kernel, logits.dtype, samples, args)


def softmax_cross_entropy(logits, target):
    """See kernels.reference.softmax_cross_entropy."""
    check_cross_entropy(logits, target)
    logits, target = runtime.contiguous(logits), runtime.contiguous(target)
    losses = runtime.empty((logits.shape[0], *logits.shape[2:]), logits.dtype)
    _launch("softmax_cross_entropy", (logits, target, losses), logits)
    return losses


def softmax_cross_entropy_backward(grad, logits, target):
    """See kernels.reference.softmax_cross_entropy_backward."""
    check_cross_entropy(logits, target, grad)
    grad, logits, target = (runtime.contiguous(a) for a in (grad, logits, target))
    dlogits = runtime.empty(logits.shape, logits.dtype)
    arrays = (grad, logits, target, dlogits)
    _launch("softmax_cross_entropy_backward", arrays, logits)
    return dlogits
