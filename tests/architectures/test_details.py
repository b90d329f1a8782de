"""What the papers say beside their tables: first weights, and filters that are kept in check."""

import numpy as np
import pytest

from architectures import alexnet, resnet, zfnet
from minidl import Tensor, no_grad


def test_zfnet_renormalises_the_filters_of_all_convolutions():
    model = zfnet.build(10, full=False)
    before = {}
    for i, layer in enumerate(model.modules()):
        if hasattr(layer, "weight"):
            with layer.weight.mutate() as weight:
                weight[::2] *= 0.2 / np.sqrt(np.mean(weight[::2] ** 2))
                weight[1::2] *= 0.03 / np.sqrt(np.mean(weight[1::2] ** 2))
            before[i] = layer.weight.data.copy()
    zfnet.renormalize_filters(model)
    convolutions = 0
    for i, layer in enumerate(model.modules()):
        if i in before and before[i].ndim == 4:
            convolutions += 1
            rms = np.sqrt((before[i] ** 2).mean(axis=(1, 2, 3), keepdims=True))
            expected = before[i] * np.minimum(1, 0.1 / rms)
            assert (rms > 0.1).any() and (rms < 0.1).any()
            np.testing.assert_allclose(layer.weight.data, expected, rtol=1e-5)
        elif i in before:
            assert (layer.weight.data == before[i]).all()
    assert convolutions == 5


@pytest.mark.parametrize("depth", [18, 20, 50])
@pytest.mark.parametrize("version", ["1", "2"])
def test_resnet_starts_undecided(depth, version):
    model = resnet.build(10, depth, version, full=False)
    assert abs(model.fc.weight.data.std() * model.fc.in_features**0.5 - 1) < 0.2
    shape = resnet.input_shape(depth, full=False)
    images = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    with no_grad():
        assert model(Tensor(images)).data.std() < 3.5


def test_alexnet_starts_as_its_pixels_need():
    paper, public = alexnet.AlexNet(10, 2, 0.25), alexnet.AlexNet(10, 1, 0.25)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        mine, other = getattr(paper, name), getattr(public, name)
        assert abs(mine.weight.data.std() - 0.01) < 0.001
        assert (mine.bias.data == (name in ("conv2", "conv4", "conv5", "fc6", "fc7"))).all()
        fan_in = other.weight.data[0].size
        assert abs(other.weight.data.std() * (fan_in / 2) ** 0.5 - 1) < 0.2
        assert (other.bias.data == 0).all()
