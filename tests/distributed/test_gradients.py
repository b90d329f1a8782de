"""GradientAverager in one process: its plan, and when buckets are sent off."""

import numpy as np
import pytest

from minidl import Function, Tensor
from minidl.distributed import GradientAverager
from minidl.nn import Parameter


class Sums:
    """A World of `size` ranks that all have this one's numbers; it keeps a diary."""

    def __init__(self, size=1):
        self.size = size
        self.diary = []

    def duplicate(self):
        return self

    def start_sum(self, array, what):
        self.diary.append(("sent", what))
        return Sum(self, array, what)


class Sum:
    def __init__(self, world, array, what):
        self.world, self.array, self.what = world, array, what

    def test(self):
        return False

    def wait(self):
        self.world.diary.append(("waited", self.what))
        self.array *= self.world.size


def parameters(*sizes, dtype=np.float64):
    return {f"p{i}": Parameter(np.full(size, i + 1, dtype)) for i, size in enumerate(sizes)}


def labels(averager):
    return [bucket.label.partition("(")[2] for bucket in averager._buckets]


def test_the_plan_goes_from_the_last_to_the_first():
    named = parameters(2, 3, 10, 1, 1)  # 16, 24, 80, 8 and 8 bytes
    few = GradientAverager(Sums(), named.items(), bucket_bytes=40)
    assert labels(few) == ["p4 to p3)", "p2 to p2)", "p1 to p0)"]
    assert labels(GradientAverager(Sums(), named.items())) == ["p4 to p0)"]
    mixed = {**named, "half": Parameter(np.ones(2, np.float32))}
    assert labels(GradientAverager(Sums(), mixed.items())) == ["half to half)", "p4 to p0)"]
    frozen = {**named, "fixed": Parameter(np.ones(2), requires_grad=False)}
    assert labels(GradientAverager(Sums(), frozen.items())) == ["p4 to p0)"]


class Passing(Function):
    """Writes down when backward comes by."""

    def __init__(self, diary):
        self.diary = diary

    def forward(self, x):
        return x + 0

    def backward(self, grad):
        self.diary.append(("backward", "first layer"))
        return grad


def test_buckets_are_on_their_way_while_backward_goes_on():
    world = Sums()
    named = parameters(2, 2)
    averager = GradientAverager(world, named.items(), 16)
    averager.begin()
    (Passing(world.diary)(named["p0"] * 3.0) * named["p1"]).sum().backward()
    averager.finish(1)
    names = [(kind, what.partition(" (")[0]) for kind, what in world.diary]
    assert names == [
        ("sent", "gradients, bucket 1 of 2"), ("backward", "first layer"),
        ("sent", "gradients, bucket 2 of 2"), ("waited", "gradients, bucket 1 of 2"),
        ("waited", "gradients, bucket 2 of 2"),
    ]  # fmt: skip


def test_the_order_of_sending_is_the_plan_whatever_backward_does():
    world = Sums()
    named = parameters(2, 2, 2)
    averager = GradientAverager(world, named.items(), 16)
    for order in (("p0", "p1", "p2"), ("p1",), ()):
        world.diary.clear()
        averager.begin()
        total = Tensor(np.ones(2), requires_grad=True)
        for name in reversed(order):  # what is multiplied last gets its gradient first
            total = total * named[name]
        total.sum().backward()
        averager.finish(1)
        sent = [what.partition("(")[2] for kind, what in world.diary if kind == "sent"]
        assert sent == ["p2 to p2)", "p1 to p1)", "p0 to p0)"]
        assert [name for name, p in named.items() if p.grad is not None] == sorted(order)
        for p in named.values():
            p.grad = None


def test_gradients_are_summed_divided_and_keep_shape_and_dtype():
    for dtype in (np.float32, np.float64):
        w = Parameter(np.arange(6, dtype=dtype).reshape(2, 3))
        averager = GradientAverager(Sums(size=3), [("w", w)])
        averager.begin()
        # Through a transpose the gradient arrives as a view of another layout.
        (w.transpose(1, 0) * np.arange(6, dtype=dtype).reshape(3, 2)).sum().backward()
        averager.finish(6)
        expected = np.arange(6).reshape(3, 2).T / 2
        np.testing.assert_allclose(w.grad.numpy(), expected)
        assert w.grad.dtype == dtype and w.grad.shape == (2, 3)


def test_a_gradient_of_the_next_step_does_not_touch_the_last():
    w = Parameter(np.ones(2))
    averager = GradientAverager(Sums(), [("w", w)])
    kept = []
    for factor in (2.0, 5.0):
        w.grad = None
        averager.begin()
        (w * factor).sum().backward()
        averager.finish(1)
        kept.append(w.grad)
    assert [g.numpy().tolist() for g in kept] == [[2, 2], [5, 5]]


def test_mistakes():
    named = parameters(2)
    with pytest.raises(ValueError, match="bucket_bytes"):
        GradientAverager(Sums(), named.items(), 0)
    with pytest.raises(ValueError, match="requires grad"):
        GradientAverager(Sums(), [("w", Parameter(np.ones(2), requires_grad=False))])
    averager = GradientAverager(Sums(), named.items())
    averager.begin()
    (named["p0"] * 2.0).sum().backward()
    with pytest.raises(RuntimeError, match="p0: a second backward"):
        (named["p0"] * 2.0).sum().backward()
    averager.close()
    (named["p0"] * 2.0).sum().backward()
    changed = parameters(2)
    averager = GradientAverager(Sums(), changed.items())
    changed["p0"].data = np.ones(2, np.float32)
    averager.begin()
    with pytest.raises(TypeError, match="p0 must be float64"):
        (changed["p0"] * 2.0).sum().backward()
