"""What each operator of ONNX is in minidl: `OPERATORS`, one file a family."""

from minidl.onnx.operators import (  # noqa: F401  they register their operators
    convolution,
    elementwise,
    normalization,
    pooling,
    reduction,
    shape,
)
from minidl.onnx.operators.registry import OPERATORS, element_type

__all__ = ["OPERATORS", "element_type"]
