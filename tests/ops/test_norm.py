"""Normalisation ops: gradients on both backends, PyTorch as oracle."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl import Tensor, enable_grad, no_grad, ops, profile
from minidl.testing import assert_gradients_match, away_from_kinks, tensors

few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(st.data(), st.booleans())
@few
def test_batch_norm(backend, data, training):
    shape = data.draw(st.sampled_from([(2, 3, 2, 2), (3, 1, 1, 2), (4, 2, 1, 1), (1, 2, 3, 2)]))
    x = data.draw(tensors(shape))
    weight, bias = (data.draw(tensors(shape[1:2])) for _ in range(2))
    mean = Tensor(np.linspace(-0.5, 0.5, shape[1]))
    var = Tensor(np.linspace(0.5, 1.5, shape[1]))

    def op(x, weight, bias):
        running = Tensor(mean.numpy().copy()), Tensor(var.numpy().copy())
        return ops.batch_norm(x, weight, bias, *running, training, eps=1e-2)

    assert_gradients_match(op, x, weight, bias, atol=1e-4)


@given(st.data(), st.booleans(), st.booleans())
@few
def test_batch_norm_with_others(backend, data, training, rectify):
    """A sum and ReLU in the same pass, the sums away from the rectifier's kink."""
    shape = data.draw(st.sampled_from([(2, 3, 2, 2), (3, 1, 1, 2), (4, 2, 1, 1), (1, 2, 3, 2)]))
    x = data.draw(tensors(shape))
    weight, bias = (data.draw(tensors(shape[1:2])) for _ in range(2))
    mean, var = np.linspace(-0.5, 0.5, shape[1]), np.linspace(0.5, 1.5, shape[1])

    def op(x, weight, bias, others=None, rectify=rectify):
        running = Tensor(mean.copy()), Tensor(var.copy())
        return ops.batch_norm(
            x, weight, bias, *running, training, eps=1e-2, others=others, rectify=rectify
        )

    wanted = data.draw(away_from_kinks(shape, gap=0.3)).detach()
    normal = op(x, weight, bias, rectify=False).detach()
    others = Tensor((wanted - normal).numpy(), requires_grad=True)
    assert_gradients_match(op, x, weight, bias, others, atol=1e-4)
    expected = np.maximum(wanted.numpy(), 0) if rectify else wanted.numpy()
    np.testing.assert_allclose(op(x, weight, bias, others).detach().numpy(), expected, atol=1e-12)


@given(st.data(), st.integers(1, 5))
@few
def test_batch_norm_affine(backend, data, channels):
    """The constants of evaluation, from one kernel where no graph wants them."""
    weight, bias, mean = (data.draw(tensors((channels,))) for _ in range(3))
    var = Tensor(np.linspace(0.5, 1.5, channels), requires_grad=True)

    def op(part):
        return lambda *operands: ops.batch_norm_affine(*operands, eps=1e-2)[part]

    operands = weight, bias, mean, var
    for part in range(2):
        assert_gradients_match(op(part), *operands)
        with no_grad():
            fused = op(part)(*operands)
        np.testing.assert_allclose(fused.numpy(), op(part)(*operands).detach().numpy(), atol=1e-12)


def test_batch_norm_affine_is_one_operation_where_no_graph_is_recorded(backend):
    ones = Tensor(np.ones(3), requires_grad=True)

    def operations():
        with profile() as p:
            ops.batch_norm_affine(ones, ones, ones, ones)
        return {row.name for row in p.rows()}

    assert "Sub" in operations()
    with no_grad():
        assert operations() == {"BatchNormAffine"}


@pytest.mark.parametrize("mode", [enable_grad, no_grad])
def test_errors_of_batch_norm_affine(mode):
    ones = Tensor(np.ones(4))
    for wrong, error, words in (
        ((ones, ones, ones, Tensor(np.ones(1))), ValueError, "running_var must have shape"),
        ((ones.reshape(2, 2), ones, ones, ones), ValueError, "weight must have shape"),
        ((ones, ones.astype(np.float32), ones, ones), TypeError, "bias must have weight's dtype"),
    ):
        with mode(), pytest.raises(error, match=words):
            ops.batch_norm_affine(*wrong)


@given(st.data())
@few
def test_rectified_batch_norm(backend, data):
    """Without others; a bias that outweighs all normalised values keeps them off the kink."""
    x = data.draw(tensors((2, 4, 2, 2)))
    weight = Tensor(np.array([0.5, -1.0, 0.8, 1.0]), requires_grad=True)
    bias = Tensor(np.array([4.0, 4.0, -4.0, 4.0]), requires_grad=True)
    running = Tensor(np.zeros(4)), Tensor(np.ones(4))

    def op(x, weight, bias):
        return ops.batch_norm(x, weight, bias, *running, True, eps=1e-2, rectify=True)

    assert_gradients_match(op, x, weight, bias, atol=1e-4)
    y = op(x, weight, bias).detach().numpy()
    assert (y[:, [0, 1, 3]] > 0).all() and (y[:, 2] == 0).all()


@given(
    tensors((2, 5, 2, 2)), st.integers(1, 6), st.sampled_from([0.75, 0.5, 1.3]), st.booleans()
)
@few
def test_local_response_norm(backend, x, size, beta, size_normalized):
    def op(x):
        return ops.local_response_norm(x, size, 0.3, beta, 1.5, size_normalized)

    assert_gradients_match(op, x)


def test_batch_norm_against_torch(backend):
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    x, weight, bias = draw.standard_normal((4, 3, 5, 2)), draw.random(3), draw.random(3)
    mean, var = Tensor(np.zeros(3)), Tensor(np.ones(3))
    tmean, tvar = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for training in (True, True, False):
        ours = ops.batch_norm(
            *map(Tensor, (x, weight, bias)), mean, var, training, momentum=0.3, eps=1e-3
        )
        theirs = torch.nn.functional.batch_norm(
            torch.tensor(x), tmean, tvar, torch.tensor(weight), torch.tensor(bias), training, 0.3,
            1e-3,
        )  # fmt: skip
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-10, 1e-10)
        np.testing.assert_allclose(mean.numpy(), tmean.numpy(), 1e-12)
        np.testing.assert_allclose(var.numpy(), tvar.numpy(), 1e-12)


@given(st.integers(1, 6))
@few
def test_lrn_against_torch(backend, size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(size).standard_normal((2, 6, 3, 2))
    theirs = torch.nn.functional.local_response_norm(torch.tensor(x), size, 0.4, 0.75, 2.0)
    ours = ops.local_response_norm(Tensor(x), size, 0.4, 0.75, 2.0)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-10)


def test_lrn_of_alexnet_does_not_divide_alpha(backend):
    x = np.random.default_rng(0).standard_normal((1, 7, 1, 1))
    y = ops.local_response_norm(Tensor(x), 5, 1e-1, 0.75, 2.0, size_normalized=False).numpy()
    a = x[0, :, 0, 0]
    for i in range(7):
        total = sum(a[j] ** 2 for j in range(max(0, i - 2), min(6, i + 2) + 1))
        assert y[0, i, 0, 0] == pytest.approx(a[i] / (2 + 0.1 * total) ** 0.75, rel=1e-12)


def test_float32_stays_float32(backend):
    x = Tensor(np.random.default_rng(0).random((2, 3, 4, 4), np.float32), requires_grad=True)
    weight, bias = (Tensor(np.ones(3, np.float32), requires_grad=True) for _ in range(2))
    running = Tensor(np.zeros(3, np.float32)), Tensor(np.ones(3, np.float32))
    for training in (True, False):
        y = ops.batch_norm(x, weight, bias, *running, training)
        y = ops.local_response_norm(y, 2)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == weight.grad.dtype == bias.grad.dtype == np.float32
    assert all(t.dtype == np.float32 for t in running)


def test_errors_name_the_argument(backend):
    ones = Tensor(np.ones(2))
    x = Tensor(np.ones((2, 2, 2, 2)))
    cases = [
        (lambda: ops.batch_norm(x[:1, :, :1, :1], ones, ones, ones, ones, True), "one value"),
        (lambda: ops.batch_norm(x, Tensor(np.ones(3)), ones, ones, ones, True), "weight"),
        (lambda: ops.batch_norm(x, ones, ones, ones, ones, True, others=x[:1]), "others"),
        (lambda: ops.batch_norm(x[0], ones, ones, ones, ones, True), "x must have shape"),
        (lambda: ops.local_response_norm(x, 0), "size"),
        (lambda: ops.local_response_norm(x[0], 3), "x must have shape"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="bias"):
        ops.batch_norm(x, ones, ones.astype(np.float32), ones, ones, True)
