"""The candidates run, and minidl's and PyTorch's do the same work."""

import numpy as np
import pytest

from benchmarks import kernels, layers
from benchmarks.memory import peak_memory
from benchmarks.subjects import by_name
from benchmarks.tasks import Machine
from minidl import Tensor, nn

LENET = by_name("LeNet-5")
MODULES = {
    "ReLU": nn.ReLU(),
    "max-pool": nn.MaxPool2d(3, 2, padding=1),
    "max-pool, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "average-pool": nn.AvgPool2d(2),
    "global average-pool": nn.GlobalAvgPool2d(),
    "batch-norm": nn.BatchNorm2d(6),
    "response norm": nn.LocalResponseNorm(5, 1e-2, 0.75, 2.0, size_normalized=False),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(kernels, "SHAPE", (2, 4, 8, 8))
    monkeypatch.setattr(kernels, "CONVOLUTIONS", ((2, nn.Conv2d(4, 6, 3, padding=1), 8),))


def test_every_kernel_runs(small):
    todo = list(kernels.tasks(lambda name: True))
    names = [task.name for task in todo]
    assert len(set(names)) == len(names)
    assert {"relu", "batchnorm_train", "lrn", "max_pool2d 2x2", "sgd_step"} <= set(names)
    for task in todo:
        assert task.traffic > 0
        runs = task.prepare(False)
        assert list(runs) == ["minidl"]
        runs["minidl"]()


def test_every_kernel_runs_beside_torch(small):
    pytest.importorskip("torch")
    for task in kernels.tasks(lambda name: True):
        for run in task.prepare(True).values():
            run()


def test_only_what_is_wanted_is_measured(small):
    assert [t.name for t in kernels.tasks(lambda name: name == "lrn")] == ["lrn"]


def test_every_layer_runs():
    todo = list(layers.tasks(lambda name: True, [LENET]))
    # Three passes of three convolutions, two of two pools, a ReLU and the loss.
    assert len(todo) == 3 * 3 + 2 * 4
    assert sum(task.flops > 0 for task in todo) == 9
    for task in todo:
        task.prepare(False)["minidl"]()


def test_every_layer_runs_beside_torch():
    pytest.importorskip("torch")
    for task in layers.tasks(lambda name: True, [LENET]):
        runs = task.prepare(True)
        assert list(runs) == ["minidl", "PyTorch"]
        runs["PyTorch"]()


@pytest.mark.parametrize("kind", ["forward", "input gradient", "weight gradient"])
def test_passes_of_a_convolution_agree_with_torch(kind):
    pytest.importorskip("torch")
    conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s, np.float32) for s in ((2, 4, 9, 8), conv.weight.shape))
    dy = rng.standard_normal((2, 6, 5, 5), np.float32)
    mine = layers.conv_run(kind, conv, x, dy, weight)()
    theirs = layers.torch_conv_run(kind, conv, x, dy, weight)()
    np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_layers_agree_with_torch(name):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 8), np.float32)
    mine = MODULES[name](Tensor(x))
    theirs = layers.torch_module(MODULES[name])(torch.tensor(x))
    np.testing.assert_allclose(mine.data, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_lenet_agrees_with_torch():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_networks

    model, peer = LENET.build(), LENET.peer(torch_networks)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), peer.parameters(), strict=True):
            theirs.copy_(torch.from_numpy(mine.data))
        images, _ = LENET.draw()
        expected = peer(torch.from_numpy(images[:4])).numpy()
    np.testing.assert_allclose(model(Tensor(images[:4])).data, expected, rtol=1e-4, atol=1e-5)


def test_asymmetric_padding_is_refused():
    with pytest.raises(ValueError, match="symmetric.*1, 0, 1, 0"):
        layers._symmetric((1, 0, 1, 0))


def test_memory_is_that_of_the_process():
    assert 50 << 20 < peak_memory("minidl", "LeNet-5", False, Machine(1)) < 600 << 20
    with pytest.raises(RuntimeError, match="memory of minidl, LeNet-5: .*threads"):
        peak_memory("minidl", "LeNet-5", False, Machine(0))
