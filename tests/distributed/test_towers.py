"""A network spread over ranks: exchanged activations, and AlexNet's two towers."""

import numpy as np
import pytest

from architectures import alexnet
from architectures.alexnet_two_gpus import Tower
from minidl import Tensor, checkpoint, cli
from minidl.train import BEST, LAST


def test_exchange(check):
    check(3, "exchange")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_towers_are_the_whole_network(check, dtype):
    check(2, "towers", dtype)


class TwoRanks:
    size, rank = 2, 0


def test_what_cannot_be_halved():
    alone = TwoRanks()
    alone.size = 3
    for words, make in (
        ("two ranks", lambda: Tower(alone)),
        ("num_classes must be even", lambda: Tower(TwoRanks(), 7, width=0.1)),
        ("hidden units must be even", lambda: Tower(TwoRanks(), width=17 / 4096)),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_the_example_trains_resumes_and_leaves_a_checkpoint_of_alexnet(
    launch, digits, tmp_path, capsys
):
    base = ("-m", "architectures.alexnet_two_gpus", "--data", digits, "--batch-size", 16)
    straight = launch(2, *base, "--epochs", 2, "--out", tmp_path / "straight")
    assert straight.status == 0, straight.err
    out = tmp_path / "run"
    assert launch(2, *base, "--epochs", 1, "--out", out).status == 0
    known = checkpoint.load(out / LAST)
    assert known.model["conv1.weight"].shape[0] == 24
    for i, (name, p) in enumerate(alexnet.build(10, 2, full=False).named_parameters()):
        arrays = [v for v in known.optimizer["state"][i].values() if not isinstance(v, int)]
        assert len(arrays) == 2 and {a.shape for a in arrays} == {p.shape}, name
    resumed = launch(2, *base[:4], "--epochs", 2, "--resume", "--out", out)
    assert resumed.status == 0, resumed.err
    # The schedule was made for one epoch; the weights after it are those of the run itself.
    assert checkpoint.load(out / LAST).progress["epoch"] == 3
    arguments = ["evaluate", tmp_path / "straight" / BEST, "--small", "--data", digits]
    assert cli.run(alexnet.ARCHITECTURE, [str(a) for a in arguments]) == 0
    rows = checkpoint.load(tmp_path / "straight" / BEST).progress["rows"]
    assert f"loss {rows[-1]['test_loss']:.4f}" in capsys.readouterr().out


def test_the_example_alone_says_what_it_needs(launch, digits):
    done = launch(0, "-m", "architectures.alexnet_two_gpus", "--data", digits)
    assert done.status == 2 and done.err.count("\n") == 1 and "two ranks" in done.err


def test_norms_stay_within_towers():
    network = alexnet.AlexNet(10, width=0.25, grid=1)
    x = np.zeros((1, 24, 2, 2), np.float32)
    x[:, 11] = 100  # the last map of the first tower
    beside = x.copy()
    beside[:, 12] = 1
    y = network.norm1(Tensor(beside)).numpy()
    assert y[0, 11, 0, 0] == network.norm1(Tensor(x)).numpy()[0, 11, 0, 0]
    np.testing.assert_allclose(y[0, 12], 1 / (2 + 1e-4) ** 0.75, rtol=1e-6)
