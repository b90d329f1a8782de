"""What the papers say beside their tables: first weights, and filters that are kept in check."""

import numpy as np
import pytest

from architectures import alexnet, googlenet, nin, resnet, vgg, zfnet
from minidl import Tensor, no_grad
from minidl.data.transforms import color


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


@pytest.mark.parametrize("depth", [18, 20, 50])
def test_zero_gamma_starts_every_block_as_its_shortcut(depth):
    draw = np.random.default_rng(0)
    for zero_gamma in (True, False):
        model = resnet.build(10, depth, zero_gamma=zero_gamma, full=False).eval()
        blocks = [m for m in model.modules() if isinstance(m, resnet.Block)]
        assert len(blocks) == {18: 8, 20: 9, 50: 16}[depth]
        for block in blocks:
            shape = (2, block.conv1.in_channels, 8, 8)
            x = Tensor(draw.standard_normal(shape).astype(np.float32))
            with no_grad():
                around = x if block.downsample is None else block.downsample(x)
                same = np.array_equal(block(x).data, np.maximum(around.data, 0))
            assert same is zero_gamma


# -- VGG: dense evaluation, and deep ones from shallow ones ----------------------------------------


def test_dense_is_the_network_at_its_own_size():
    model = vgg.VGG("A", 5, width=1 / 16, grid=2).eval()
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32))
    with no_grad():
        np.testing.assert_allclose(vgg.Dense(model)(x).data, model(x).data, rtol=1e-4, atol=1e-6)


def test_dense_averages_the_scores_of_all_places():
    model = vgg.VGG("A", 5, width=1 / 16, grid=2).eval()
    dense = vgg.Dense(model)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 100, 128)).astype(np.float32))
    with no_grad():
        maps = dense.features(x)
        assert maps.shape[2:] == (3, 4)
        scores = []
        for row, column in np.ndindex(2, 3):
            y = maps[:, :, row : row + 2, column : column + 2].flatten(1)
            y = model.fc7(model.fc6(y).relu()).relu()
            scores.append(model.fc8(y).data)
        np.testing.assert_allclose(dense(x).data, np.mean(scores, axis=0), rtol=1e-4, atol=1e-6)
    for shape in ((1, 3, 63, 90), (1, 3, 90, 63)):
        with pytest.raises(ValueError, match="at least 64 pixels"):
            dense(Tensor(np.zeros(shape, np.float32)))


@pytest.mark.parametrize("config", ["A-LRN", "B", "E"])
def test_warm_start_copies_the_layers_that_the_paper_copies(config):
    shallow, deep = vgg.build(10, "A", full=False), vgg.build(10, config, full=False)
    source, before = shallow.state_dict(), {n: a.copy() for n, a in deep.state_dict().items()}
    vgg.warm_start(deep, source)
    copied = {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"}
    for name, array in deep.state_dict().items():
        expected = source if name.rpartition(".")[0] in copied else before
        assert (array == expected[name]).all(), name
        if name.endswith("weight") and expected is source:
            assert not (array == before[name]).all()


def test_warm_start_refuses_what_does_not_fit():
    deep = vgg.build(10, "B", full=False)
    before = {n: a.copy() for n, a in deep.state_dict().items()}
    state = vgg.build(10, "A", full=False).state_dict()
    with pytest.raises(ValueError, match=r"fc7\.bias"):
        vgg.warm_start(deep, {n: a for n, a in state.items() if n != "fc7.bias"})
    with pytest.raises(ValueError, match=r"fc8\.weight has shape"):
        vgg.warm_start(deep, vgg.build(9, "A", full=False).state_dict())
    assert all((a == before[n]).all() for n, a in deep.state_dict().items())


# -- recipes ---------------------------------------------------------------------------------------


def marked_edges(height, width):
    """An image of 0.5 whose longer side has 1 beyond the central square."""
    image = np.ones((3, height, width), np.float32)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image[:, top : top + side, left : left + side] = 0.5
    return image


@pytest.mark.parametrize("network", [alexnet, zfnet, vgg, googlenet, resnet])
def test_ten_crop_looks_at_the_central_square(network):
    size = network.input_shape()[1]
    transform = network.recipe().protocols["ten-crop"].transform
    views = transform([marked_edges(256, 400), marked_edges(512, 256)], None)
    assert views.shape == (2, 10, 3, size, size)
    assert np.ptp(views, axis=(0, 1, 3, 4)).max() == 0


@pytest.mark.parametrize("network", [alexnet, zfnet])
def test_training_crops_lie_in_the_central_square(network):
    transform = network.recipe().train_transform
    draw = np.random.default_rng(0)
    crops = transform([marked_edges(256, 400), marked_edges(512, 256)] * 4, draw)
    assert crops.shape[1:] == network.input_shape()
    assert np.ptp(crops, axis=(2, 3)).max() == 0


@pytest.mark.parametrize("network", [alexnet, vgg, resnet])
def test_colours_shift_along_imagenets_axes(network):
    """One shift an image, drawn anew, of N(0, 0.1) times eigenvalues for pixels in [0, 1]."""
    recipe = network.recipe()
    images = [np.full((3, 256, 256), 0.5, np.float32)] * 64
    plain = recipe.eval_transform(images[:1], None)[0, :, 0, 0]
    drawn = recipe.train_transform(images, np.random.default_rng(0))
    assert np.ptp(drawn, axis=(2, 3)).max() == 0
    unit = recipe.eval_transform([np.ones((3, 256, 256), np.float32)], None)[0, :, 0, 0]
    shifts = (drawn[:, :, 0, 0] - plain) / (2 * (unit - plain))
    values, vectors = color.IMAGENET_EIGENVALUES, np.array(color.IMAGENET_EIGENVECTORS)
    spread = (shifts @ vectors).std(axis=0) / (0.1 * np.array(values))
    assert (abs(spread - 1) < 0.25).all()


@pytest.mark.parametrize("recipe", [resnet.recipe(20), nin.recipe()])
def test_cifar_crops_have_a_border_of_the_mean(recipe):
    white = np.ones((64, 3, 32, 32), np.float32)
    crops = recipe.train_transform(white, np.random.default_rng(0))
    inside = recipe.eval_transform(white[:1], None)[0, :, 0, 0]
    assert crops.shape == white.shape and (inside != 0).all()
    for channel in range(3):
        assert set(np.unique(crops[:, channel])) == {np.float32(0), inside[channel]}
    assert (crops[:, :, 4:28, 4:28] != 0).all()
