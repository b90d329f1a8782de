"""The training loop: resume exact to the bit, interrupts, divergence, the log."""

import csv
import json
import os
import signal

import numpy as np
import pytest

import minidl
from minidl import checkpoint, data, nn, ops, optim
from minidl.data.transforms import RandomAffine
from minidl.train import BEST, LAST, Trainer, TrainingDiverged, evaluate


class Data:
    """Two classes of noise around different levels."""

    def __init__(self, count=40):
        draw = np.random.default_rng(0)
        labels = draw.integers(0, 2, count)
        pixels = draw.random((count, 1, 6, 6)) * 0.5 + 0.5 * labels[:, None, None, None]
        self.set = data.ArrayDataset(pixels.astype(np.float32), labels, 2)


def cross_entropy(model, outputs, labels):
    return ops.cross_entropy(outputs, labels)


class Gaps(data.ArrayDataset):
    """Items 8 to 23 cannot be read: of batches of eight in order, the second and third are lost."""

    def batch(self, indices):
        indices = np.asarray(indices)
        return super().batch(indices[(indices < 8) | (indices >= 24)])


def make(directory, epochs=3, lr=0.05, loss=cross_entropy, gaps=False, **options):
    minidl.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(48, 2),
    )  # fmt: skip
    images = Data().set
    chosen = Gaps(images.images, images.labels, 2) if gaps else images
    train = data.DataLoader(
        chosen, 8, shuffle=not gaps, seed=4, transform=RandomAffine(10, 0.1)
    )
    test = data.DataLoader(images, 16)
    optimizer = optim.Adam(model.parameters(), lr)
    scheduler = optim.CosineAnnealingLR(optimizer, max(1, epochs * len(train)))
    return Trainer(
        model, optimizer, train, test, loss, directory, epochs, scheduler=scheduler, **options
    )


def weights(trainer):
    return {name: value.copy() for name, value in trainer.model.state_dict().items()}


def figures(rows):
    return [{k: v for k, v in row.items() if k != "samples_per_s"} for row in rows]


@pytest.mark.parametrize(
    ("stop_after", "gaps"),
    [(1, False), (5, False), (7, False), (12, False), (1, True), (2, True), (8, True)],
)
def test_resume_is_exact(tmp_path, stop_after, gaps):
    straight = make(tmp_path / "straight", gaps=gaps)
    rows = straight.run()
    calls = 0

    def interrupted(model, outputs, labels):
        nonlocal calls
        if model.training:
            calls += 1
            if calls == stop_after:
                os.kill(os.getpid(), signal.SIGINT)
        return cross_entropy(model, outputs, labels)

    first = make(tmp_path / "split", loss=interrupted, gaps=gaps)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = make(tmp_path / "split", gaps=gaps)
    minidl.manual_seed(99)  # whatever happened since must not matter
    second.restore(checkpoint.load(tmp_path / "split" / LAST))
    assert figures(second.run()) == figures(rows)
    for name, value in weights(straight).items():
        assert (weights(second)[name] == value).all(), name


def test_it_learns_and_keeps_the_best(tmp_path):
    trainer = make(tmp_path, epochs=6)
    rows = trainer.run()
    assert rows[-1]["test_accuracy"] > 0.9
    best = checkpoint.load(tmp_path / BEST)
    other = make(tmp_path / "other")
    other.model.load_state_dict(best.model)
    result = evaluate(other.model, other.test_loader, cross_entropy)
    assert result.accuracy == max(row["test_accuracy"] for row in rows)


def test_log_files(tmp_path):
    rows = make(tmp_path, epochs=2).run()
    with open(tmp_path / "history.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(r["train_loss"]) for r in table] == [r["train_loss"] for r in rows]
    assert json.loads((tmp_path / "history.json").read_text()) == rows


def test_divergence_stops_with_advice_and_keeps_the_best(tmp_path):
    trainer = make(tmp_path, epochs=1)
    trainer.run()
    before = (tmp_path / BEST).read_bytes()

    def broken(model, outputs, labels):
        return cross_entropy(model, outputs, labels) * float("nan")

    with pytest.raises(TrainingDiverged, match="nan in epoch 1, batch 1.*--lr"):
        make(tmp_path, loss=broken).run()
    assert (tmp_path / BEST).read_bytes() == before


def test_evaluate_leaves_mode_and_graph_alone(tmp_path):
    trainer = make(tmp_path)
    trainer.model.train()
    before = weights(trainer)
    result = evaluate(trainer.model, trainer.test_loader, cross_entropy)
    assert result.samples == 40 and trainer.model.training
    assert all((weights(trainer)[k] == v).all() for k, v in before.items())


def test_schedules_by_epoch(tmp_path):
    trainer = make(tmp_path / "step", schedule_by="epoch")
    trainer.scheduler = optim.StepLR(trainer.optimizer, 1, gamma=0.5)
    assert [row["lr"] for row in trainer.run()] == [0.05, 0.025, 0.0125]
    trainer = make(tmp_path / "plateau", schedule_by="epoch")
    trainer.optimizer.groups[0]["lr"] = 0.05
    settings = {"mode": "max", "factor": 0.5, "patience": 0, "threshold": 10.0}
    trainer.scheduler = optim.ReduceLROnPlateau(trainer.optimizer, **settings)
    # No loss is eleven times the first one: every later epoch counts as a stall.
    assert [row["lr"] for row in trainer.run()] == [0.05, 0.05, 0.025]


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="epochs"):
        make(tmp_path, epochs=0)
    with pytest.raises(ValueError, match="schedule_by"):
        make(tmp_path, schedule_by="hour")
