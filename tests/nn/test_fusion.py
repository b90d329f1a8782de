"""A convolution and what follows it: the same result however few passes are taken."""

import numpy as np
import pytest

import minidl
from architectures import googlenet, resnet, vgg
from minidl import Tensor, nn, no_grad
from minidl.tensor import listening


def operations(run):
    """The names of the operations that run, as a profile sees them: it does not disturb them."""
    with minidl.profile() as profile:
        run()
    return [row.name for row in profile.rows()]


def draw(*shape, dtype=np.float32):
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(dtype))


def statistics(norm):
    """Running statistics and parameters that are not those of a fresh layer."""
    rng = np.random.default_rng(1)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        with tensor.mutate() as array:
            array[...] = rng.random(array.shape) + 0.5
    return norm


def block(dtype=np.float64, bias=False):
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=bias).to(dtype)
    return conv, statistics(nn.BatchNorm2d(6).to(dtype))


def by_steps(x, conv, norm, shortcut, rectify):
    y = norm(conv(x)) if norm is not None else conv(x)
    y = y if shortcut is None else y + shortcut
    return minidl.ops.relu(y) if rectify else y


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_block(training, recording, with_norm, with_shortcut, rectify, bias):
    conv, norm = block(bias=bias)
    norm = norm.train(training) if with_norm else None
    x, shortcut = draw(2, 4, 5, 5, dtype=np.float64), draw(2, 6, 5, 5, dtype=np.float64)
    arguments = x, conv, norm, shortcut if with_shortcut else None, rectify
    with minidl.enable_grad() if recording else no_grad():
        ours, expected = nn.conv_block(*arguments).detach(), by_steps(*arguments).detach()
    np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=0, atol=1e-12)


def test_what_takes_one_pass():
    conv, norm = block(np.float32)
    x, shortcut = draw(2, 4, 5, 5), draw(2, 6, 5, 5)

    def run():
        return nn.conv_block(x, conv, norm, shortcut, True)

    norm.eval()
    with no_grad():
        assert "Conv2dAffine" in operations(run) and "ReLU" not in operations(run)
    assert {"Conv2d", "BatchNormEval", "Add", "ReLU"} <= set(operations(run))
    norm.train()
    assert {"Conv2d", "BatchNormTrain"} <= set(operations(run))
    assert not {"Add", "ReLU"} & set(operations(run))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("recording", [False, True])
def test_affine_with_some_of_its_terms(bias, scaled, shifted, recording):
    conv, _ = block(bias=bias)
    x, scale, shift = draw(2, 4, 5, 5, dtype=np.float64), draw(6) + 3, draw(6) - 2
    scale, shift = scale.astype(np.float64), shift.astype(np.float64)
    expected = conv(x).detach().numpy()
    expected = expected * scale.numpy()[:, None, None] if scaled else expected
    expected = expected + shift.numpy()[:, None, None] if shifted else expected
    with minidl.enable_grad() if recording else no_grad():
        y = conv.affine(x, scale if scaled else None, shift if shifted else None)
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda conv, x: nn.Sequential(conv, nn.ReLU())(x),
        lambda conv, x: nn.conv_block(x, conv, rectify=True),
    ],
)
def test_rectifier_goes_with_the_convolution(call):
    """In training too, with the same gradients and second derivatives."""
    conv, _ = block(bias=True)
    x, up = draw(2, 4, 5, 5, dtype=np.float64), draw(2, 6, 5, 5, dtype=np.float64)
    assert operations(lambda: call(conv, x)) == ["Conv2dReLU"]
    operands = x.requires_grad_(), conv.weight, conv.bias
    slopes = [
        minidl.grad(y, operands, up, create_graph=True)
        for y in (call(conv, x), by_steps(x, conv, None, None, True))
    ]
    curvatures = [minidl.grad((dw * dw).sum(), x)[0] for _, dw, _ in slopes]
    pairs = zip((*slopes[0], curvatures[0]), (*slopes[1], curvatures[1]), strict=True)
    for ours, expected in pairs:
        assert abs(expected.detach().numpy()).max() > 0
        np.testing.assert_allclose(ours.detach().numpy(), expected.detach().numpy(), atol=1e-10)


def test_steps_where_somebody_watches():
    conv, norm = block(np.float32)
    x, seen = draw(2, 4, 5, 5), []
    norm.eval()
    model = nn.Sequential(conv, norm, nn.ReLU(inplace=True))
    with no_grad():
        fused = model(x).numpy().copy()
        with listening(lambda function, inputs, outputs: seen.append(type(function).__name__)):
            np.testing.assert_allclose(model(x).numpy(), fused, rtol=0, atol=1e-5)
        assert seen == ["Conv2d", "BatchNormEval", "ReLU"]
        for module in (conv, norm, model[2]):
            with module.register_forward_hook(lambda module, inputs, y: seen.append(y.numpy())):
                model(x)
        by_hand = conv(x), norm(conv(x)), norm(conv(x)).numpy().clip(0)
        for shown, expected in zip(seen[3:], by_hand, strict=True):
            expected = expected if isinstance(expected, np.ndarray) else expected.numpy()
            np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-5)


def test_a_subclass_keeps_its_behaviour():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2.0

    conv, _ = block(np.float32)
    norm = statistics(Doubled(6)).eval()
    x = draw(2, 4, 5, 5)
    with no_grad():
        y = nn.Sequential(conv, norm, nn.ReLU())(x)
        np.testing.assert_array_equal(y.numpy(), norm(conv(x)).numpy().clip(0))


NETWORKS = {
    "resnet18": lambda: resnet.build(depth=18, full=False),
    "resnet50": lambda: resnet.build(depth=50, full=False),
    "resnet20": lambda: resnet.build(depth=20),
    "resnet18 v2": lambda: resnet.build(depth=18, version="2", full=False),
    "vgg with batch norm": lambda: vgg.build(batch_norm=True, full=False),
    "googlenet": lambda: googlenet.build(full=False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    """In inference as in evaluation with a graph, which goes step by step; in training likewise."""
    minidl.manual_seed(0)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            statistics(module)
    x = draw(2, 3, 64, 64)
    model.eval()
    with no_grad():
        fused = model(x)
    steps = model(x)
    scale = abs(steps.detach().numpy()).max()
    np.testing.assert_allclose(fused.numpy(), steps.detach().numpy(), rtol=0, atol=2e-5 * scale)
