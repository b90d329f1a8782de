"""The fully connected layer."""

import math

import numpy as np

from minidl import ops
from minidl.nn import init
from minidl.nn.module import Module, Parameter


def positive_int(name: str, value) -> int:
    """`value` if it is a positive int, else ValueError naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def new_weights(weight_shape, bias_size: int, fan_in: int, bias: bool):
    """(weight, bias or None), float32, uniform in +-1/sqrt(fan_in) as PyTorch draws them."""
    bound = 1 / math.sqrt(fan_in)
    weight = Parameter(np.empty(weight_shape, np.float32))
    init.uniform_(weight, -bound, bound)
    if not bias:
        return weight, None
    return weight, init.uniform_(Parameter(np.empty(bias_size, np.float32)), -bound, bound)


class Linear(Module):
    """y = x W^T + b: (..., in_features) -> (..., out_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        self.weight, self.bias = new_weights(
            (out_features, in_features), out_features, in_features, bias
        )

    def forward(self, x):
        return ops.linear(x, self.weight, self.bias)

    def multiply_adds(self, output_shape) -> int:
        """Multiply-adds of one call with this output shape."""
        return math.prod(output_shape) * self.in_features

    def extra_repr(self):
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
