"""What ranks do with arrays of the device, in a world of one rank that needs no MPI."""

import numpy as np
import pytest

from architectures.alexnet_two_gpus import make_trainer
from minidl import Tensor, checkpoint, data, manual_seed, nn, no_grad, ops
from minidl.array_module import get_array_module
from minidl.distributed import DataParallel, all_gather, synchronize_batch_norm
from minidl.train import LAST


class Done:
    def test(self):
        return True

    def wait(self):
        pass


class OneRank:
    """A World of this rank alone, on any device."""

    rank, size = 0, 1

    def duplicate(self):
        return self

    def broadcast_state(self, tensors, what):
        pass

    def start_sum(self, array, what):
        return Done()

    def sum(self, array, what):
        pass

    def all_gather(self, array, what):
        return array[None]

    def reduce_scatter(self, array, what):
        return array[0]


def trained(device, dtype, team=None):
    """(loss, gradients, running statistics) of a step of a network with batch-norm."""
    draw = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
    ).to(dtype)  # fmt: skip
    with no_grad():
        for p in model.parameters():
            p.copy_(0.3 * draw.standard_normal(p.shape))
    model.to(device)
    images = Tensor(draw.standard_normal((6, 2, 5, 5)).astype(dtype)).to(device)
    labels = draw.integers(0, 3, 6)
    if team is None:
        loss = ops.cross_entropy(model(images), labels)
        loss.backward()
    else:
        synchronize_batch_norm(model, team)
        team.start(model)
        team.begin(6, 6)
        loss = ops.cross_entropy(model(images), labels)
        team.backward(loss)
        team.average(6)
        team.stop()
    assert all(p.grad.device == device for p in model.parameters())
    grads = [p.grad.cpu().numpy() for p in model.parameters()]
    return [loss.item(), *grads, *(b.cpu().numpy() for b in model.buffers())]


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-12)])
def test_a_shared_step(gpu, dtype, tolerance):
    """Buckets of gradients, and statistics of the whole batch, are the CPU's."""
    expected = trained("cpu", dtype)
    for device in ("cpu", "cuda"):
        actual = trained(device, dtype, DataParallel(OneRank()))
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_gathered_maps(gpu):
    x = Tensor(np.arange(12.0).reshape(2, 3, 2), requires_grad=True)
    y = all_gather(x.to("cuda"), OneRank())
    assert y.device == "cuda"
    (y * y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * x.detach().numpy())


class Mirrored(OneRank):
    """A World of this rank and of another that does all the same."""

    size = 2
    is_chief = True

    def all_gather(self, array, what):
        return get_array_module(array).stack([array, array])

    def reduce_scatter(self, array, what):
        return 2 * array[0]

    def all_agree(self, wish, what):
        return wish


def test_a_tower(gpu, tmp_path):
    """An epoch moves the weights of the whole network as on the CPU."""
    train_set, test_set = (
        data.ArrayDataset(d.images[:8], d.labels[:8], 10) for d in data.bundled_digits()
    )
    moves = []
    for device in ("cpu", "cuda"):
        manual_seed(0)
        out = tmp_path / device
        out.mkdir()
        settings = {"epochs": 1, "batch_size": 4}
        trainer = make_trainer(Mirrored(), train_set, test_set, out, False, settings, 0, device)
        assert trainer.model.device == device
        start = {name: np.array(array) for name, array in trainer.model.state_dict().items()}
        trainer.run()
        end = checkpoint.load(out / LAST).model
        moves.append({name: end[name] - np.concatenate([a, a]) for name, a in start.items()})
    for name, expected in moves[0].items():
        # As a whole: in float32 a maximum or a rectifier may tip over.
        distance = np.linalg.norm(moves[1][name] - expected)
        assert 0 < np.linalg.norm(expected) and distance < 1e-3 * np.linalg.norm(expected), name
