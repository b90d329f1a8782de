"""Softmax and cross-entropy in one, on logits, of which the largest is taken off first.

With the logits z_c of one sample and the weight t_c of every class, T = sum t,

    log softmax(z)_c = z_c - max z - log sum_j exp(z_j - max z)
    loss = -sum_c t_c log softmax(z)_c        d loss / d z = T softmax(z) - t

Classes lie on axis 1: logits and target (N, C, ...), losses (N, ...).

Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs" (1990);
Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions" (2021),
algorithm 3.1.
"""

import numpy as np

from kernels.geometry import check_channels, check_dtypes, check_shape


def softmax_cross_entropy(logits, target):
    """The loss of every sample, (N, ...), from logits and the weights `target`, both (N, C, ...).

    A class of weight 0 adds nothing, whatever its logit, even -inf. Raises TypeError for mixed
    dtypes or other than float32 and float64, ValueError for shapes that differ or no classes.
    """
    check_cross_entropy(logits, target)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    terms = np.where(target == 0, logits.dtype.type(0), log_total - shifted) * target
    return terms.sum(axis=1)


def softmax_cross_entropy_backward(grad, logits, target):
    """The gradient by the logits, (N, C, ...), from that by the losses, `grad` (N, ...).

    Raises as `softmax_cross_entropy`, and ValueError for another shape of grad.
    """
    check_cross_entropy(logits, target, grad)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = e / e.sum(axis=1, keepdims=True)
    return np.expand_dims(grad, 1) * (softmax * target.sum(axis=1, keepdims=True) - target)


def check_cross_entropy(logits, target, grad=None) -> None:
    """Check the arguments of a `softmax_cross_entropy` or its gradient."""
    check_channels(logits)
    check_dtypes(logits=logits, target=target, grad=grad)
    check_shape("target", target.shape, logits.shape)
    if not logits.shape[1]:
        raise ValueError(f"logits must have a class along axis 1, got shape {logits.shape}")
    if grad is not None:
        check_shape("grad", grad.shape, (logits.shape[0], *logits.shape[2:]))
