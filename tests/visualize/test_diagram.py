"""Architectures as diagrams: blocks of live networks, and the picture."""

import numpy as np
import pytest

from architectures import alexnet, googlenet, lenet, nin, resnet
from minidl import nn, ops
from minidl.visualize.diagram import blocks, described, draw


def by_name(found):
    return {".".join(block.path): block for block in found}


def test_a_chain():
    found = blocks(lenet.build(variant="modern"), (1, 32, 32))
    assert [block.path[0] for block in found] == ["c1", "s2", "c3", "s4", "c5", "f6", "output"]
    assert found[0].lines == ("5x5 convolution, 6", "ReLU")
    assert found[0].sources == ("input",)
    for before, block in zip(found, found[1:], strict=False):
        assert block.sources == (before.key,)
    # Flattened it is the same data: the shape of the layer itself is shown.
    assert [block.shape for block in found[2:6]] == [(16, 10, 10), (16, 5, 5), (120, 1, 1), (84,)]


def test_residual_blocks_join():
    found = blocks(resnet.build(num_classes=10, full=False), resnet.input_shape(full=False))
    sums = [block for block in found if block.kind == "Add"]
    assert len(sums) == 8 and all(block.lines == ("+", "ReLU") for block in sums)
    assert all(len(block.sources) == 2 for block in sums)
    projected = [b for b in sums if any("downsample" in source for source in b.sources)]
    assert len(projected) == 3
    conv = by_name(found)["layer1.0.conv1"]
    assert conv.lines == ("3x3 convolution, 16", "batch norm", "ReLU")


def test_pre_activation_is_not_taken_into_a_sum_that_others_read():
    model = resnet.build(num_classes=10, depth=20, version="2")
    found = blocks(model, (3, 32, 32))
    # The sum feeds the next block and goes around it: BN and ReLU are a block of their own.
    assert any(block.lines[0] == "batch norm" for block in found)
    keys = {"input"} | {block.key for block in found}
    assert all(source in keys for block in found for source in block.sources)


def test_inception_modules_and_auxiliary_classifiers():
    model = googlenet.build(num_classes=10, full=False)
    found = blocks(model, googlenet.input_shape(full=False))
    joins = [block for block in found if block.kind == "Concatenate"]
    assert len(joins) == 9 and all(len(block.sources) == 4 for block in joins)
    assert sum(block.path[0] in ("aux1", "aux2") for block in found) == 6
    assert not any(block.path[0] == "aux1" for block in blocks(model.eval(), (3, 64, 64)))


@pytest.mark.parametrize("architecture", [alexnet, nin])
def test_every_convolution_has_a_block(architecture):
    options = {"full": False}
    network = architecture.ARCHITECTURE
    model = network.build(num_classes=10, **options)
    found = blocks(model, network.input_shape(**options))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(block.kind == "Conv2d" for block in found) == len(convolutions)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return ops.relu(self.layer(self.layer(x)))


def test_a_layer_called_twice_is_two_blocks():
    first, second = blocks(Twice(), (1, 4, 4))
    assert second.sources == (first.key,) and first.path == second.path
    assert first.lines == ("3x3 convolution, 1",)
    assert second.lines == ("3x3 convolution, 1", "ReLU")


@pytest.mark.parametrize(
    "layer, words",
    [
        (nn.Conv2d(4, 8, (3, 5), stride=2, groups=2), "3x5 convolution, 8, stride 2, groups 2"),
        (nn.MaxPool2d(3, 2), "3x3 max pool, stride 2"),
        (nn.AvgPool2d(3, 1), "3x3 average pool"),
        (nn.AdaptiveAvgPool2d(4), "average pool to 4x4"),
        (nn.Linear(2, 5), "fully connected, 5"),
        (nn.Tanh(), "tanh"),
        (Twice(), "Twice"),
    ],
)
def test_described(layer, words):
    assert described(layer) == words


def test_a_network_without_parameters():
    (first, second) = blocks(nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2)), (1, 8, 8))
    assert (first.sources, second.shape) == (("input",), (1, 2, 2))


def test_draw(tmp_path):
    pytest.importorskip("graphviz")
    model = googlenet.build(num_classes=10, full=False)
    before = {name: value.copy() for name, value in model.state_dict().items()}
    draw(model, (3, 64, 64), tmp_path / "net.dot")
    source = (tmp_path / "net.dot").read_text()
    assert "inception3a: Inception" in source and "aux1: Auxiliary" in source
    assert "3x64x64" in source
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
