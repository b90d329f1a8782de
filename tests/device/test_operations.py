"""Every operation on the device against the CPU, forward and backward."""

import numpy as np
import pytest

from minidl import Tensor, grad, manual_seed, ops
from minidl.gradcheck import gradcheck, gradgradcheck

MASK = np.array([[True, False, True], [False, False, True]])
PLACES = np.array([[2, 0], [0, 2]])  # some twice
LABELS = np.array([2, 0])
IMAGES = (2, 4, 6, 5)
POSITIVE = {"pow of tensors", "log", "sqrt"}
CASES = {
    "add": (lambda a, b: a + b, (2, 3), (3,)),
    "add a number": (lambda a: 1 + a + 2.0 + np.float32(3) + np.float64(4), (2, 3)),
    "sub": (lambda a, b: a - b, (2, 1), (2, 3)),
    "sub from a number": (lambda a: np.float64(2) - (1 - a), (2, 3)),
    "mul": (lambda a, b: a * b * 2, (2, 3), (3,)),
    "div": (lambda a, b: a / (b * b + 1) / 2, (2, 3), (3,)),
    "neg": (lambda a: -a, (2, 3)),
    "pow": (lambda a: a**2 + a**3, (2, 3)),
    "pow of tensors": (lambda a, b: a**b + 2.0**a, (2, 3), (3,)),
    "exp": (ops.exp, (2, 3)),
    "log": (ops.log, (2, 3)),
    "sqrt": (ops.sqrt, (2, 3)),
    "tanh": (ops.tanh, (2, 3)),
    "sigmoid": (ops.sigmoid, (2, 3)),
    "relu": (ops.relu, (2, 3)),
    "abs": (abs, (2, 3)),
    "clip": (lambda a: a.clip(-0.5, 0.5) + a.clip(0) + a.clip(max=0.1), (2, 3)),
    "maximum": (ops.maximum, (2, 3), (3,)),
    "minimum": (ops.minimum, (2, 3), (3,)),
    "where": (lambda a, b: ops.where(Tensor(MASK).to(a.device), a, b), (2, 3), (3,)),
    "sum": (
        lambda a: a.sum() * a.sum(axis=(0, 2)) + a.sum(2).sum(0, keepdims=True), (2, 3, 2),
    ),
    "mean": (lambda a: a.mean() * a.mean(axis=1), (2, 3)),
    "var": (lambda a: a.var() * a.var(axis=0), (2, 3)),
    "max": (lambda a: a.max() * a.max(axis=1), (2, 3)),
    "logsumexp": (lambda a: a.logsumexp(axis=1), (2, 3)),
    "softmax": (lambda a: a.softmax(axis=1), (2, 3)),
    "log_softmax": (lambda a: a.log_softmax(axis=1), (2, 3)),
    "cross_entropy": (lambda a: ops.cross_entropy(a, LABELS, label_smoothing=0.1), (2, 3)),
    "cross_entropy of a tensor": (
        lambda a: ops.cross_entropy(a, Tensor(LABELS).to(a.device), ignore_index=0), (2, 3),
    ),
    "cross_entropy of maps": (
        lambda a: ops.cross_entropy(a, np.array([[[0, 1]], [[2, 2]]]), "none"), (2, 3, 1, 2),
    ),
    "cross_entropy of probabilities": (
        lambda a: ops.cross_entropy(a, np.full((2, 3), 1 / 3), "sum"), (2, 3),
    ),
    "mse_loss": (ops.mse_loss, (2, 3), (2, 3)),
    "reshape": (lambda a: a.reshape(3, -1).flatten(), (2, 3)),
    "transpose": (lambda a, b: a.T * b.transpose(1, 0), (2, 3), (2, 3)),
    "broadcast_to": (lambda a: ops.broadcast_to(a, (4, 2, 3)), (2, 1)),
    "getitem": (lambda a: a[1, ..., None] * a[0, ::2].sum() + a[-1], (2, 3)),
    "getitem by arrays": (lambda a: a[:, PLACES] * a[MASK][:2], (2, 3)),
    "getitem by tensors": (lambda a: a[Tensor(PLACES // 2).to(a.device), [0, 2]], (2, 3)),
    "concatenate": (lambda a, b: ops.concatenate([a, b, a], axis=1), (2, 3), (2, 1)),
    "stack": (lambda a, b: ops.stack([a, b], axis=1), (2, 3), (2, 3)),
    "pad": (lambda a: ops.pad(a, ((1, 0), (0, 2)), 3.0), (2, 3)),
    "matmul": (lambda a, b: a @ b, (2, 3), (3, 4)),
    "matmul of stacks": (lambda a, b: a @ b, (2, 1, 2, 3), (4, 3, 2)),
    "matmul of vectors": (lambda a, b: a @ b, (3,), (3,)),
    "linear": (ops.linear, (2, 3), (4, 3), (4,)),
    "linear on more axes": (lambda x, w: ops.linear(x, w), (2, 2, 3), (4, 3)),
    "conv2d": (
        lambda x, w, b: ops.conv2d(x, w, b, (2, 1), (1, 0, 2, 1), (1, 2), 2),
        IMAGES, (6, 2, 3, 2), (6,),
    ),
    "conv2d, pointwise": (ops.conv2d, IMAGES, (3, 4, 1, 1)),
    "conv_transpose2d": (
        lambda x, w, b: ops.conv_transpose2d(x, w, b, 2, 1, 1, groups=2), IMAGES, (4, 1, 3, 3), (2,)
    ),
    "bias_relu": (ops.bias_relu, IMAGES, (4,)),
    "max_pool2d": (lambda x: ops.max_pool2d(x, 3, 2, 1, ceil_mode=True), IMAGES),
    "max_unpool2d": (
        lambda x: ops.max_unpool2d(*ops.max_pool2d(x, 2, return_switches=True), (6, 5)), IMAGES,
    ),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, 3, 2, 1, count_include_pad=False), IMAGES),
    "global_avg_pool2d": (ops.global_avg_pool2d, IMAGES),
    "adaptive_avg_pool2d": (lambda x: ops.adaptive_avg_pool2d(x, (4, 3)), IMAGES),
    "batch_norm": (
        lambda x, w, b: ops.batch_norm(x, w, b, *statistics(x), training=True), IMAGES, (4,), (4,)
    ),
    "batch_norm in evaluation": (
        lambda x, w, b: ops.batch_norm(x, w, b, *statistics(x), training=False), IMAGES, (4,), (4,)
    ),
    "local_response_norm": (lambda x: ops.local_response_norm(x, 3, 0.5), IMAGES),
    "dropout": (ops.dropout, (40,)),
    "cast": (lambda a: a.astype(np.float32).astype(np.float64), (2, 3)),
    "to": (lambda a: a.cpu().to(a.device), (2, 3)),
}  # fmt: skip


def statistics(x):
    return [Tensor(value * np.ones(x.shape[1])).to(x.device) for value in (0.5, 2.0)]


def draw(name, shapes, device):
    values = [np.random.default_rng(0).standard_normal(shape) for shape in shapes]
    if name in POSITIVE:
        values = [np.abs(value) + 0.5 for value in values]
    return [Tensor(value).to(device).requires_grad_() for value in values]


def run(name, device):
    """The result of an operation and its gradients, as NumPy arrays."""
    manual_seed(0)
    function, *shapes = CASES[name]
    inputs = draw(name, shapes, device)
    y = function(*inputs)
    assert y.device == device
    weights = np.random.default_rng(1).standard_normal(y.shape)
    grads = grad(y, inputs, Tensor(weights).to(device))
    assert all(g.device == device for g in grads)
    return [t.detach().cpu().numpy() for t in (y, *grads)]


@pytest.mark.parametrize("name", CASES)
def test_operation(gpu, name):
    for on_cpu, on_gpu in zip(run(name, "cpu"), run(name, "cuda"), strict=True):
        assert on_gpu.dtype == on_cpu.dtype
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-6 if name == "cast" else 1e-11,
                                   atol=1e-12)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["conv2d", "conv_transpose2d", "linear", "relu", "abs", "clip", "bias_relu", "max_pool2d",
     "avg_pool2d", "batch_norm", "batch_norm in evaluation", "local_response_norm", "softmax",
     "logsumexp", "where", "max", "pow of tensors"],
)  # fmt: skip
def test_derivatives_on_the_device(gpu, name):
    """The second ones, too: they are made of other operations than the first."""
    function, *shapes = CASES[name]
    inputs = draw(name, shapes, "cuda")
    gradcheck(function, inputs, fast=True)
    gradgradcheck(function, inputs, fast=True, atol=1e-4)


def test_tensors_on_two_devices(gpu):
    here, there = Tensor(np.ones((2, 2))), Tensor(np.ones((2, 2))).to("cuda")
    message = "must be on one device, got cpu, cuda: move them with to"
    images = Tensor(np.ones((1, 2, 3, 3))).to("cuda")
    ones = Tensor(np.ones(2)).to("cuda")
    for name, call in {
        "Add": lambda: here + there,
        "Concatenate": lambda: ops.concatenate([here, there]),
        "Linear": lambda: ops.linear(here, there),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: all tensors {message}"):
            call()
    with pytest.raises(ValueError, match="cross_entropy: .* got cuda, cpu"):
        ops.cross_entropy(there, Tensor(LABELS))
    with pytest.raises(ValueError, match="Mul: .* got cuda, cpu"):
        there * here.numpy()
    with pytest.raises(ValueError, match="batch_norm: .* got cuda, cuda, cpu"):
        ops.batch_norm(images, ones, ones, ones, Tensor(np.ones(2)), training=True)
    y = (there.requires_grad_() * 2).sum()
    with pytest.raises(ValueError, match="grad must be on the output's device, cuda: .* on cpu"):
        y.backward(np.ones(()))


def test_indices_outside_of_a_tensor(gpu):
    """CuPy alone would take them modulo the axis."""
    x = Tensor(np.arange(6.0).reshape(2, 3)).to("cuda")
    for key in (np.array([0, 3]), [3], Tensor(np.array([-4])).to("cuda")):
        with pytest.raises(IndexError, match="out of bounds"):
            x[:, key]
    assert x[1, np.array([-3])].cpu().numpy() == 3


def test_values_go_over_and_back(gpu):
    x = Tensor(np.arange(3.0), requires_grad=True)
    y = x.to("cuda")
    assert (x.device, y.device, y.cpu().device) == ("cpu", "cuda", "cpu") and x.cpu() is x
    (y * y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [0, 2, 4])
    y = y.detach().copy_(np.float64(5)).copy_(Tensor(np.arange(3.0)))
    assert float(y[2]) == 2 and y.sum().item() == 3 and "1." in repr(y)
    np.testing.assert_array_equal(y.numpy(), [0, 1, 2])
    with y.mutate() as array:
        array += 1
    np.testing.assert_array_equal(y.data.get(), [1, 2, 3])
