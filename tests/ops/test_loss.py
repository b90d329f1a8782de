"""Softmax and the losses, against PyTorch and finite differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import Tensor, ops, tensor
from minidl.testing import assert_gradients_match, shapes, tensors

few = settings(max_examples=20, deadline=None)


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax])
def test_softmax(op):
    @given(tensors(shapes(1, 3)), st.data())
    @few
    def check(x, data):
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        e = np.exp(x.detach().numpy())
        expected = e / e.sum(axis=axis, keepdims=True)
        expected = expected if op is ops.softmax else np.log(expected)
        np.testing.assert_allclose(op(x, axis).detach().numpy(), expected, 1e-12, 1e-12)
        assert_gradients_match(lambda x: op(x, axis), x)

    check()


@st.composite
def classifications(draw):
    """(logits, integer labels some of which may be ignored, or soft labels)."""
    n, classes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    lead, rest = (n,), draw(st.sampled_from([(), (2,), (2, 2)]))
    logits = draw(tensors((n, classes, *rest)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        soft = generator.random((n, classes, *rest))
        return logits, soft / soft.sum(axis=1, keepdims=True)
    labels = generator.integers(0, classes, (*lead, *rest))
    labels.flat[1:] = np.where(generator.random(labels.size - 1) < 0.2, -100, labels.flat[1:])
    return logits, labels


@given(
    classifications(), st.sampled_from(["mean", "sum", "none"]), st.sampled_from([0.0, 0.1, 0.7])
)
@settings(max_examples=40, deadline=None)
def test_cross_entropy(drawn, reduction, smoothing):
    logits, target = drawn

    def loss(z):
        return ops.cross_entropy(z, target, reduction, smoothing)

    assert_gradients_match(loss, logits)
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits.detach().numpy()), torch.tensor(target), reduction=reduction,
        label_smoothing=smoothing,
    )  # fmt: skip
    np.testing.assert_allclose(loss(logits).detach().numpy(), theirs.numpy(), 1e-10, 1e-12)


def test_ignored_labels_get_no_gradient():
    logits = Tensor(np.random.default_rng(0).random((3, 4)), requires_grad=True)
    ops.cross_entropy(logits, np.array([1, 7, 2]), ignore_index=7).backward()
    assert (logits.grad.numpy()[1] == 0).all() and logits.grad.numpy()[0].any()
    assert np.isnan(ops.cross_entropy(logits, np.array([7, 7, 7]), ignore_index=7).item())


def test_extreme_logits():
    logits = tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = ops.cross_entropy(logits, np.array([0, 0]), reduction="none")
    assert loss.detach().numpy().tolist() == [0.0, 2e4]
    loss.sum().backward()
    assert np.isfinite(logits.grad.numpy()).all()
    masked = tensor([[0.0, -np.inf]])
    assert ops.cross_entropy(masked, np.array([0])).item() == 0


@given(tensors((3, 2)), tensors((3, 2)), st.sampled_from(["mean", "sum", "none"]))
@few
def test_mse(x, y, reduction):
    squares = (x.detach().numpy() - y.detach().numpy()) ** 2
    expected = {"mean": squares.mean(), "sum": squares.sum(), "none": squares}[reduction]
    np.testing.assert_allclose(ops.mse_loss(x, y, reduction).detach().numpy(), expected, 1e-12)
    assert_gradients_match(lambda x, y: ops.mse_loss(x, y, reduction), x, y)


def test_float32_stays_float32():
    logits = tensor(np.ones((2, 3), np.float32), requires_grad=True)
    for target in (np.array([0, 1]), np.full((2, 3), 1 / 3)):
        logits.zero_grad()
        loss = ops.cross_entropy(logits, target, label_smoothing=0.1)
        loss.backward()
        assert loss.dtype == logits.grad.dtype == np.float32


def test_errors_name_the_argument():
    logits = Tensor(np.zeros((2, 3)))
    cases = [
        (lambda: ops.cross_entropy(logits, [0, 3]), r"target.*\[0, 3\).*3"),
        (lambda: ops.cross_entropy(logits, [0, -1]), "target"),
        (lambda: ops.cross_entropy(logits, [0]), "target must have shape"),
        (lambda: ops.cross_entropy(logits, np.zeros((2, 4))), "target"),
        (lambda: ops.cross_entropy(logits, [0, 1], reduction="max"), "reduction"),
        (lambda: ops.cross_entropy(logits, [0, 1], label_smoothing=2), "label_smoothing"),
        (lambda: ops.cross_entropy(Tensor(np.zeros(3)), [0]), "logits"),
        (lambda: ops.mse_loss(logits, Tensor(np.zeros(3))), "y must have"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()


def test_integer_logits_count_as_float32():
    logits = Tensor(np.array([[1, 2]]))
    soft = ops.cross_entropy(logits, [[0.25, 0.75]], label_smoothing=0.1)
    expected = ops.cross_entropy(Tensor([[1.0, 2.0]]), [[0.25, 0.75]], label_smoothing=0.1)
    assert soft.dtype == np.float32 and soft.item() == expected.item()
    assert ops.softmax(logits).dtype == ops.log_softmax(logits).dtype == np.float32


def test_no_classes_and_targets_that_would_get_no_gradient():
    empty = Tensor(np.zeros((2, 0)))
    for op in (ops.softmax, ops.log_softmax):
        with pytest.raises(ValueError, match="needs an element along axis 1"):
            op(empty)
    with pytest.raises(ValueError, match="logits must have shape"):
        ops.cross_entropy(empty, np.zeros((2, 0)))
    target = Tensor([[0.5, 0.5]], requires_grad=True)
    with pytest.raises(ValueError, match="must not require grad"):
        ops.cross_entropy(Tensor([[1.0, 2.0]]), target)
