"""Inverted dropout; the mask is replayed in backward from (seed, step), never stored."""

from kernels.dispatch import kernels_for
from minidl import random
from minidl.function import Function
from minidl.tensor import Tensor


class Dropout(Function):
    keep_inputs = False

    def __init__(self, p, seed, step):
        self.settings = (p, seed, step)

    def forward(self, x):
        return kernels_for(x).dropout(x, *self.settings)

    def backward(self, grad):
        return Dropout(*self.settings)(grad)


def dropout(x, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero each element with probability p and divide the rest by 1 - p; identity in evaluation.

    Srivastava et al. 2014, in the inverted form that needs no scaling at test time. The mask is a
    function of `minidl.manual_seed`'s seed, the count of dropouts since, and the element's index.
    Raises ValueError for p outside [0, 1), TypeError for an x that is not floating point.
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must be in [0, 1), got {p}")
    if x.dtype.kind != "f":
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if not training or p == 0:
        return x
    return Dropout(p, *random.next_dropout_step())(x)
