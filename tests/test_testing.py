"""The public testing tools: strategies keep their promises, the documented example runs."""

import numpy as np
import pytest
from hypothesis import given, settings

from kernels.geometry import pool_output_size
from minidl import testing


@given(testing.away_from_kinks(kinks=(-1.0, 0.0, 1.0), gap=0.1))
@settings(max_examples=30, deadline=None)
def test_away_from_kinks(x):
    for kink in (-1.0, 0.0, 1.0):
        assert (np.abs(x.detach().numpy() - kink) >= 0.1).all()


@given(testing.distinct_values(gap=0.1))
@settings(max_examples=30, deadline=None)
def test_distinct_values(x):
    ordered = np.sort(x.detach().numpy().ravel())
    assert (np.diff(ordered) > 0.099).all()


@given(testing.broadcastable_shapes(3))
@settings(max_examples=50, deadline=None)
def test_broadcastable_shapes(drawn):
    np.broadcast_shapes(*drawn)


@given(testing.conv2d_parameters())
@settings(max_examples=50, deadline=None)
def test_conv2d_parameters(p):
    assert min(p.y_shape) >= 1
    assert p.x_shape[1] == p.weight_shape[1] * p.groups


@given(testing.pool2d_parameters())
@settings(max_examples=50, deadline=None)
def test_pool2d_parameters(p):
    size = pool_output_size(
        *p.x_shape[2:], p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode
    )
    assert min(size) >= 1


def test_documented_example():
    example = testing.__doc__.split("::\n", 1)[1].split("\nNeeds", 1)[0]
    lines = ["import hypothesis, minidl", "from minidl import testing"]
    source = "\n".join(lines + [line[4:] for line in example.splitlines()])
    scope = {}
    exec(source, scope)
    scope["test_cube"]()
    wrong = source.replace("3.0 *", "2.0 *")
    assert wrong != source
    exec(wrong, scope)
    with pytest.raises(AssertionError):
        scope["test_cube"]()
