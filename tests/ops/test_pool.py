"""Pooling ops: gradients on both backends, PyTorch as oracle, unpooling from switches."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl import Tensor, ops
from minidl.testing import assert_gradients_match, distinct_values, pool2d_parameters, tensors

few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(pool2d_parameters(max_extra=3), st.data())
@few
def test_max_pool2d(backend, p, data):
    x = data.draw(distinct_values(p.x_shape))
    settings_ = (p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode)

    def op(x):
        return ops.max_pool2d(x, *settings_)

    try:
        y, switches = ops.max_pool2d(x, *settings_, return_switches=True)
    except ValueError as error:  # a dilated window that meets padding only
        assert "dilation" in str(error)
        return
    flat = x.detach().numpy().reshape(*x.shape[:2], -1)
    picked = np.take_along_axis(flat, switches.numpy().reshape(*x.shape[:2], -1), 2)
    assert (picked == y.detach().numpy().reshape(picked.shape)).all()
    assert_gradients_match(op, x)
    assert_gradients_match(lambda x: op(x) ** 2, x)


@given(pool2d_parameters(dilated=False), st.booleans(), st.data())
@few
def test_avg_pool2d(backend, p, count_include_pad, data):
    x = data.draw(tensors(p.x_shape))

    def op(x):
        return ops.avg_pool2d(
            x, p.kernel_size, p.stride, p.padding, p.ceil_mode, count_include_pad
        )

    assert_gradients_match(lambda x: op(x) ** 2, x)


@given(tensors((2, 3, 4, 2)))
@few
def test_global_avg_pool2d(backend, x):
    expected = x.detach().numpy().mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(ops.global_avg_pool2d(x).detach().numpy(), expected, 1e-12)
    assert_gradients_match(lambda x: ops.global_avg_pool2d(x) ** 2, x)


@given(st.data())
@few
def test_max_unpool2d(backend, data):
    x = data.draw(distinct_values((2, 2, 5, 5)))
    y, switches = ops.max_pool2d(x, 3, 2, return_switches=True)
    leaf = Tensor(y.detach().numpy().copy(), requires_grad=True)
    restored = ops.max_unpool2d(leaf, switches, (5, 5))
    np.testing.assert_allclose(restored.detach().numpy().sum(), y.detach().numpy().sum(), 1e-10)
    assert_gradients_match(lambda y: ops.max_unpool2d(y, switches, (5, 5)) ** 2, leaf)


SIDES = st.tuples(st.integers(1, 7), st.integers(1, 7))


@given(SIDES, SIDES)
@settings(few, max_examples=30)
def test_adaptive_avg_pool2d(backend, plane, size):
    """Every cell is the mean of its rows and columns, by the definition; its gradient follows."""
    x = np.random.default_rng(0).standard_normal((2, 3, *plane))
    y = ops.adaptive_avg_pool2d(Tensor(x), size).numpy()
    for i, j in np.ndindex(size):
        rows, columns = (
            slice(math.floor(k * n / cells), math.ceil((k + 1) * n / cells))
            for k, n, cells in zip((i, j), plane, size, strict=True)
        )
        expected = x[:, :, rows, columns].mean(axis=(2, 3))
        np.testing.assert_allclose(y[:, :, i, j], expected, 1e-12, 1e-12)
    leaf = Tensor(x, requires_grad=True)
    assert_gradients_match(lambda x: ops.adaptive_avg_pool2d(x, size), leaf)


@given(SIDES, SIDES)
@settings(few, max_examples=30)
def test_adaptive_avg_pool2d_against_torch(backend, plane, size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, *plane))
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x), size).numpy()
    ours = ops.adaptive_avg_pool2d(Tensor(x), size).numpy()
    np.testing.assert_allclose(ours, theirs, 1e-12, 1e-12)


def symmetric(p):
    """PyTorch pads both sides alike."""
    return p.padding[0] == p.padding[1] and p.padding[2] == p.padding[3]


@given(pool2d_parameters().filter(symmetric), st.booleans(), st.data())
@settings(few, max_examples=40)
def test_against_torch(backend, p, count_include_pad, data):
    torch = pytest.importorskip("torch")
    x = data.draw(distinct_values(p.x_shape))
    tx = torch.tensor(x.detach().numpy())
    padding = (p.padding[0], p.padding[2])
    common = (p.kernel_size, p.stride, padding)
    try:
        ours = ops.max_pool2d(x, p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode)
    except ValueError as error:
        assert "dilation" in str(error)
    else:
        theirs = torch.nn.functional.max_pool2d(tx, *common, p.dilation, p.ceil_mode)
        assert (ours.detach().numpy() == theirs.numpy()).all()
    if p.dilation == (1, 1):
        ours = ops.avg_pool2d(
            x, p.kernel_size, p.stride, p.padding, p.ceil_mode, count_include_pad
        )
        theirs = torch.nn.functional.avg_pool2d(tx, *common, p.ceil_mode, count_include_pad)
        np.testing.assert_allclose(ours.detach().numpy(), theirs.numpy(), 1e-10, 1e-10)


def test_float32_stays_float32(backend):
    x = Tensor(np.random.default_rng(0).random((2, 3, 6, 6), np.float32), requires_grad=True)
    y = ops.max_pool2d(x, 2) + ops.avg_pool2d(x, 2) + ops.global_avg_pool2d(x)
    y = y + ops.adaptive_avg_pool2d(x, 3)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == np.float32


def test_errors_name_the_argument(backend):
    x = Tensor(np.zeros((1, 1, 4, 4)))
    y, switches = ops.max_pool2d(x, 2, return_switches=True)
    cases = [
        (lambda: ops.max_pool2d(x, 2, padding=2), ValueError, "padding"),
        (lambda: ops.max_pool2d(x, 5), ValueError, "kernel_size"),
        (lambda: ops.max_pool2d(x[0], 2), ValueError, "x must have shape"),
        (lambda: ops.avg_pool2d(x, 0), ValueError, "kernel_size"),
        (lambda: ops.adaptive_avg_pool2d(x, 0), ValueError, "output_size"),
        (lambda: ops.adaptive_avg_pool2d(x[0], 2), ValueError, "x must have shape"),
        (lambda: ops.adaptive_avg_pool2d(x[:, :, :0], 2), ValueError, "at least 1x1"),
        (lambda: ops.avg_pool2d(x, 2, stride="a"), TypeError, "stride"),
        (lambda: ops.max_unpool2d(y, switches, (2, 2)), ValueError, "switches"),
        (lambda: ops.max_unpool2d(y, switches[:, :, :1], (4, 4)), ValueError, "switches"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()


def test_changed_switches_are_noticed(backend):
    x = Tensor(np.arange(16.0).reshape(1, 1, 4, 4), requires_grad=True)
    y, switches = ops.max_pool2d(x, 2, return_switches=True)
    switches.copy_(0)
    with pytest.raises(RuntimeError, match="MaxPool2d: output 1.*modified in place"):
        y.sum().backward()
    positions = np.array([[[[0, 3], [7, 9]]]], np.int32)
    y = Tensor(np.ones((1, 1, 2, 2)), requires_grad=True)
    plane = ops.max_unpool2d(y, positions, (4, 4))
    with pytest.raises(ValueError, match="read-only"):
        positions[...] = 0
    plane.sum().backward()
    positions[...] = 0
