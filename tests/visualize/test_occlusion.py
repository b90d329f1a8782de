"""Occlusion maps against a loop over single images."""

import numpy as np
import pytest

from minidl import Tensor, nn, no_grad, ops
from minidl.visualize.occlusion import occlusion_map

RNG = np.random.default_rng(3)


def model():
    return nn.Sequential(
        {"conv": nn.Conv2d(3, 4, 3, padding=1), "relu": nn.ReLU(), "pool": nn.GlobalAvgPool2d(),
         "flat": nn.Flatten(), "drop": nn.Dropout(0.5), "head": nn.Linear(4, 3)}
    )  # fmt: skip


@pytest.mark.parametrize("size, stride, batch_size", [(3, 2, 4), (4, 1, 64), (20, 3, 1)])
def test_against_a_loop(size, stride, batch_size):
    net, image = model(), RNG.standard_normal((3, 7, 9)).astype(np.float32)
    fill = (0.1, 0.2, 0.3)
    found = occlusion_map(net, image, 2, size, stride, fill, "relu", batch_size=batch_size)
    assert net.training and not net.relu._hooks
    net.eval()
    with no_grad():
        channel = int(net.relu(net.conv(Tensor(image[None]))).numpy().sum(axis=(0, 2, 3)).argmax())
    assert found.channel == channel
    assert found.probability.shape == (-(-7 // stride), -(-9 // stride))
    for (v, u), probability in np.ndenumerate(found.probability):
        square = image.copy()
        inside = [
            (0 <= n - (c * stride - size // 2)) & (n - (c * stride - size // 2) < size)
            for n, c in ((np.arange(7), v), (np.arange(9), u))
        ]
        square[:, np.outer(*inside)] = np.array(fill)[:, None]
        with no_grad():
            maps = net.relu(net.conv(Tensor(square[None])))
            chances = ops.softmax(net.head(net.flat(net.pool(maps))), axis=1).numpy()[0]
        np.testing.assert_allclose(probability, chances[2], rtol=1e-5)
        assert found.best[v, u] == chances.argmax()
        np.testing.assert_allclose(
            found.activation[v, u], maps.numpy()[0, channel].sum(), rtol=1e-5
        )


def test_the_square_hides_what_the_class_depends_on():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).to(np.float64)
    weight = np.zeros((2, 8, 8))
    weight[1, 5, 2] = 10  # class 1 depends on one pixel alone
    net[1].weight.copy_(weight.reshape(2, 64))
    image = np.ones((1, 8, 8))
    found = occlusion_map(net, image, 1, 3, 1, fill=0)
    hidden = np.zeros((8, 8), bool)
    hidden[4:7, 1:4] = True
    np.testing.assert_array_equal(found.probability < 0.6, hidden)
    assert found.activation is None and found.channel is None


def test_default_fill_is_the_middle_grey_and_scores_may_be_turned():
    net, image = model(), RNG.standard_normal((3, 6, 6))
    middle = (image.min() + image.max()) / 2
    default, given = (occlusion_map(net, image, 0, 3, 2, fill) for fill in (None, middle))
    np.testing.assert_allclose(default.probability, given.probability, rtol=1e-5)
    turned = occlusion_map(net, image, 0, 3, 2, scores=lambda outputs: -outputs)
    assert (turned.best != default.best).all()


def test_mistakes():
    net, image = model(), np.zeros((3, 6, 6))
    for arguments, words in (
        ((image, 3, 2, 1), "label must lie in"),
        ((image, 0, 0, 1), "size must be a positive integer"),
        ((image, 0, 2, 0.5), "stride must be a positive integer"),
        ((np.zeros((2, 3, 6, 6)), 0, 2, 1), "one image"),
        ((image, 0, 2, 1, None, "top"), "conv, relu"),
    ):
        with pytest.raises(ValueError, match=words):
            occlusion_map(net, *arguments)
