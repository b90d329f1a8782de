"""Sums of gradients take the memory of the first where nobody else refers to it, and only there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Function, Tensor, grad, ops

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
    """`create_graph` records the sums, and then none is in place."""
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
    expected = grad(total, leaves, create_graph=True, allow_unused=True)
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
    monkeypatch.setattr(Kept, "kept", None)


def test_a_gradient_that_cannot_be_added_leaves_the_old_one(monkeypatch):
    x = leaf(3)
    x.sum().backward()

    def fail(node, a, b):
        raise MemoryError

    monkeypatch.setattr(ops.elementwise.Add, "forward", fail)
    with pytest.raises(MemoryError):
        x.sum().backward()
    assert (x.grad._array == 1).all()
