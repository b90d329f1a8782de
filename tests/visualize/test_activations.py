"""Captured activations and the strongest patches."""

import numpy as np
import pytest

from minidl import Tensor, nn
from minidl.data import ArrayDataset, DataLoader
from minidl.visualize.activations import capture, top_patches, top_patches_of_maps

RNG = np.random.default_rng(2)


def model():
    return nn.Sequential(
        {"conv": nn.Conv2d(1, 3, 3, 2, 1), "relu": nn.ReLU(), "drop": nn.Dropout(0.5),
         "flat": nn.Flatten(), "head": nn.Linear(48, 2)}
    )  # fmt: skip


def test_capture():
    net, images = model(), RNG.random((4, 1, 8, 8), np.float32)
    found = capture(net, images, ["relu", "drop", "head"])
    assert list(found) == ["relu", "drop", "head"]
    expected = net.eval()(Tensor(images))
    np.testing.assert_array_equal(found["head"], expected.detach().numpy())
    np.testing.assert_array_equal(found["relu"], found["drop"])  # dropout is off
    np.testing.assert_array_equal(
        capture(net, images[2], "conv")["conv"], capture(net, images, "conv")["conv"][2:3]
    )
    with pytest.raises(ValueError, match="conv, relu, drop, flat, head"):
        capture(net, images, "nowhere")


def test_capture_leaves_modes_and_hooks():
    net = model()
    capture(net, np.zeros((1, 8, 8)), "relu")
    assert all(m.training and not m._hooks for m in net.modules())


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_top_patches_against_a_full_sort(batch_size):
    net, images = model(), RNG.random((23, 1, 8, 8), np.float32)
    maps = capture(net, images, "conv")["conv"]
    for channel in range(3):
        peaks = maps[:, channel].reshape(23, -1)
        order = np.argsort(-peaks.max(axis=1), kind="stable")[:5]
        found = top_patches(net, images, "conv", channel, k=5, batch_size=batch_size)
        assert [patch.index for patch in found] == order.tolist()
        for patch in found:
            place = np.unravel_index(peaks[patch.index].argmax(), (4, 4))
            assert patch.position == place
            np.testing.assert_allclose(patch.value, peaks[patch.index].max(), rtol=1e-6)
            np.testing.assert_array_equal(patch.image, images[patch.index])
            top, left = (max(2 * p - 1, 0) for p in place)
            bottom, right = (2 * p + 2 for p in place)
            assert patch.box == (top, bottom, left, right)
            np.testing.assert_array_equal(
                patch.crop(patch.image), images[patch.index, :, top:bottom, left:right]
            )


def test_equal_images_come_in_order():
    images = np.repeat(RNG.random((1, 1, 8, 8), np.float32), 7, axis=0)
    found = top_patches(model(), images, "conv", 0, k=3, batch_size=2)
    assert [patch.index for patch in found] == [0, 1, 2]


def test_loader_tensor_and_plain_batches_agree():
    net, images = model(), RNG.random((11, 1, 8, 8), np.float32)
    loader = DataLoader(ArrayDataset(images, np.zeros(11, int)), 4)
    sets = (images, Tensor(images), loader, [images[:6], images[6:]])
    found = [top_patches_of_maps(net, each, "head", [1, 0], k=20) for each in sets]
    for other in found:
        assert list(other) == [1, 0]
        for channel in (0, 1):
            assert [p.index for p in other[channel]] == [p.index for p in found[0][channel]]
            assert len(other[channel]) == 11
            assert all(p.box == (0, 8, 0, 8) for p in other[channel])


def test_mistakes():
    net, images = model(), np.zeros((2, 1, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"channel must lie in \[0, 3\)"):
        top_patches(net, images, "conv", 3)
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_patches(net, images, "conv", 0, k=0)
    with pytest.raises(ValueError, match="at least one image"):
        top_patches(net, images[:0], "conv", 0)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        top_patches(net, images[0], "conv", 0)
