"""Gradient tests for operations of your own: Hypothesis strategies and one assertion.

An operation and its test, five lines each::

    class Cube(minidl.Function):
        def forward(self, x):
            return x**3
        def backward(self, grad):
            return grad * 3.0 * self.inputs[0] ** 2

    @hypothesis.given(testing.tensors())
    def test_cube(x):
        testing.assert_gradients_match(lambda x: Cube()(x), x)

Needs Hypothesis: ``pip install -e '.[test]'``.
"""

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError("minidl.testing needs Hypothesis: pip install -e '.[test]'") from error

from minidl.testing.assertions import assert_gradients_match
from minidl.testing.strategies import (
    Conv2dParameters,
    Pool2dParameters,
    away_from_kinks,
    broadcastable_shapes,
    conv2d_parameters,
    distinct_values,
    pool2d_parameters,
    shapes,
    tensors,
)

__all__ = [
    "Conv2dParameters",
    "Pool2dParameters",
    "assert_gradients_match",
    "away_from_kinks",
    "broadcastable_shapes",
    "conv2d_parameters",
    "distinct_values",
    "pool2d_parameters",
    "shapes",
    "tensors",
]
