"""LeNet-5 against its paper, finite differences, and real digits."""

import numpy as np
import pytest

import minidl
from architectures import lenet
from minidl import Tensor, data, ops, optim
from minidl.gradcheck import gradcheck, gradcheck_module
from minidl.summary import summary


def test_parameters_of_1998():
    table = summary(lenet.build(variant="1998"), (1, 32, 32))
    counts = {row.name: row.parameters for row in table.rows if row.parameters}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert table.parameters == table.trainable_parameters == 60_000
    shapes = {row.name: row.output_shape for row in table.rows}
    assert shapes["c1"] == (6, 28, 28) and shapes["s2"] == (6, 14, 14)
    assert shapes["c3"] == (16, 10, 10) and shapes["s4"] == (16, 5, 5)
    assert shapes["c5"] == (120, 1, 1) and shapes["f6"] == (84,) and shapes["output"] == (10,)


def test_parameters_of_modern():
    table = summary(lenet.build(), (1, 32, 32))
    assert table.parameters == 61_706
    assert table.multiply_adds == 117_600 + 240_000 + 48_000 + 10_080 + 840


def test_c3_sees_only_its_table():
    """Map o of C3 answers to map c of S2 exactly where the paper's table says so."""
    layer = lenet.PartialConv()
    for c in range(6):
        x = np.zeros((1, 6, 5, 5), np.float32)
        x[0, c] = 1
        answer = layer(Tensor(x)).detach().numpy()[0, :, 0, 0] - layer.bias.detach().numpy()
        assert [o for o in range(16) if answer[o]] == [
            o for o, inputs in enumerate(lenet.C3_INPUTS) if c in inputs
        ]
    assert sum(map(len, lenet.C3_INPUTS)) == 60


def test_codes_are_bitmaps():
    codes = lenet.digit_codes()
    assert codes.shape == (10, 84) and set(np.unique(codes)) == {-1.0, 1.0}
    distances = ((codes[:, None] - codes[None]) ** 2).sum(axis=2)
    assert distances[~np.eye(10, dtype=bool)].min() >= 4 * 8  # at least eight pixels apart


def test_squashing_passes_through_one():
    y = lenet.ScaledTanh()(Tensor(np.array([1.0, -1.0, 0.0]))).numpy()
    np.testing.assert_allclose(y, [1, -1, 0], atol=2e-5)


def test_rbf_distance():
    x = Tensor(np.random.default_rng(0).standard_normal((3, 84)).astype(np.float32))
    codes = lenet.digit_codes()
    expected = ((x.numpy()[:, None] - codes) ** 2).sum(axis=2)
    np.testing.assert_allclose(lenet.EuclideanRBF(codes)(x).numpy(), expected, rtol=1e-5)


def test_map_loss():
    distances = Tensor(np.random.default_rng(0).random((4, 10)) * 5, requires_grad=True)
    labels = np.array([1, 2, 9, 0])
    y = distances.detach().numpy()
    rubbish = np.exp(-0.1) + np.exp(-y).sum(axis=1)
    expected = (y[np.arange(4), labels] + np.log(rubbish)).mean()
    assert lenet.map_loss(distances, labels).item() == pytest.approx(expected, rel=1e-12)
    gradcheck(lambda d: lenet.map_loss(d, labels), distances)


@pytest.mark.parametrize("variant", ["modern", "1998"])
def test_gradients(variant, backend):
    minidl.manual_seed(0)
    model = lenet.build(variant=variant).to(np.float64)
    x = np.random.default_rng(0).standard_normal((2, 1, 32, 32))
    gradcheck_module(model, Tensor(x, requires_grad=True))


@pytest.mark.parametrize("variant", ["modern", "1998"])
def test_overfits_sixteen_digits(variant):
    minidl.manual_seed(0)
    model, recipe = lenet.build(variant=variant), lenet.recipe(variant)
    train, _ = data.bundled_digits()
    chosen = np.arange(0, 4000, 250)
    images, labels = train.batch(chosen)
    x = Tensor(recipe.eval_transform(images, None))
    assert len(set(labels)) == 10
    optimizer = optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        outputs = model(x)
        recipe.loss(model, outputs, labels).backward()
        optimizer.step()
    scores = recipe.scores(model(x)).detach().numpy()
    assert (scores.argmax(axis=1) == labels).all()


def test_against_torch():
    torch = pytest.importorskip("torch")
    n = torch.nn
    theirs = n.Sequential(
        n.Conv2d(1, 6, 5), n.ReLU(), n.MaxPool2d(2), n.Conv2d(6, 16, 5), n.ReLU(), n.MaxPool2d(2),
        n.Conv2d(16, 120, 5), n.ReLU(), n.Flatten(), n.Linear(120, 84), n.ReLU(), n.Linear(84, 10),
    )  # fmt: skip
    ours = lenet.build()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        a.copy_(b.detach().numpy())
    x = np.random.default_rng(0).standard_normal((8, 1, 32, 32)).astype(np.float32)
    labels = np.arange(8)
    mine, other = ours(Tensor(x)), theirs(torch.tensor(x))
    np.testing.assert_allclose(mine.detach().numpy(), other.detach().numpy(), atol=1e-4)
    ops.cross_entropy(mine, labels).backward()
    torch.nn.functional.cross_entropy(other, torch.tensor(labels)).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=1e-3, err_msg=name)


def test_bad_arguments():
    with pytest.raises(ValueError, match="variant"):
        lenet.build(variant="2012")
    with pytest.raises(ValueError, match="num_classes"):
        lenet.build(num_classes=7, variant="1998")
