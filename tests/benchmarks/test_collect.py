"""Layers are read from the live networks: all of them, each once."""

import pytest

from benchmarks.collect import calls, collect
from benchmarks.networks import network_flops
from benchmarks.subjects import SUBJECTS, by_name
from minidl import nn

LENET = by_name("LeNet-5")
# Those that are built quickly; GoogLeNet has classifiers that only training calls.
CHEAP = (LENET, by_name("GoogLeNet"), by_name("ResNet-18"))


@pytest.fixture(scope="module")
def layers():
    return collect(CHEAP)


def settings(conv, input_shape):
    return (
        conv.weight.shape, conv.stride, conv.padding, conv.dilation, conv.groups, input_shape[1:]
    )  # fmt: skip


def test_every_convolution_is_collected(layers):
    convs = [layer for layer in layers if layer.kind == "Conv2d"]
    for subject in CHEAP:
        mine = {c.module.weight.shape for c in convs if subject.name in layers[c]}
        modules = subject.build().modules()
        assert mine == {m.weight.shape for m in modules if isinstance(m, nn.Conv2d)}
    for layer in convs:
        conv = layer.module
        n, c, h, w = layer.input_shape
        assert c == conv.in_channels
        assert n in {subject.batch for subject in CHEAP}
        extents = [
            (size + 2 * pad - kernel) // stride + 1
            for size, pad, kernel, stride in zip(
                (h, w), conv.padding[::2], conv.kernel_size, conv.stride, strict=True
            )
        ]
        assert layer.output_shape == (n, conv.out_channels, *extents)


def test_layers_are_distinct(layers):
    assert len({layer.name for layer in layers}) == len(layers)
    convs = [layer for layer in layers if layer.kind == "Conv2d"]
    assert len({settings(c.module, c.input_shape) + (c.input_shape[0],) for c in convs}) == (
        len(convs)
    )
    # ResNet-18: the stem, and of each stage the 3x3 that keeps the size; from the second on, the
    # 3x3 and the 1x1 that halve it.
    assert sum("ResNet-18" in layers[layer] for layer in convs) == 1 + 4 + 2 * 3
    # The pool of LeNet-5's maps is twice the same layer on two inputs.
    pools = [x for x in layers if x.kind == "MaxPool2d" and "LeNet-5" in layers[x]]
    assert [x.input_shape for x in pools] == [(128, 6, 28, 28), (128, 16, 10, 10)]


def test_auxiliary_classifiers_are_collected(layers):
    pools = [layer for layer in layers if layer.kind == "AvgPool2d"]
    assert [layer.input_shape for layer in pools] == [(16, 512, 14, 14), (16, 528, 14, 14)]


def test_largest_of_the_other_layers(layers):
    (relu,) = (layer for layer in layers if layer.kind == "ReLU" and "LeNet-5" in layers[layer])
    assert relu.input_shape == (128, 6, 28, 28)
    assert [x.input_shape for x in layers if x.kind == "BatchNorm2d"] == [(16, 64, 112, 112)]


def test_hooks_are_taken_away():
    model = LENET.build()
    before = len(calls(model, LENET.input_shape))
    assert not any(module._hooks for module in model.modules())
    assert len(calls(model, LENET.input_shape)) == before == 12


def test_flops_of_a_network():
    model, shape = LENET.build(), LENET.input_shape
    first, forward = 6 * 28 * 28 * 25, 416_520
    assert network_flops(model, shape, 128, training=False) == 2 * 128 * forward
    assert network_flops(model, shape, 128, training=True) == 2 * 128 * (3 * forward - first)


def test_subjects_are_those_of_the_papers():
    assert {s.name: s.batch for s in SUBJECTS} == {
        "LeNet-5": 128, "AlexNet": 16, "ZFNet": 16, "VGG-16": 4, "GoogLeNet": 16, "ResNet-18": 16,
        "ResNet-50": 8,
    }  # fmt: skip
