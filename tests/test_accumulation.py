"""Sums of gradients, and what rectifiers and batch normalisation pass on, take the memory of a
gradient that nobody else refers to, and only that.
"""

from threading import Thread
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Function, Tensor, grad, graph, no_grad, ops
from minidl.ops.elementwise import ReLU
from minidl.profiler import profile

# Elements: NumPy's own memory; a buffer of the pool; enough for a kernel of many threads.
SIZES = [3, 10_000, 40_000]
BINARY = {"add": ops.add, "sub": ops.sub, "max": ops.maximum}
UNARY = {
    "relu": lambda a: a.relu(),
    "view": lambda a: a.reshape(1, -1).reshape(-1),
    "twice": lambda a: 2 * a,
    "flip": lambda a: a[::-1],
}
steps = st.lists(
    st.tuples(st.sampled_from([*BINARY, *UNARY, "mul"]), st.integers(0, 99), st.integers(0, 99)),
    min_size=1, max_size=10,
)  # fmt: skip


def leaf(size, seed=0):
    """Small integers: what the graphs here make of them has no rounding errors."""
    values = np.random.default_rng(seed).integers(1, 4, size).astype(float)
    return Tensor(values, requires_grad=True)


def address(tensor):
    return tensor._array.__array_interface__["data"][0]


@pytest.mark.parametrize("size", SIZES)
@given(steps)
@settings(max_examples=60, deadline=None)
def test_any_graph_gives_the_same_gradients_as_without(size, steps):
    leaves = [leaf(size, seed) for seed in (0, 1)]
    made = list(leaves)
    for name, i, j in steps:
        a, b = made[i % len(made)], made[j % len(made)]
        if name == "mul":
            made.append(a * leaves[j % 2])
        else:
            made.append(BINARY[name](a, b) if name in BINARY else UNARY[name](a))
    # Rectified, they get one gradient, which fills a buffer of the pool where that has such.
    total = (sum(made[2:], 1e12).relu() * Tensor(np.arange(size) % 5.0)).sum()
    with patch.object(graph, "_is_free", lambda *args, **others: False):
        expected = grad(total, leaves, retain_graph=True, allow_unused=True)
    for _ in range(2):
        total.backward(retain_graph=True)
    for x, one in zip(leaves, expected, strict=True):
        if one is None:
            assert x.grad is None
        else:
            np.testing.assert_array_equal(x.grad._array, 2 * one._array)


@pytest.mark.parametrize("size", SIZES)
def test_what_only_the_walk_refers_to_is_added_to(size, monkeypatch):
    seen = []
    forward = ops.elementwise.Add.forward

    def spy(node, a, b):
        result = forward(node, a, b)
        seen.append((node.inplace, result is a))
        return result

    x = leaf(size)
    y = 2 * x
    outputs = y * 3 + y * 4, 2 * x * 5
    monkeypatch.setattr(ops.elementwise.Add, "forward", spy)
    for output in outputs:
        output.sum().backward()
    # First the two gradients of y, then the two of x.
    assert seen == [(True, True), (True, True)]
    np.testing.assert_array_equal(x.grad._array, 2 * np.full(size, 12.0))


@pytest.mark.parametrize("size", SIZES)
def test_a_gradient_that_the_user_has_stays_as_it_is(size):
    x = leaf(size)
    (3 * x).sum().backward()
    held = x.grad
    (4 * x).sum().backward()
    array = x.grad.numpy()
    (5 * x).sum().backward()
    assert (held._array == 3).all() and (array == 7).all() and (x.grad._array == 12).all()
    del held, array
    where = address(x.grad)
    (6 * x).sum().backward()
    assert address(x.grad) == where and (x.grad._array == 18).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_seed_and_a_retained_gradient_stay_as_they_are(size):
    x = leaf(size)
    y = 2 * x
    y.retain_grad()
    seed = Tensor(np.ones(size))
    output = y + y.relu() + y
    output.backward(seed)
    assert (seed._array == 1).all() and (y.grad._array == 3).all() and (x.grad._array == 6).all()


class Kept(Function):
    """x, with a gradient that it keeps, as a Function may."""

    kept = None

    def forward(self, x):
        return x.copy()

    def backward(self, grad):
        Kept.kept = self.give(np.full(grad.shape, 2.0))
        return Tensor._wrap(self.give(Kept.kept))


@pytest.mark.parametrize("give", [lambda a: a, lambda a: a[:], np.asarray])
@pytest.mark.parametrize("size", SIZES)
def test_what_a_function_keeps_stays_as_it_is(size, give, monkeypatch):
    monkeypatch.setattr(Kept, "give", staticmethod(give), raising=False)
    x = leaf(size)
    y = 3 * x
    ((Kept()(y) + y.relu() + y) * Tensor(np.ones(size))).sum().backward()
    assert (Kept.kept == 2).all() and (x.grad._array == 3 * 4).all()


def channels(*values):
    return Tensor(np.array(values), requires_grad=True)


def normalised(x, other=None, rectify=True):
    running = Tensor(np.zeros(2)), Tensor(np.ones(2))
    weights = channels(1.0, 2.0), channels(0.0, 1.0)
    return ops.batch_norm(x, *weights, *running, True, others=other, rectify=rectify)


TAKING = {
    "relu": lambda x, other: ops.relu(x),
    "bias_relu": lambda x, other: ops.bias_relu(x, channels(1.0, -1.0)),
    "conv2d_relu": lambda x, other: ops.conv2d_relu(
        x, Tensor(np.array([[1.0, -1.0], [2.0, 3.0]])[..., None, None]), channels(1.0, -2.0)
    ),
    "batch_norm": lambda x, other: normalised(x, rectify=False),
    "batch_norm_relu": lambda x, other: normalised(x),
    "batch_norm_add_relu": normalised,
}


@pytest.mark.parametrize("shape", [(2, 2, 3, 1), (2, 2, 100, 101)])
@pytest.mark.parametrize("name", TAKING)
def test_no_gradient_is_written_over_that_others_have(name, shape):
    x, other = (Tensor(np.random.default_rng(i).standard_normal(shape)) for i in (0, 1))
    x.requires_grad = other.requires_grad = True
    weights = Tensor(np.random.default_rng(2).standard_normal(shape))
    y = 2 * x
    # One gradient goes to the operation and to y, with which it is summed; another to one alone.
    both = TAKING[name](y, other) + y
    total = (both * weights).sum() + (TAKING[name](3 * y, other) * weights).sum()
    with patch.object(graph, "_is_free", lambda *args, **others: False):
        expected = grad(total, (x, other), retain_graph=True, allow_unused=True)
    total.backward()
    for leaf, one in zip((x, other), expected, strict=True):
        if one is not None:
            np.testing.assert_array_equal(leaf.grad._array, one._array)


@pytest.mark.parametrize("name", TAKING)
def test_a_gradient_that_nobody_else_has_is_written_over(name, monkeypatch):
    taken = []
    is_free = graph._is_free

    def spy(slots, index, others=0):
        taken.append(is_free(slots, index, others))
        return taken[-1]

    monkeypatch.setattr(graph, "_is_free", spy)
    x, other = (Tensor(np.ones((2, 2, 100, 101)), requires_grad=True) for _ in range(2))
    (TAKING[name](x, other) * Tensor(np.full(x.shape, 2.0))).sum().backward()
    assert taken == [True]


class Blocked(ReLU):
    """A class that gives its own gradient to the backward that it has from another."""

    def backward(self, grad):
        return grad - super().backward(grad)


def test_what_others_give_to_backward_stays_as_it_is():
    x = Tensor(np.array([-1.0, 2.0, -3.0]), requires_grad=True)
    weights = Tensor(np.array([5.0, 6.0, 7.0]))
    (Blocked()(x) * weights).sum().backward()
    np.testing.assert_array_equal(x.grad._array, [5, 0, 7])
    rules = {ReLU: lambda node, grad: grad - node.backward(grad)}
    (by_rule,) = grad((x.relu() * weights).sum(), [x], rules=rules)
    np.testing.assert_array_equal(by_rule._array, [5, 0, 7])
    y = x.relu()
    (y * weights).sum().backward(retain_graph=True)
    given = Tensor(np.ones(3))
    with no_grad():
        y._node.backward(given)
    np.testing.assert_array_equal(given._array, 1)


def test_gradients_of_a_thread_that_has_ended_are_left_alone():
    """Its pool refers to no buffer any more: an array made from the gradient would be taken for it.
    """
    x = leaf(10_000)
    thread = Thread(target=lambda: (x + x).sum().backward())
    thread.start()
    thread.join()
    view = x.grad.reshape(100, 100)
    (5 * x).sum().backward()
    assert (view._array == 2).all() and (x.grad._array == 7).all()


def test_a_gradient_that_is_an_array_is_added_to():
    x = leaf(3)
    x.grad = np.ones(3)
    (2 * x).sum().backward()
    np.testing.assert_array_equal(x.grad._array, 3)


def test_a_profile_counts_what_is_written_over_a_gradient():
    x = leaf(100_000)
    with profile() as record:
        (x.relu() * Tensor(np.ones(x.shape))).relu().sum().backward()
    record._memory._settle()
    assert record._memory.live == x.grad._array.nbytes


def test_a_gradient_that_cannot_be_added_leaves_the_old_one(monkeypatch):
    x = leaf(3)
    x.sum().backward()

    def fail(node, a, b):
        raise MemoryError

    monkeypatch.setattr(ops.elementwise.Add, "forward", fail)
    with pytest.raises(MemoryError):
        x.sum().backward()
    assert (x.grad._array == 1).all()
