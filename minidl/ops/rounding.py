"""Matrix products of operands rounded to float16 and summed in float32; `minidl.amp` turns them on.

An operand is rounded before the product, and the gradient that comes back to the product before
those by its operands, which are products, too. Arrays stay float32: what is rounded has room in
float16, that is all.
"""

import numpy as np

from minidl.function import Function


class _Mode:
    active = False


mode = _Mode()


def is_rounded() -> bool:
    """Whether products round their operands now."""
    return mode.active


class Round(Function):
    """x rounded to the nearest float16, infinite beyond 65504; its gradient is that of x."""

    keep_inputs = False

    def forward(self, x):
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(x.dtype)

    def backward(self, grad):
        return grad


class RoundGradient(Function):
    """x, with its gradient rounded to float16."""

    keep_inputs = False

    def forward(self, x):
        return x

    def backward(self, grad):
        return Round()(grad)


def product_operands(*tensors):
    """The operands of a product as `minidl.amp.autocast` wants them: float32 ones rounded."""
    if not mode.active:
        return tensors
    return tuple(Round()(t) if t.dtype == np.float32 else t for t in tensors)


def product_result(y):
    """The result of a product whose gradient `minidl.amp.autocast` wants rounded."""
    return RoundGradient()(y) if mode.active and y.dtype == np.float32 else y
