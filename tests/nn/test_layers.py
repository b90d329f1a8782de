"""Every layer: gradients in float64, agreement with PyTorch's layer, dtypes, arguments."""

import numpy as np
import pytest

import minidl
from minidl import Tensor, nn, ops
from minidl.gradcheck import gradcheck_module

LAYERS = {
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2), (2, 4, 5, 5)),
    "Conv2d_uneven": (lambda: nn.Conv2d(2, 3, (2, 3), padding=(0, 1, 2, 0), bias=False),
                      (2, 2, 4, 4)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 3, 3),
    ),
    "Linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), (4, 3, 2, 2)),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3, alpha=0.3, k=2.0), (2, 5, 2, 2)),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), (2, 2, 5, 5)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), (2, 2, 5, 5)),
    "GlobalAvgPool2d": (nn.GlobalAvgPool2d, (2, 3, 4, 4)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 2, 5, 4)),
    "Dropout": (lambda: nn.Dropout(0.3), (4, 5)),
    "ReLU": (nn.ReLU, (3, 4)),
    "Tanh": (nn.Tanh, (3, 4)),
    "Sigmoid": (nn.Sigmoid, (3, 4)),
    "Flatten": (nn.Flatten, (2, 3, 2)),
    "Identity": (nn.Identity, (2, 3)),
    "Sequential": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name, training):
    make, shape = LAYERS[name]
    minidl.manual_seed(0)
    layer = make().to(np.float64).train(training)
    x = Tensor(np.random.default_rng(1).standard_normal(shape), requires_grad=True)
    gradcheck_module(layer, x, fast=False)
    gradcheck_module(layer, x, fast=True)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_stays_float32(name):
    make, shape = LAYERS[name]
    layer = make()
    x = Tensor(np.random.default_rng(1).random(shape, np.float32), requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == np.float32
    for parameter in layer.parameters():
        assert parameter.dtype == parameter.grad.dtype == np.float32


TORCH = {
    "Conv2d": (lambda n: n.Conv2d(4, 6, 3, 2, padding=1, dilation=2, groups=2), (2, 4, 7, 7)),
    "ConvTranspose2d": (
        lambda n: n.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 3, 3),
    ),
    "Linear": (lambda n: n.Linear(5, 3), (4, 5)),
    "BatchNorm2d": (lambda n: n.BatchNorm2d(3, eps=1e-3, momentum=0.2), (4, 3, 2, 2)),
    "LocalResponseNorm": (lambda n: n.LocalResponseNorm(4, 0.3, 0.6, 2.0), (2, 6, 2, 2)),
    "MaxPool2d": (lambda n: n.MaxPool2d(3, 2, 1, ceil_mode=True), (2, 2, 6, 6)),
    "AvgPool2d": (lambda n: n.AvgPool2d(3, 2, 1, True, False), (2, 2, 6, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_against_torch(name):
    torch = pytest.importorskip("torch")
    make, shape = TORCH[name]
    ours, theirs = make(nn).to(np.float64), make(torch.nn).double()
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    ours.load_state_dict(state)
    x = np.random.default_rng(0).standard_normal(shape)
    for mode in (True, False):
        ours.train(mode)
        theirs.train(mode)
        tx, mx = torch.tensor(x, requires_grad=True), Tensor(x.copy(), requires_grad=True)
        ty, my = theirs(tx), ours(mx)
        np.testing.assert_allclose(my.detach().numpy(), ty.detach().numpy(), 1e-9, 1e-10)
        (ty**2).sum().backward()
        (my**2).sum().backward()
        np.testing.assert_allclose(mx.grad.numpy(), tx.grad.numpy(), 1e-8, 1e-9)
        for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), 1e-8, 1e-9, err_msg=key)
            a.zero_grad()
            b.grad = None
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key], value.numpy(), 1e-10, err_msg=key)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: nn.Conv2d(0, 3, 3), "in_channels"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size"),
        (lambda: nn.Linear(3, -1), "out_features"),
        (lambda: nn.BatchNorm2d(0), "num_features"),
        (lambda: nn.BatchNorm2d(2, momentum=2), "momentum"),
        (lambda: nn.LocalResponseNorm(0), "size"),
        (lambda: nn.MaxPool2d(2, padding=2), "padding"),
        (lambda: nn.Dropout(1.0), "p must be"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_relu_in_place_takes_the_memory_of_what_nobody_else_needs():
    draw = np.random.default_rng(0)
    weight = Tensor(draw.standard_normal((3, 2, 3, 3)), requires_grad=True)
    x = Tensor(draw.standard_normal((2, 2, 6, 6)))
    y = ops.conv2d(x, weight)
    before = y._array.copy()
    z = nn.ReLU(inplace=True)(y)
    assert z._array is y._array
    np.testing.assert_array_equal(z._array, np.maximum(before, 0))
    (z * z).sum().backward()
    expected = weight.grad
    weight.grad = None
    z = ops.relu(ops.conv2d(x, weight))
    (z * z).sum().backward()
    np.testing.assert_array_equal(weight.grad._array, expected._array)


def test_relu_in_place_leaves_alone_what_others_need():
    relu = nn.ReLU(inplace=True)
    leaf = Tensor(np.array([-1.0, 2.0]), requires_grad=True)
    relu(leaf)
    assert leaf._array[0] == -1
    kept = leaf.exp() * -1.0  # the product keeps the factor, exp its result
    product = kept * leaf
    relu(kept)
    product.sum().backward()  # would raise had `kept` been written on
    given = np.array([-1.0, 2.0])
    relu(Tensor(given))
    assert given[0] == -1
    made = Tensor([-1.0, 2.0]) * 1.0
    held = made.data
    relu(made)
    assert held[0] == -1


def test_relu_in_place_keeps_what_a_hook_has_seen():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    x = Tensor(np.random.default_rng(0).standard_normal((1, 1, 5, 5)).astype(np.float32))
    y = model(x)
    assert (seen[0]._array < 0).any() and (y._array >= 0).all()


def test_what_was_rectified_in_place_counts_as_modified():
    x = Tensor([-1.0, 2.0], requires_grad=True)
    y = x * 2.0
    view = y.reshape(2, 1)
    ops.relu(y, inplace=True)
    assert view._storage.version == y._storage.version == 1
