"""The deconvnet against ones written out by hand from the reference kernels."""

import threading

import numpy as np
import pytest

import minidl
from kernels import reference
from minidl import Tensor, grad, nn, no_grad, ops
from minidl.ops.elementwise import ReLU
from minidl.visualize.deconvnet import project

RNG = np.random.default_rng(1)


@pytest.fixture(autouse=True)
def same_weights():
    minidl.manual_seed(1)


def images(*shape):
    return RNG.standard_normal(shape)


def relu(x):
    return np.maximum(x, 0)


def chain(groups=1):
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(3, 4, 3, padding=1),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(3, 2),
            "conv2": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups),
            "relu2": nn.ReLU(),
            "flatten": nn.Flatten(),
            "head": nn.Linear(54, 5),
        }
    ).to(np.float64)


def weights(*layers):
    return [layer.weight.data.copy() for layer in layers]


def hand_made_chain(model, image, channel, position, groups=1):
    """Up through conv1 to relu2, then down: unpool, rectify, transposed filters."""
    w1, w2 = weights(model.conv1, model.conv2)
    b1, b2 = model.conv1.bias.data, model.conv2.bias.data
    pad = (1, 1, 1, 1)
    up1 = relu(reference.conv2d(image, w1, b1, (1, 1), pad))
    pooled, switches = reference.max_pool2d(up1, (3, 3), (2, 2))
    up2 = relu(reference.conv2d(pooled, w2, b2, (2, 2), pad, groups=groups))
    plane = up2[0, channel]
    if position is None:
        position = np.unravel_index(plane.argmax(), plane.shape)
    down = np.zeros_like(up2)
    down[0, channel, position[0], position[1]] = plane[position[0], position[1]]
    down = reference.conv_transpose2d(relu(down), w2, None, (2, 2), pad, (0, 0), (1, 1), groups)
    assert down.shape == pooled.shape
    down = relu(reference.max_unpool2d(down, switches, up1.shape[2:]))
    return reference.conv_transpose2d(down, w1, None, (1, 1), pad)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("position", [None, (1, 2)])
def test_chain(groups, position, backend):
    model, image = chain(groups), images(1, 3, 12, 12)
    assert model.pool1(model.conv1(Tensor(image))).shape[2:] == (5, 5)
    lit = 0
    for channel in range(6):
        expected = hand_made_chain(model, image, channel, position, groups)
        found = project(model, image[0], "relu2", channel, position)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-10)
        lit += found.any()
    assert lit >= 3


def test_a_positive_activation_before_its_rectification_projects_alike():
    model, image = chain(), images(1, 3, 12, 12)
    np.testing.assert_array_equal(
        project(model, image, "conv2", 0), project(model, image, "relu2", 0)
    )


def test_rectification_is_not_the_forward_mask():
    model, image = chain(), images(1, 3, 12, 12)
    x = Tensor(image, requires_grad=True)
    top = model.conv2(model.pool1(model.relu1(model.conv1(x))))[0, 0]
    top = top.reshape(-1)[int(top.detach().numpy().argmax())]
    (gradient,) = grad(top, x, top.detach())
    assert np.abs(gradient.numpy() - project(model, image, "conv2", 0)).max() > 1e-3


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.one = nn.Conv2d(3, 2, 1)
        self.three = nn.Conv2d(3, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.project = nn.Conv2d(3, 2, 1)
        self.top = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        x = ops.relu(self.stem(x))
        branches = [self.one(x), self.three(x), self.project(self.pool(x))]
        return self.top(ops.concatenate([ops.relu(b) for b in branches], axis=1))


def test_inception(backend):
    model, image = Inception().to(np.float64), images(1, 2, 6, 5)
    ws, w1, w3, wp, wt = weights(model.stem, model.one, model.three, model.project, model.top)
    pad = (1, 1, 1, 1)
    stem = relu(reference.conv2d(image, ws, model.stem.bias.data, (1, 1), pad))
    _, switches = reference.max_pool2d(stem, (3, 3), (1, 1), pad)
    with no_grad():
        top = model(Tensor(image)).numpy()
    down = np.zeros_like(top)
    down[0, 3, 2, 4] = top[0, 3, 2, 4]
    down = relu(reference.conv_transpose2d(down, wt, None, (1, 1), pad))
    pooled = reference.conv_transpose2d(down[:, 4:], wp)
    joined = (
        reference.conv_transpose2d(down[:, :2], w1)
        + reference.conv_transpose2d(down[:, 2:4], w3, None, (1, 1), pad)
        + reference.max_unpool2d(pooled, switches, (6, 5))
    )
    expected = reference.conv_transpose2d(relu(joined), ws, None, (1, 1), pad)
    found = project(model, image, "top", 3, (2, 4))
    np.testing.assert_allclose(found, expected, atol=1e-10)


class Residual(nn.Module):
    """conv-bn-relu-conv-bn plus a strided projection, then relu; one ReLU used twice."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(3)
        self.short = nn.Conv2d(2, 3, 1, stride=2, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.short(x))


def test_residual(backend):
    model, image = nn.Sequential({"block": Residual()}).to(np.float64), images(1, 2, 8, 8)
    block = model.block
    for bn in (block.bn1, block.bn2):
        for t in (bn.weight, bn.bias, bn.running_mean):
            t.copy_(RNG.standard_normal(3))
        bn.running_var.copy_(RNG.uniform(0.5, 2, 3))
    w1, w2, ws = weights(block.conv1, block.conv2, block.short)
    s1, s2 = (
        (bn.weight.data / np.sqrt(bn.running_var.data + bn.eps))[None, :, None, None]
        for bn in (block.bn1, block.bn2)
    )
    model.eval()
    with no_grad():
        top = model(Tensor(image)).numpy()
    model.train()
    place = (0, 1, *np.unravel_index(top[0, 1].argmax(), (4, 4)))
    down = np.zeros_like(top)
    down[place] = top[place]
    pad = (1, 1, 1, 1)
    inner = relu(reference.conv_transpose2d(down * s2, w2, None, (1, 1), pad))
    expected = reference.conv_transpose2d(
        inner * s1, w1, None, (2, 2), pad, (1, 1)
    ) + reference.conv_transpose2d(down, ws, None, (2, 2), (0, 0, 0, 0), (1, 1))
    # The ReLU is called twice: the last call, the block's output, counts.
    for layer in ("block", "block.relu"):
        np.testing.assert_allclose(project(model, image, layer, 1), expected, atol=1e-10)


def test_contrast_normalisation_is_passed_over():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.LocalResponseNorm(5, alpha=1.0), nn.Conv2d(6, 2, 3)
    ).to(np.float64)
    image = images(1, 1, 7, 7)
    w1, w2 = weights(model[0], model[3])
    with no_grad():
        top = model(Tensor(image)).numpy()
    down = np.zeros_like(top)
    down[0, 1, 1, 0] = top[0, 1, 1, 0]
    expected = reference.conv_transpose2d(relu(reference.conv_transpose2d(down, w2)), w1)
    np.testing.assert_allclose(project(model, image, "3", 1, (1, 0)), expected, atol=1e-10)


def test_fused_bias_and_rectification_counts_as_rectification():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)
            self.top = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.top(ops.bias_relu(ops.conv2d(x, self.conv.weight), self.conv.bias))

    fused, image = Fused().to(np.float64), images(1, 1, 7, 7)
    plain = nn.Sequential({"conv": fused.conv, "relu": nn.ReLU(), "top": fused.top})
    np.testing.assert_allclose(
        project(fused, image, "top", 0), project(plain, image, "top", 0), atol=1e-12
    )


def test_a_network_without_rectification_shows_the_gradient():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 1, 3)).to(np.float64)
    image = Tensor(images(1, 1, 6, 6), requires_grad=True)
    value = model(image)[0, 0, 1, 1]
    (gradient,) = grad(value, image, value.detach())
    found = project(model, image, "2", 0, (1, 1))
    np.testing.assert_allclose(found, gradient.numpy(), atol=1e-12)


def test_a_batch_is_its_images_one_by_one():
    model, batch = chain(), images(3, 3, 12, 12)
    channels, positions = [0, 5, 2], [(0, 0), (1, 2), (2, 1)]
    found = project(model, batch, "relu2", channels, positions)
    for i in range(3):
        alone = project(model, batch[i], "relu2", channels[i], positions[i])
        np.testing.assert_allclose(found[i : i + 1], alone, atol=1e-12)


def test_a_fully_connected_unit():
    model, image = chain(), images(1, 3, 12, 12)
    assert project(model, image, "head", 4).shape == (1, 3, 12, 12)


def test_everything_is_left_as_it_was():
    model, image = chain(), images(1, 3, 12, 12)
    model.conv1.eval()
    model.conv1.weight.grad = Tensor(np.ones(model.conv1.weight.shape))
    model.conv2.weight.requires_grad = False
    kept = image.copy()

    def state():
        return (
            [m.training for m in model.modules()],
            [len(m._hooks) + len(m._pre_hooks) for m in model.modules()],
            [(p.grad is None, p.requires_grad, p.data.flags.writeable) for p in
             model.parameters()],
        )  # fmt: skip

    before = state()
    with no_grad():
        project(model, image, "relu2", 0)
    with pytest.raises(ValueError, match="position"):
        project(model, image, "relu2", 0, (9, 9))
    with pytest.raises(ValueError, match="fit"):
        project(model, image[:, :, :9], "head", 0)
    assert state() == before
    assert model.conv1.weight.grad.numpy().all()
    np.testing.assert_array_equal(image, kept)
    image[:] = 0  # not locked either


def test_mistakes():
    model, image = chain(), images(1, 3, 12, 12)
    with pytest.raises(ValueError, match="conv1, relu1, pool1, conv2.*'conv9'"):
        project(model, image, "conv9", 0)
    for channel in (-1, 6, [6]):
        with pytest.raises(ValueError, match=r"channel must lie in \[0, 6\)"):
            project(model, image, "relu2", channel)
    with pytest.raises(ValueError, match="one an image"):
        project(model, image, "relu2", [0, 1])
    for position in ((3, 0), (0, -1), 1, (0, 0, 0), [(0, 0), (1, 1)]):
        with pytest.raises(ValueError, match="position"):
            project(model, image, "relu2", 0, position)
    with pytest.raises(ValueError, match="image must have shape"):
        project(model, image[0, 0], "relu2", 0)
    with pytest.raises(TypeError, match="image must be an array"):
        project(model, "picture", "relu2", 0)


class Aside(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.aside = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.aside(x) if self.training else self.used(x)


def test_a_layer_that_evaluation_does_not_reach():
    with pytest.raises(ValueError, match="'aside' was not called"):
        project(Aside(), np.zeros((1, 4, 4)), "aside", 0)


def test_rules_hold_for_one_walk_in_one_thread():
    x = Tensor(np.array([-1.0, 2.0, 3.0]), requires_grad=True)
    weights = np.array([1.0, -1.0, 1.0])
    rules = {ReLU: lambda node, down: ops.relu(down)}
    plain = {}

    def rule(node, down):
        def other():
            plain["inside"] = grad(ops.relu(x), x, weights)[0].numpy()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return rules[ReLU](node, down)

    (ruled,) = grad(ops.relu(x), x, weights, rules={ReLU: rule})
    np.testing.assert_array_equal(ruled.numpy(), [1, 0, 1])
    np.testing.assert_array_equal(plain["inside"], [0, -1, 1])
    np.testing.assert_array_equal(grad(ops.relu(x), x, weights)[0].numpy(), [0, -1, 1])
