"""Convolution ops: gradients of first and second order on both backends, PyTorch as oracle."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidl import Tensor, no_grad, ops
from minidl.testing import assert_gradients_match, away_from_kinks, conv2d_parameters, tensors

few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(conv2d_parameters(max_extra=2), st.booleans(), st.data())
@few
def test_conv2d(backend, p, with_bias, data):
    x, weight = data.draw(tensors(p.x_shape)), data.draw(tensors(p.weight_shape))
    bias = (data.draw(tensors(p.weight_shape[:1])),) if with_bias else ()

    def op(x, weight, bias=None):
        return ops.conv2d(x, weight, bias, *p.settings)

    assert op(x, weight, *bias).shape == p.y_shape
    assert_gradients_match(op, x, weight, *bias)


@given(conv2d_parameters(max_extra=2), st.booleans(), st.data())
@few
def test_conv2d_affine(backend, p, rectify, data):
    x, weight = data.draw(tensors(p.x_shape)), data.draw(tensors(p.weight_shape))
    scale, shift = (data.draw(tensors(p.weight_shape[:1])) for _ in range(2))
    scale = data.draw(st.sampled_from([scale, None]))
    settings_ = (p.stride, p.padding, p.dilation, p.groups)
    with no_grad():  # others that bring the sums to values away from the rectifier's kink
        sums = ops.conv2d_affine(x, weight, scale, shift, None, False, *settings_)
        wanted = data.draw(away_from_kinks(p.y_shape, gap=0.3))
        others = Tensor((wanted - sums).numpy(), requires_grad=True)

    def op(x, weight, shift, others, scale=None):
        return ops.conv2d_affine(x, weight, scale, shift, others, rectify, *settings_)

    operands = [t for t in (x, weight, shift, others, scale) if t is not None]
    with no_grad():
        fused = op(*operands)
    assert_gradients_match(op, *operands)
    composed = op(*operands).detach()
    np.testing.assert_allclose(fused.numpy(), composed.numpy(), rtol=0, atol=1e-10)


def test_errors_of_conv2d_affine():
    x, weight, numbers = (Tensor(np.ones(s)) for s in ((1, 2, 3, 3), (4, 2, 1, 1), 4))
    with no_grad():
        with pytest.raises(TypeError, match="one dtype"):
            ops.conv2d_affine(x, weight, numbers, numbers.astype(np.float32))
        with pytest.raises(ValueError, match="shift"):
            ops.conv2d_affine(x, weight, numbers, Tensor(np.ones(3)))


@given(conv2d_parameters(max_extra=2), st.booleans(), st.data())
@few
def test_conv_transpose2d(backend, p, with_bias, data):
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in p.stride)
    x, weight = data.draw(tensors(p.y_shape)), data.draw(tensors(p.weight_shape))
    channels = p.x_shape[1]
    bias = (data.draw(tensors((channels,))),) if with_bias else ()

    def op(x, weight, bias=None):
        return ops.conv_transpose2d(
            x, weight, bias, p.stride, p.padding, extra, p.dilation, p.groups
        )

    try:
        op(x, weight, *bias)
    except ValueError as error:  # padding larger than what the transpose produces
        assert "output size" in str(error)
        return
    assert_gradients_match(op, x, weight, *bias)


@given(st.data(), st.integers(1, 3), st.integers(1, 3))
@few
def test_bias_relu(backend, data, n, c):
    x = data.draw(away_from_kinks((n, c, 2, 3), gap=0.3))
    bias = Tensor(data.draw(tensors((c,))).detach().numpy() * 0.1, requires_grad=True)
    assert_gradients_match(ops.bias_relu, x, bias)
    expected = np.maximum(x.detach().numpy() + bias.detach().numpy()[:, None, None], 0)
    np.testing.assert_allclose(ops.bias_relu(x, bias).detach().numpy(), expected, 1e-12)


@given(conv2d_parameters(), st.data())
@few
def test_conv2d_relu(backend, p, data):
    x, weight = data.draw(tensors(p.x_shape)), data.draw(tensors(p.weight_shape))
    sums = ops.conv2d(x, weight, None, *p.settings).detach().numpy()
    # A bias away from the kinks of the rectifier, where the slopes would not be defined.
    bias = Tensor(np.where(np.arange(p.weight_shape[0]) % 2, 1, -1) * (abs(sums).max() + 1.0))
    bias.requires_grad = True

    def op(*operands):
        return ops.conv2d_relu(*operands, *p.settings)

    expected = np.maximum(sums + bias.detach().numpy()[:, None, None], 0)
    np.testing.assert_allclose(op(x, weight, bias).detach().numpy(), expected, 1e-12, 1e-12)
    assert_gradients_match(op, x, weight, bias)


@given(conv2d_parameters(), st.data())
@few
def test_against_torch(backend, p, data):
    torch = pytest.importorskip("torch")
    x, weight = data.draw(tensors(p.x_shape)), data.draw(tensors(p.weight_shape))
    tx, tw = (torch.tensor(t.detach().numpy(), requires_grad=True) for t in (x, weight))
    top, bottom, left, right = p.padding
    padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
    theirs = torch.nn.functional.conv2d(
        padded, tw, stride=p.stride, dilation=p.dilation, groups=p.groups
    )
    ours = ops.conv2d(x, weight, None, *p.settings)
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), 1e-10, 1e-10)
    (ours * ours).sum().backward()
    (theirs * theirs).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), tx.grad.numpy(), 1e-9, 1e-9)
    np.testing.assert_allclose(weight.grad.numpy(), tw.grad.numpy(), 1e-9, 1e-9)


def test_transposed_against_torch(backend):
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    x, w, b = draw.random((2, 4, 5, 6)), draw.random((4, 3, 3, 2)), draw.random(6)
    theirs = torch.nn.functional.conv_transpose2d(
        *map(torch.tensor, (x, w, b)), (3, 2), (1, 0), (2, 1), 2, (1, 2)
    )
    ours = ops.conv_transpose2d(
        *map(Tensor, (x, w, b)), stride=(3, 2), padding=(1, 0), output_padding=(2, 1), groups=2,
        dilation=(1, 2),
    )  # fmt: skip
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-10)


def test_float32_stays_float32(backend):
    draw = np.random.default_rng(0)
    x, w, b = (
        Tensor(draw.random(s).astype(np.float32), requires_grad=True)
        for s in ((2, 3, 5, 5), (4, 3, 2, 2), (4,))
    )
    y = ops.conv2d(x, w, b, stride=2, padding=(0, 1, 1, 0))
    y = ops.conv_transpose2d(y, w, stride=2) + ops.bias_relu(x, Tensor(np.ones(3, np.float32)))[
        :, :, :1, :1
    ]
    y.sum().backward()
    assert y.dtype == x.grad.dtype == w.grad.dtype == b.grad.dtype == np.float32


def test_zero_batch(backend):
    x = Tensor(np.zeros((0, 2, 4, 4)), requires_grad=True)
    w = Tensor(np.ones((3, 2, 2, 2)), requires_grad=True)
    y = ops.conv2d(x, w)
    y.sum().backward()
    assert y.shape == (0, 3, 3, 3) and x.grad.shape == x.shape and (w.grad.numpy() == 0).all()


def test_errors_name_the_argument(backend):
    x, w = Tensor(np.zeros((1, 2, 4, 4))), Tensor(np.zeros((4, 2, 3, 3)))
    cases = [
        (lambda: ops.conv2d(x, w, stride=0), ValueError, "stride"),
        (lambda: ops.conv2d(x, w, padding=(1, 2, 3)), ValueError, "padding"),
        (lambda: ops.conv2d(x, w, padding=-1), ValueError, "padding"),
        (lambda: ops.conv2d(x, w, dilation=2), ValueError, "does not fit"),
        (lambda: ops.conv2d(x, w, groups=3), ValueError, "groups"),
        (lambda: ops.conv2d(x, w, groups=1.0), ValueError, "groups"),
        (lambda: ops.conv2d(x, w, Tensor(np.zeros(3))), ValueError, "bias"),
        (lambda: ops.conv2d(x, Tensor(np.zeros((4, 3, 3, 3)))), ValueError, "weight"),
        (lambda: ops.conv2d(x, w.astype(np.float32)), TypeError, "one dtype"),
        (lambda: ops.conv2d(x[0], w), ValueError, "x must have 4 axes"),
        (lambda: ops.conv_transpose2d(x, w), ValueError, "weight"),
    ]
    for call, kind, words in cases:
        with pytest.raises(kind, match=words):
            call()
