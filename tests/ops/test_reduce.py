"""Reductions over all axes, some or one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Tensor, ops, tensor
from minidl.testing import assert_gradients_match, distinct_values, shapes, tensors

few = settings(max_examples=20, deadline=None)


@st.composite
def reductions(draw, values=tensors, min_dims=0):
    """(x, axis, keepdims) with any valid axis argument."""
    x = draw(values(shapes(min_dims, 3, 1, 3)))
    axes = st.sets(st.integers(-x.ndim, x.ndim - 1) if x.ndim else st.nothing(), max_size=x.ndim)
    drawn = draw(axes)
    axis = tuple(drawn) if len({a % x.ndim for a in drawn}) == len(drawn) else None
    if axis is not None and len(axis) == 1 and draw(st.booleans()):
        axis = axis[0]
    return x, axis, draw(st.booleans())


def logsumexp(x, axis, keepdims):
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


@pytest.mark.parametrize(
    "op, expected, values",
    [
        (ops.sum, np.sum, tensors),
        (ops.mean, np.mean, tensors),
        (ops.max, np.max, distinct_values),
        (ops.logsumexp, logsumexp, tensors),
    ],
)
def test_reduction(op, expected, values):
    @given(reductions(values))
    @few
    def check(drawn):
        x, axis, keepdims = drawn
        y = op(x, axis, keepdims)
        wanted = expected(x.detach().numpy(), axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(y.detach().numpy(), wanted, 1e-12, 1e-12)
        assert y.shape == np.shape(wanted)
        assert_gradients_match(lambda x: op(x, axis, keepdims), x)

    check()


@given(reductions(), st.integers(0, 1))
@few
def test_var(drawn, correction):
    x, axis, keepdims = drawn
    axes = tuple(range(x.ndim)) if axis is None else np.atleast_1d(axis)
    count = int(np.prod([x.shape[a] for a in axes]))
    if count <= correction:
        with pytest.raises(ValueError, match="correction"):
            x.var(axis, keepdims, correction)
        return
    y = x.var(axis, keepdims, correction).detach().numpy()
    wanted = np.var(x.detach().numpy(), axis=axis, keepdims=keepdims, ddof=correction)
    np.testing.assert_allclose(y, wanted, 1e-12, 1e-12)
    assert_gradients_match(lambda x: x.var(axis, keepdims, correction), x)


def test_ties_share_the_maximum():
    x = tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True)
    x.max(axis=1).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]], 1e-6)


def test_logsumexp_extremes():
    x = tensor([[1000.0, 1000.0], [-np.inf, -np.inf], [-np.inf, 0.0]])
    np.testing.assert_allclose(
        x.logsumexp(axis=1).numpy(), [1000 + np.log(2), -np.inf, 0.0], rtol=1e-6
    )


def test_float32_stays_float32():
    x = tensor(np.ones((2, 3), np.float32), requires_grad=True)
    for y in (x.sum(), x.mean(), x.var(), x.max(axis=0), x.logsumexp(axis=1)):
        x.zero_grad()
        assert y.dtype == np.float32
        y.sum().backward()
        assert x.grad.dtype == np.float32


def test_bad_axes():
    x = Tensor(np.zeros((2, 3)))
    for axis in (2, -3, (0, 0), (0, -2)):
        with pytest.raises(ValueError, match="axis"):
            x.sum(axis=axis)
    with pytest.raises(ValueError, match="at least one element"):
        Tensor(np.zeros((0, 3))).max(axis=0)


def test_float32_keeps_its_digits_along_every_axis():
    x = Tensor(np.full((1_000_000, 2), 0.1, np.float32), requires_grad=True)
    for y in (x, x.detach().T.transpose(1, 0)):
        np.testing.assert_allclose(ops.sum(y, 0).detach().numpy(), [1e5, 1e5], rtol=1e-6)
    bias = Tensor(np.zeros(2, np.float32), requires_grad=True)
    (x.detach() + bias).backward(np.full(x.shape, 0.1))
    np.testing.assert_allclose(bias.grad.numpy(), [1e5, 1e5], rtol=1e-6)
    assert bias.grad.dtype == ops.mean(x, 0).dtype == np.float32
