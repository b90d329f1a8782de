"""Matrix products."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Tensor, ops
from minidl.testing import assert_gradients_match, tensors

few = settings(max_examples=15, deadline=None)

SHAPES = [
    ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)), ((4, 1, 2, 3), (2, 3, 2)), ((2, 2, 3), (3,)), ((3,), (2, 3, 2)),
    ((0, 3), (3, 2)),
]  # fmt: skip


@pytest.mark.parametrize("a_shape, b_shape", SHAPES)
def test_matmul(a_shape, b_shape):
    @given(tensors(a_shape), tensors(b_shape))
    @settings(max_examples=5, deadline=None)
    def check(a, b):
        expected = a.detach().numpy() @ b.detach().numpy()
        np.testing.assert_allclose((a @ b).detach().numpy(), expected, 1e-12, 1e-12)
        assert_gradients_match(ops.matmul, a, b)

    check()


@given(st.data(), st.booleans(), st.sampled_from([(), (3,), (2, 3), (0,)]))
@few
def test_linear(data, with_bias, lead):
    x = data.draw(tensors((*lead, 4)))
    weight = data.draw(tensors((2, 4)))
    operands = (x, weight, data.draw(tensors((2,)))) if with_bias else (x, weight)
    expected = x.detach().numpy() @ weight.detach().numpy().T
    if with_bias:
        expected = expected + operands[2].detach().numpy()
    np.testing.assert_allclose(ops.linear(*operands).detach().numpy(), expected, 1e-12, 1e-12)
    assert_gradients_match(ops.linear, *operands)


def test_float32_stays_float32():
    x, w, b = (
        Tensor(np.ones(shape, np.float32), requires_grad=True) for shape in ((3, 4), (2, 4), (2,))
    )
    y = ops.linear(x, w, b)
    (y @ y.T).sum().backward()
    assert y.dtype == x.grad.dtype == w.grad.dtype == b.grad.dtype == np.float32


def test_errors_name_the_argument():
    x = Tensor(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="do not fit"):
        x @ x
    with pytest.raises(ValueError, match="do not fit"):
        x @ Tensor(np.zeros(()))
    with pytest.raises(ValueError, match="does not fit weight"):
        ops.linear(x, Tensor(np.zeros((2, 4))))
    with pytest.raises(ValueError, match="bias"):
        ops.linear(x, Tensor(np.zeros((2, 3))), Tensor(np.zeros(3)))
    with pytest.raises(TypeError, match="one dtype"):
        ops.linear(x, Tensor(np.zeros((2, 3), np.float32)))


def test_arrays_on_either_side():
    x = Tensor(np.arange(4.0).reshape(2, 2), requires_grad=True)
    m = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal((m @ x).detach().numpy(), m @ x.data)
    np.testing.assert_array_equal((x @ m).detach().numpy(), x.data @ m)
    np.testing.assert_array_equal(ops.matmul([1.0, 2.0], x).detach().numpy(), [1, 2] @ x.data)
