"""Receptive fields against known figures and against what gradients reach."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minidl
from architectures.lenet import build
from minidl import Tensor, grad, nn, ops
from minidl.ops.pool import AvgPool2dTranspose, AvgSettings, MaxPool2d
from minidl.visualize.receptive_field import ReceptiveField, receptive_field


def square(size, stride, start):
    return ReceptiveField((size, size), (stride, stride), (start, start))


def sizes(model, side, names, channels=1):
    fields = receptive_field(model, (channels, side, side))
    return [(fields[name].size[0], fields[name].stride[0]) for name in names]


def test_three_convolutions_of_three_see_seven():
    model = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)))
    fields = receptive_field(model, (1, 20, 20))
    assert list(fields) == ["0", "1", "2", ""]
    assert [fields[str(i)] for i in range(3)] == [
        square(3, 1, -1), square(5, 1, -2), square(7, 1, -3)
    ]  # fmt: skip
    assert fields[""] == fields["2"]


def test_alexnet():
    layers = {
        "conv1": nn.Conv2d(1, 1, 11, 4), "relu": nn.ReLU(), "lrn": nn.LocalResponseNorm(5),
        "pool1": nn.MaxPool2d(3, 2), "conv2": nn.Conv2d(1, 1, 5, padding=2),
        "pool2": nn.MaxPool2d(3, 2), "conv3": nn.Conv2d(1, 1, 3, padding=1),
        "conv4": nn.Conv2d(1, 1, 3, padding=1), "conv5": nn.Conv2d(1, 1, 3, padding=1),
        "pool5": nn.MaxPool2d(3, 2), "flatten": nn.Flatten(), "fc6": nn.Linear(36, 2),
    }  # fmt: skip
    names = ["conv1", "lrn", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"]
    assert sizes(nn.Sequential(layers), 227, [*names, "fc6"]) == [
        (11, 4), (11, 4), (19, 8), (51, 8), (67, 16), (99, 16), (131, 16), (163, 16), (195, 32),
        (195 + 5 * 32, 0),
    ]  # fmt: skip


def test_vgg_16():
    layers = []
    for convolutions in (2, 2, 3, 3, 3):
        layers += [nn.Conv2d(1, 1, 3, padding=1) for _ in range(convolutions)]
        layers.append(nn.MaxPool2d(2))
    # Araujo, Norris and Sim (2019), table 1.
    assert sizes(nn.Sequential(*layers), 224, ["17"]) == [(212, 32)]


class Basic(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 1, 3, stride, 1)
        self.bn = nn.BatchNorm2d(1)
        self.conv2 = nn.Conv2d(1, 1, 3, 1, 1)
        self.stride = stride

    def forward(self, x):
        y = self.conv2(ops.relu(self.bn(self.conv1(x))))
        # Option A of the paper: a subsampled identity.
        return ops.relu(y + x[:, :, :: self.stride, :: self.stride])


def test_resnet_18():
    blocks = [Basic(stride) for stride in (1, 1, 2, 1, 2, 1, 2, 1)]
    model = nn.Sequential(
        nn.Conv2d(1, 1, 7, 2, 3), nn.MaxPool2d(3, 2, 1), *blocks, nn.GlobalAvgPool2d()
    )
    names = ["0", "1", "3", "5", "7", "9", "10"]
    assert sizes(model, 224, names) == [
        (7, 2), (11, 4), (43, 4), (99, 8), (211, 16), (435, 32), (435 + 6 * 32, 0),
    ]  # fmt: skip


class Inception(nn.Module):
    def __init__(self, channels, widest=5):
        super().__init__()
        self.one = nn.Conv2d(channels, 2, 1)
        self.reduce = nn.Conv2d(channels, 1, 1)
        self.wide = nn.Conv2d(1, 2, widest, padding=widest // 2)
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        return ops.concatenate([self.one(x), self.wide(self.reduce(x)), self.pool(x)], axis=1)


def test_inception_takes_the_widest_branch():
    model = nn.Sequential(
        {"stem": nn.Conv2d(1, 2, 3, 2, 1), "a": Inception(2), "b": Inception(6, 1)}
    )
    fields = receptive_field(model, (1, 16, 16))
    assert fields["a.one"] == square(3, 2, -1)
    assert fields["a.wide"] == fields["a"] == square(3 + 4 * 2, 2, -5)
    assert fields["b.wide"] == fields["a"]
    assert fields["b"] == fields["b.pool"] == square(11 + 2 * 2, 2, -7)


def test_lenet_in_both_forms():
    for variant, layers in (("modern", "c1 s2 c3 s4 c5"), ("1998", "c1 s2 c3 s4 c5")):
        assert sizes(build(variant=variant), 32, layers.split()) == [
            (5, 1), (6, 2), (14, 2), (16, 4), (32, 4),
        ]  # fmt: skip


# -- against gradients ----------------------------------------------------------------------------


def spread(node, down, _):
    """A max-pooling whose gradient reaches all of its window, not the winner alone."""
    kernel_size, stride, padding, _, ceil_mode = node.settings
    window = AvgSettings(kernel_size, stride, padding, ceil_mode, True)
    return AvgPool2dTranspose(window, node.input_meta[0][0])(down)


def reached(output, image, position):
    """(top, bottom, left, right) of the pixels with a gradient of one element, or None."""
    seed = np.zeros(output.shape)
    seed[0, :, position[0], position[1]] = 1
    (gradient,) = grad(output, image, seed, retain_graph=True, rules={MaxPool2d: spread})
    lit = gradient.numpy()[0].any(axis=0)
    rows, columns = (np.flatnonzero(lit.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def assert_field_is_what_gradients_reach(model, shape):
    """Equal for the middle element where its field lies in the image; at the borders, within.

    (There, padding inside the network may stand in place of the outermost pixels.) Returns whether
    the middle one was compared.
    """
    model = model.to(np.float64).eval()
    for parameter in model.parameters():
        parameter.copy_(abs(parameter.data) + 0.1)
    image = Tensor(np.random.default_rng(0).uniform(0.5, 1, (1, *shape)), requires_grad=True)
    output = model(image)
    field = receptive_field(model, shape)[""]
    last = np.array(output.shape[2:]) - 1
    for position in (np.zeros(2, int), last // 2, last):
        top, bottom, left, right = reached(output, image, position)
        box = field.box(position, shape[1:])
        assert box[0] <= top and bottom <= box[1] and box[2] <= left and right <= box[3]
    middle = last // 2
    start = np.array(field.start) + middle * np.array(field.stride)
    inside = (start >= 0).all() and (start + field.size <= shape[1:]).all()
    if inside:
        assert reached(output, image, middle) == field.box(middle, shape[1:])
    return inside


class Shuffled(nn.Module):
    """Slices, padding and a residual addition by functions alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, (3, 2), 1, (1, 1, 0, 1))
        self.top = nn.Conv2d(1, 1, 3, dilation=2)

    def forward(self, x):
        x = self.conv(x[..., 1:, 2:-1:2]) + ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0)))[
            :, :, 1:, 1:-2:2
        ]
        return self.top(x).mean(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "model, side",
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), Inception(2), nn.MaxPool2d(3, 2)), 33),
        (nn.Sequential(nn.Conv2d(1, 1, 3, 2), Basic(1), Basic(2), Basic(1)), 101),
        (Shuffled(), 24),
    ],
)
def test_branches(model, side):
    assert assert_field_is_what_gradients_reach(model, (1, side, side))


@st.composite
def chains(draw):
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "max", "avg"]))
        kernel, stride = ((draw(st.integers(1, 3)), draw(st.integers(1, 3))) for _ in range(2))
        padding = tuple(draw(st.integers(0, kernel[axis] // 2)) for axis in (0, 0, 1, 1))
        if kind == "conv":
            dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
            layers.append(nn.Conv2d(1, 1, kernel, stride, padding, dilation))
        else:
            make = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
            layers.append(make(kernel, stride, padding, ceil_mode=draw(st.booleans())))
    return nn.Sequential(*layers)


@settings(max_examples=25, deadline=None)
@given(chains())
def test_chains(model):
    assert_field_is_what_gradients_reach(model, (1, 75, 70))


# -- what is mixed, what is missing ----------------------------------------------------------------


class Gate(nn.Module):
    """Squeeze and excitation: every element also sees the mean of the whole map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, 2)

    def forward(self, x):
        y = self.conv(x)
        return y * ops.global_avg_pool2d(y)


class Swap(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1, 3, 2)


def test_mixing_layers_see_all():
    whole = square(3 + 3 * 2, 0, 0)
    assert receptive_field(Gate(), (1, 9, 9))[""] == whole
    for mixer in (Swap(), nn.ConvTranspose2d(1, 1, 3, padding=1), nn.Flatten()):
        model = nn.Sequential(nn.Conv2d(1, 1, 3, 2), mixer)
        assert receptive_field(model, (1, 9, 9))["1"] == whole
    dilated = nn.MaxPool2d(3, 2, dilation=2)
    assert receptive_field(dilated, (1, 9, 9))[""] == square(5, 2, 0)


def test_box_is_clipped():
    field = square(7, 4, -3)
    assert field.box((0, 2), (20, 20)) == (0, 4, 5, 12)
    assert field.box((4, 1), (20, 20)) == (13, 20, 1, 8)


def test_input_shape_from_the_model_and_everything_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="input_shape"):
        receptive_field(model)
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        receptive_field(model, (8, 8))
    model.input_shape = (1, 8, 8)
    state = minidl.random.get_state()
    assert receptive_field(model)["1"] == square(3, 1, 0)
    assert minidl.random.get_state() == state
    assert all(m.training and not m._hooks for m in model.modules())
    assert model[0].weight.grad is None
