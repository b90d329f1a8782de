"""Dropout: the mask is replayed, by backward and by a restored random state."""

import numpy as np
import pytest

import minidl
from minidl import Tensor, ops, random
from minidl.testing import assert_gradients_match


def test_gradient_replays_the_mask(backend):
    x = Tensor(np.random.default_rng(0).standard_normal((3, 5)), requires_grad=True)
    state = random.get_state()

    def op(x):
        random.set_state(state)
        return ops.dropout(x, 0.4)

    assert_gradients_match(op, x)
    y = ops.dropout(x, 0.4)
    y.sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), x.grad.numpy() * x.detach().numpy(), 1e-12)


def test_identity_in_evaluation():
    x = Tensor(np.ones(5))
    assert ops.dropout(x, 0.5, training=False) is x
    assert ops.dropout(x, 0.0) is x


def test_seed_decides(backend):
    x = Tensor(np.ones(1000, np.float32))
    minidl.manual_seed(3)
    first, second = ops.dropout(x, 0.5).numpy(), ops.dropout(x, 0.5).numpy()
    minidl.manual_seed(3)
    assert (ops.dropout(x, 0.5).numpy() == first).all()
    assert (second != first).any()
    assert first.dtype == np.float32


@pytest.mark.parametrize("p", [-0.1, 1.0, 2])
def test_bad_probability(p):
    with pytest.raises(ValueError, match="p must be"):
        ops.dropout(Tensor(np.ones(2)), p)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="x must be floating point, got int64"):
        ops.dropout(Tensor(np.ones(3, np.int64)), 0.3)
