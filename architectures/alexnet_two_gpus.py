"""AlexNet as the paper trained it: two towers on two devices, here two ranks (Krizhevsky et al.
2012, section 3.2 and figure 2).

    mpiexec -n 2 python -m architectures.alexnet_two_gpus --epochs 3

With ``--backend cuda`` the towers do lie on two GPUs, otherwise they share the machine's cores.
Each rank holds half of the maps and hidden units of every layer. They exchange activations where
the figure's arrows cross: before conv3, before each fully connected layer, and before the softmax
over all classes. All else, response normalisation included, stays within a tower.

Both ranks see every image. A checkpoint holds the whole network: it is one of
``architectures.alexnet``, whose commands evaluate and export it.
"""

from pathlib import Path

import click
import numpy as np

from architectures import alexnet
from architectures.common import response_norm, scaled
from minidl import checkpoint, distributed, nn
from minidl.cli import common, run_group
from minidl.cli import distributed as ranks
from minidl.cli.train import run_trainer
from minidl.data import DataLoader
from minidl.train import LAST, Alone, Trainer


class Exchange(nn.Module):
    """Both towers' (N, C, ...) side by side: (N, 2 C, ...)."""

    def __init__(self, world):
        super().__init__()
        self.world = world

    def forward(self, x):
        return distributed.all_gather(x, self.world)


class Tower(nn.Sequential):
    """The half of AlexNet that a rank of `world` computes: (N, 3, H, W) -> (N, num_classes).

    Settings as of `alexnet.AlexNet`. Both ranks get the logits of all classes. Raises ValueError
    unless there are two ranks, or where classes or hidden units cannot be halved.
    """

    def __init__(self, world, num_classes=1000, width=1.0, dropout=0.5, grid=6):
        maps = [scaled(c, width, divisor=2) for c in alexnet.CHANNELS[2]]
        hidden = scaled(4096, width)
        if world.size != 2:
            raise ValueError(f"world must have two ranks, one a tower, got {world.size}")
        for name, count in (("num_classes", num_classes), ("hidden units", hidden)):
            if count % 2:
                raise ValueError(f"{name} must be even, half for each tower, got {count}")
        c1, c2, c3, c4, c5 = (c // 2 for c in maps)
        super().__init__(
            {
                "conv1": nn.Conv2d(3, c1, 11, stride=4),
                "relu1": nn.ReLU(inplace=True),
                "norm1": response_norm(),
                "pool1": nn.MaxPool2d(3, 2),
                "conv2": nn.Conv2d(c1, c2, 5, padding=2),
                "relu2": nn.ReLU(inplace=True),
                "norm2": response_norm(),
                "pool2": nn.MaxPool2d(3, 2),
                "exchange2": Exchange(world),
                "conv3": nn.Conv2d(2 * c2, c3, 3, padding=1),
                "relu3": nn.ReLU(inplace=True),
                "conv4": nn.Conv2d(c3, c4, 3, padding=1),
                "relu4": nn.ReLU(inplace=True),
                "conv5": nn.Conv2d(c4, c5, 3, padding=1),
                "relu5": nn.ReLU(inplace=True),
                "pool5": nn.MaxPool2d(3, 2),
                "exchange5": Exchange(world),
                "flatten": nn.Flatten(),
                "fc6": nn.Linear(2 * c5 * grid * grid, hidden // 2),
                "relu6": nn.ReLU(inplace=True),
                "drop6": nn.Dropout(dropout),
                "exchange6": Exchange(world),
                "fc7": nn.Linear(hidden, hidden // 2),
                "relu7": nn.ReLU(inplace=True),
                "drop7": nn.Dropout(dropout),
                "exchange7": Exchange(world),
                "fc8": nn.Linear(hidden, num_classes // 2),
                "exchange8": Exchange(world),
            }
        )


def half(arrays, rank: int) -> dict:
    """A tower's part of the whole network's arrays: of everything, half of the rows."""
    rows = {name: len(array) // 2 for name, array in arrays.items()}
    return {name: a[rank * rows[name] : (rank + 1) * rows[name]] for name, a in arrays.items()}


class TwoTowers(Alone):
    """The team of the two ranks: both train on every image, each its own half of the weights."""

    def __init__(self, world):
        self.world = world
        self.rank, self.size = world.rank, world.size

    def backward(self, loss) -> None:
        # Both compute the one loss, and the exchanges add up what both of them derive from it.
        (loss * (1 / self.size)).backward()

    def total(self, running, stop):
        return running, not self.world.all_agree(not stop, "whether to stop")

    def agree(self, usable):
        return self.world.all_agree(usable, "whether gradients are usable")

    def collect(self, model, optimizer):
        """The whole network's states, put together from the towers' rows."""
        saved = optimizer.state_dict()
        state = {index: self.whole(entry) for index, entry in saved["state"].items()}
        return self.whole(model.state_dict()), {**saved, "state": state}

    def whole(self, entries) -> dict:
        """Arrays as `half` finds them; counts stay as they are."""
        return {
            name: value if isinstance(value, int) else self._joined(name, value)
            for name, value in entries.items()
        }

    def _joined(self, name, rows):
        rows = np.ascontiguousarray(rows)
        return np.concatenate(self.world.all_gather(rows, f"the other tower's {name}"))


def load_halves(trainer, state, rank: int) -> None:
    """Let a tower's trainer go on from a checkpoint of the whole network."""
    entries = state.optimizer["state"].items()
    counts = {i: {k: v for k, v in e.items() if isinstance(v, int)} for i, e in entries}
    arrays = {i: {k: v for k, v in e.items() if not isinstance(v, int)} for i, e in entries}
    halves = {i: {**counts[i], **half(arrays[i], rank)} for i in counts}
    optimizer = {**state.optimizer, "state": halves}
    trainer.restore(
        checkpoint.Checkpoint(half(state.model, rank), optimizer, state.about, state.progress)
    )


def make_trainer(world, train_set, test_set, out, full, settings, seed, device="cpu") -> Trainer:
    """A tower's Trainer; `settings`: what shall be other than the recipe's epochs, batch_size, lr.
    """
    recipe = alexnet.recipe(2, full)
    defaults = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "lr": recipe.lr}
    settings = {**defaults, **settings}
    classes = train_set.num_classes
    # The same seed draws the same whole network on both ranks.
    start = alexnet.build(classes, 2, full).state_dict()
    tower = Tower(world, classes) if full else Tower(world, classes, width=0.25, grid=1)
    tower.load_state_dict(half(start, world.rank))
    tower.to(device)
    train_loader = DataLoader(
        train_set, settings["batch_size"], shuffle=True, seed=seed, transform=recipe.train_transform
    )
    test_loader = DataLoader(test_set, settings["batch_size"], transform=recipe.eval_transform)
    optimizer = recipe.make_optimizer(tower.parameters(), settings["lr"])
    scheduler = recipe.make_scheduler(optimizer, settings["epochs"], len(train_loader))
    about = {
        "architecture": "alexnet", "options": {"towers": 2, "full": full}, "settings": settings,
        "class_names": train_set.class_names, "image_shape": train_set.image_shape,
    }  # fmt: skip
    return Trainer(
        tower, optimizer, train_loader, test_loader, recipe.loss, out, settings["epochs"],
        scheduler=scheduler, schedule_by=recipe.schedule_by, about=about, team=TwoTowers(world),
    )  # fmt: skip


@click.command(
    help="Train AlexNet on two ranks, a tower each: mpiexec -n 2 python -m ...",
    params=[common.BACKEND],
)
@click.option("--full/--small", default=False, show_default=True, help="The size of the network.")
@click.option("--data", type=click.Path(path_type=Path), help="As of architectures.alexnet train.")
@click.option("--epochs", type=click.IntRange(min=1))
@click.option("--batch-size", type=click.IntRange(min=1))
@click.option("--lr", type=click.FloatRange(min=0, min_open=True))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Cores a rank.  [default: half]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, by its own options.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/alexnet_two_gpus"),
    show_default=True, help="Directory for checkpoints, log and curves.",
)  # fmt: skip
def main(full, data, epochs, batch_size, lr, seed, threads, backend, resume, out):
    world = ranks.join(distributed.DEFAULT_TIMEOUT)
    with ranks.ended_together(world):
        device = common.setup(backend, seed, ranks.placed(world, backend, threads))
        settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
        settings = {name: value for name, value in settings.items() if value is not None}
        state = None
        if resume:
            state = common.load_checkpoint(alexnet.ARCHITECTURE, out / LAST)
            full, stored = state.about["options"]["full"], state.about["settings"]
            common.check_unchanged({**stored, "full": full, "epochs": epochs})
            settings = {**stored, **settings}
        train_set, test_set = common.load_data(data)
        common.check_images(
            alexnet.ARCHITECTURE, test_set, alexnet.recipe(2, full), {"towers": 2, "full": full}
        )
        with common.user_errors(ValueError):
            trainer = make_trainer(world, train_set, test_set, out, full, settings, seed, device)
        if state is not None:
            with common.user_errors(ValueError, KeyError, TypeError):
                load_halves(trainer, state, world.rank)
        return run_trainer(alexnet.ARCHITECTURE, trainer, out)


if __name__ == "__main__":
    import sys

    sys.exit(run_group(main, sys.argv[1:], "python -m architectures.alexnet_two_gpus"))
