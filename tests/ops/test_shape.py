"""Operations that move elements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Tensor, ops
from minidl.testing import assert_gradients_match, shapes, tensors

few = settings(max_examples=20, deadline=None)
cubes = tensors((2, 3, 4))

KEYS = {
    "int": 1,
    "negative": -1,
    "slice": slice(0, 2),
    "steps": (slice(None), slice(2, None, -1)),
    "ellipsis": (..., 0),
    "newaxis": (None, 1, slice(1, 3)),
    "array": np.array([1, 0, 1]),
    "repeated": (np.array([0, 1, 0]), np.array([2, 2, 2])),
    "list": [0, 0, 1],
    "mixed": (0, slice(None), np.array([[0, 1], [1, 3]])),
    "mask": np.arange(24).reshape(2, 3, 4) % 3 == 0,
    "row_mask": np.array([True, False]),
}


@pytest.mark.parametrize("name", KEYS)
def test_getitem(name):
    key = KEYS[name]

    @given(cubes)
    @settings(max_examples=5, deadline=None)
    def check(x):
        assert (x[key].detach().numpy() == x.detach().numpy()[key]).all()
        assert_gradients_match(lambda x: x[key] * x[key], x)

    check()


@given(cubes, st.permutations(range(3)))
@few
def test_transpose(x, axes):
    assert (x.transpose(*axes).detach().numpy() == x.detach().numpy().transpose(axes)).all()
    assert_gradients_match(lambda x: x.transpose(*axes) ** 2, x)
    assert (x.T.detach().numpy() == x.detach().numpy().T).all()


@pytest.mark.parametrize("shape", [(24,), (4, -1), (2, 3, 2, 2), (1, 24, 1)])
def test_reshape(shape):
    x = Tensor(np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1), requires_grad=True)
    assert (x.reshape(shape).detach().numpy() == x.detach().numpy().reshape(shape)).all()
    assert_gradients_match(lambda x: x.reshape(shape) ** 2, x)


@given(tensors(shapes(1, 3)), st.data())
@few
def test_flatten(x, data):
    start = data.draw(st.integers(0, x.ndim - 1))
    expected = x.detach().numpy().reshape(*x.shape[:start], -1)
    assert (x.flatten(start).detach().numpy() == expected).all()
    assert_gradients_match(lambda x: x.flatten(start) ** 2, x)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(-2, 1), st.data())
@few
def test_concatenate(sizes, axis, data):
    parts = []
    for size in sizes:
        shape = [2, 3]
        shape[axis] = size
        parts.append(data.draw(tensors(tuple(shape))))
    expected = np.concatenate([t.detach().numpy() for t in parts], axis)
    assert (ops.concatenate(parts, axis).detach().numpy() == expected).all()
    assert_gradients_match(lambda *parts: ops.concatenate(parts, axis) ** 2, *parts)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_stack(axis):
    parts = [Tensor(np.random.default_rng(i).random((2, 3)), requires_grad=True) for i in range(3)]
    expected = np.stack([t.detach().numpy() for t in parts], axis)
    assert (ops.stack(parts, axis).detach().numpy() == expected).all()
    assert_gradients_match(lambda *parts: ops.stack(parts, axis) ** 2, *parts)


@given(tensors((2, 3)), st.lists(st.integers(0, 2), min_size=4, max_size=4))
@few
def test_pad(x, widths):
    width = (tuple(widths[:2]), tuple(widths[2:]))
    expected = np.pad(x.detach().numpy(), width, constant_values=1.5)
    assert (ops.pad(x, width, 1.5).detach().numpy() == expected).all()
    assert_gradients_match(lambda x: ops.pad(x, width, 1.5) ** 2, x)


def test_broadcast_and_sum_are_transposes():
    x = Tensor(np.arange(3.0).reshape(3, 1), requires_grad=True)
    assert_gradients_match(lambda x: ops.broadcast_to(x, (2, 3, 4)) ** 2, x)
    y = Tensor(np.random.default_rng(0).random((2, 3, 4)), requires_grad=True)
    assert_gradients_match(lambda y: ops.sum_to(y, (3, 1)) ** 2, y)


def test_errors_name_the_argument():
    x = Tensor(np.zeros((2, 3)))
    cases = [
        (lambda: x.reshape(4, 2), ValueError, "shape"),
        (lambda: x.reshape(-1, -1), ValueError, "shape"),
        (lambda: x.transpose(0, 0), ValueError, "axes"),
        (lambda: x.flatten(2), ValueError, "start_dim"),
        (lambda: ops.concatenate([]), ValueError, "tensors"),
        (lambda: ops.concatenate([x, Tensor(np.zeros((3, 3)))], 1), ValueError, "dimension"),
        (lambda: ops.stack([x, Tensor(np.zeros(3))]), ValueError, "tensors"),
        (lambda: ops.pad(x, ((1, 1),)), ValueError, "pad_width"),
        (lambda: ops.pad(x, -1), ValueError, "pad_width"),
        (lambda: x[5], IndexError, "out of bounds"),
        (lambda: x[np.array([0.5])], IndexError, "integers or booleans"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()


@given(cubes)
@settings(max_examples=5, deadline=None)
def test_float32_stays_float32(x):
    x = Tensor(x.detach().numpy().astype(np.float32), requires_grad=True)
    y = ops.concatenate([ops.pad(x[:, [0, 0]], 1).flatten(), x.T.reshape(-1)])
    y.sum().backward()
    assert y.dtype == x.grad.dtype == np.float32


def test_a_changed_index_array_does_not_matter():
    index = np.array([0, 1])
    x = Tensor(np.arange(3.0), requires_grad=True)
    y = x[index].sum()
    index[:] = 2
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [1, 1, 0])


@pytest.mark.parametrize("width", [(1, 1), 1.5, "ab", ((1, 1, 1),), ((1, -1),), -1, None])
def test_a_bad_pad_width_is_named(width):
    with pytest.raises(ValueError, match="pad_width must be 1 pairs"):
        ops.pad(Tensor([1.0, 2.0]), width)


def test_pad_takes_a_numpy_integer_and_joins_take_arrays():
    assert ops.pad(Tensor([1.0, 2.0]), np.int64(1)).shape == (4,)
    assert ops.stack([1.0, 2.0]).shape == (2,)
    assert ops.concatenate([np.ones(2), Tensor(np.ones(1))]).shape == (3,)
