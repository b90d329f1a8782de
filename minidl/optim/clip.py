"""Limiting the size of gradients."""

import math

import numpy as np

from minidl.array_module import get_array_module
from minidl.tensor import Tensor


def clip_grad_norm_(parameters, max_norm: float, error_if_nonfinite: bool = False) -> float:
    """Scale all gradients so that their joint L2 norm is at most `max_norm`; returns the old norm.

    Pascanu, Mikolov and Bengio 2013, algorithm 1. `parameters`: tensors, or one. Raises ValueError
    for a `max_norm` not above 0, or a norm that is not finite if `error_if_nonfinite`.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [p.grad for p in parameters if p.grad is not None]
    total = 0.0  # on the gradients' device: asking a GPU for each would mean waiting for each
    for grad in grads:
        array = grad._array
        # In float32 the squares alone would overflow, or vanish.
        total = total + get_array_module(array).square(array, dtype=np.float64).sum()
    norm = math.sqrt(float(total))
    if error_if_nonfinite and not math.isfinite(norm):
        raise ValueError(f"the norm of the gradients must be finite, got {norm}")
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        for grad in grads:
            with grad.mutate() as array:
                array *= scale
    return norm
