"""Elementwise operations: gradients, values, dtypes and edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Tensor, ops, tensor
from minidl.testing import (
    assert_gradients_match,
    away_from_kinks,
    broadcastable_shapes,
    distinct_values,
    tensors,
)

few = settings(max_examples=20, deadline=None)
shape_pairs = st.shared(broadcastable_shapes(2), key="pair")
first = shape_pairs.map(lambda pair: pair[0])
second = shape_pairs.map(lambda pair: pair[1])

UNARY = {
    "neg": (ops.neg, tensors(), np.negative),
    "exp": (ops.exp, tensors(), np.exp),
    "log": (ops.log, tensors(low=0.2, high=3.0), np.log),
    "sqrt": (ops.sqrt, tensors(low=0.2, high=3.0), np.sqrt),
    "tanh": (ops.tanh, tensors(), np.tanh),
    "sigmoid": (ops.sigmoid, tensors(), lambda x: 1 / (1 + np.exp(-x))),
    "relu": (ops.relu, away_from_kinks(), lambda x: np.maximum(x, 0)),
    "abs": (ops.abs, away_from_kinks(), np.abs),
    "clip": (
        lambda x: ops.clip(x, -0.5, 1.0),
        away_from_kinks(kinks=(-0.5, 1.0)),
        lambda x: np.clip(x, -0.5, 1),
    ),
    "clip_below": (
        lambda x: ops.clip(x, min=0.5),
        away_from_kinks(kinks=(0.5,)),
        lambda x: np.clip(x, 0.5, None),
    ),
    "cube": (lambda x: ops.pow(x, 3), tensors(), lambda x: x**3),
    "square": (lambda x: x**2, tensors(), lambda x: x**2),
    "power": (lambda x: x**-1.5, tensors(low=0.3, high=2.0), lambda x: x**-1.5),
    "zeroth": (lambda x: x**0, tensors(), np.ones_like),
    "first": (lambda x: x**1, tensors(), np.array),
    "exponent": (lambda x: 2.5**x, tensors(), lambda x: 2.5**x),
    "reciprocal": (lambda x: 1.0 / x, away_from_kinks(gap=0.3), lambda x: 1 / x),
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    op, inputs, expected = UNARY[name]

    @given(inputs)
    @few
    def check(x):
        np.testing.assert_allclose(op(x).detach().numpy(), expected(x.detach().numpy()), 1e-12)
        assert_gradients_match(op, x)

    check()


BINARY = {
    "add": (ops.add, np.add, tensors),
    "sub": (ops.sub, np.subtract, tensors),
    "mul": (ops.mul, np.multiply, tensors),
    "div": (ops.div, np.divide, lambda shape: away_from_kinks(shape, gap=0.4)),
    "pow": (ops.pow, np.power, lambda shape: tensors(shape, low=0.3, high=2.0)),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_broadcasts(name):
    op, expected, strategy = BINARY[name]

    @given(strategy(first), strategy(second))
    @few
    def check(a, b):
        values = expected(a.detach().numpy(), b.detach().numpy())
        np.testing.assert_allclose(op(a, b).detach().numpy(), values, 1e-12)
        assert_gradients_match(op, a, b)

    check()


@pytest.mark.parametrize("op, expected", [(ops.maximum, np.maximum), (ops.minimum, np.minimum)])
def test_maximum_and_minimum(op, expected):
    @given(distinct_values((2, 3, 4)))
    @few
    def check(x):
        # Two halves of one set of distinct values never tie.
        a, b = x[0], x[1, :, :1]
        assert (op(a, b).detach().numpy() == expected(*(t.detach().numpy() for t in (a, b)))).all()
        assert_gradients_match(lambda x: op(x[0], x[1, :, :1]), x)

    check()


def test_ties_share_the_gradient():
    a, b = (tensor([1.0, 2.0, 3.0], requires_grad=True) for _ in range(2))
    ops.maximum(a, b).sum().backward()
    assert a.grad.numpy().tolist() == [0.5] * 3 == b.grad.numpy().tolist()


@given(tensors(first), tensors(second), st.integers(0, 2**32 - 1))
@few
def test_where(a, b, seed):
    condition = np.random.default_rng(seed).random(np.broadcast_shapes(a.shape, b.shape)) < 0.5
    expected = np.where(condition, a.detach().numpy(), b.detach().numpy())
    assert (ops.where(condition, a, b).detach().numpy() == expected).all()
    assert_gradients_match(lambda a, b: ops.where(condition, a, b), a, b)


def test_float32_stays_float32():
    x = tensor([0.5, 1.5], requires_grad=True)
    for y in (
        x + 1.0, 1 - x, x * 2, x / 3, 1 / x, x**2, x**1.5, 2**x, -x, x.exp(), x.log(), x.sqrt(),
        x.tanh(), x.sigmoid(), x.relu(), x.abs(), x.clip(0, 1), ops.maximum(x, 1.0),
        ops.where(np.array([True, False]), x, 0.0), x + np.float32(2),
    ):  # fmt: skip
        x.zero_grad()
        assert y.dtype == np.float32
        y.sum().backward()
        assert x.grad.dtype == np.float32


def test_edges():
    assert np.isnan(ops.relu(tensor([np.nan])).item())
    extremes = ops.sigmoid(tensor([-1000.0, 0.0, 1000.0])).numpy()
    assert extremes.tolist() == [0.0, 0.5, 1.0]
    x = tensor([0.0], requires_grad=True)
    (x**2.0).sum().backward()
    assert x.grad.item() == 0
    exponent = Tensor(np.array([2.0]), requires_grad=True)
    (Tensor(np.array([0.0])) ** exponent).sum().backward()
    assert exponent.grad.item() == 0
    assert ops.div(tensor([1, 2]), tensor([2, 2])).numpy().tolist() == [0.5, 1.0]


def test_zero_size_and_strided():
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    (x.exp() * x.relu()).sum().backward()
    assert x.grad.shape == (0, 3)
    base = np.arange(12.0).reshape(3, 4)
    x = Tensor(base[::2, ::-1], requires_grad=True)
    y = x.relu() * x
    y.sum().backward()
    assert (x.grad.numpy() == 2 * base[::2, ::-1]).all()


def test_errors_name_the_argument():
    x = tensor([1.0])
    with pytest.raises(ValueError, match="min"):
        x.clip()
    with pytest.raises(ValueError, match="min must not exceed max"):
        x.clip(2, 1)
    with pytest.raises(TypeError, match="condition"):
        ops.where(np.array([1]), x, x)


@pytest.mark.parametrize("number", [2, 2.0, True, np.int64(2), np.float64(2), np.float32(2)])
def test_numbers_leave_float32_alone(number):
    x = Tensor([1.0, 2.0], requires_grad=True)
    results = [
        x * number, number * x, x + number, number - x, x / number, x**number, number**x,
        ops.maximum(x, number), ops.where([True, False], x, number), ops.clip(x, 0, number),
    ]  # fmt: skip
    assert {y.dtype for y in results} == {np.dtype(np.float32)}


def test_where_notices_a_changed_condition():
    condition = np.array([True, False])
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = ops.where(condition, x, 0.0).sum()
    with pytest.raises(ValueError, match="read-only"):
        condition[0] = False
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1, 0])
    condition[0] = False
    mask = Tensor(np.array([True, False]))
    y = ops.where(mask, x, 0.0).sum()
    mask.copy_(False)
    with pytest.raises(RuntimeError, match="Where: input 0.*modified in place"):
        y.backward()


@pytest.mark.parametrize("bound", [np.zeros(2), Tensor([0.0, 1.0]), "0"])
def test_clip_takes_numbers_alone(bound):
    with pytest.raises(TypeError, match="min and max must be numbers"):
        ops.clip(Tensor([1.0, 2.0]), bound)
