"""``train``: from data and a recipe to checkpoints, a log and curves."""

import math
from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np

from kernels import dispatch
from kernels.command_line import INTERRUPTED, UserError, user_errors
from minidl.cli import common
from minidl.cli import distributed as ranks


def train_command(architecture) -> click.Command:
    """The command ``train`` of a network."""

    def command(distributed, sync_batch_norm, bucket_mb, timeout, **arguments):
        with ranks.joined(distributed, timeout) as world:
            return train(world, sync_batch_norm or None, bucket_mb, **arguments)

    def train(
        world, sync_batch_norm, bucket_mb, backend, seed, threads, data, skip_unreadable, workers,
        epochs, batch_size, lr, precision, capture, out, resume, weights, warm_start=None,
        **options,
    ):  # fmt: skip
        from minidl.train import LAST

        if sum(source is not None for source in (resume, weights, warm_start)) > 1:
            raise UserError("--resume, --weights and --warm-start exclude each other")
        out = out or _default_out(architecture, resume)
        device = common.setup(backend, seed, ranks.placed(world, backend, threads))
        train_set, test_set = common.load_data(data, skip_unreadable)
        state = None
        if resume is not None:
            state = _resumed(architecture, resume / LAST if resume.is_dir() else resume)
            options = state.about["options"]
            common.check_unchanged({**options, **state.about["settings"], "epochs": epochs})
            common.check_classes(state.about["class_names"], test_set)
        settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "precision": precision,
                    "sync_batch_norm": sync_batch_norm}  # fmt: skip
        trainer = _trainer(
            architecture, options, settings, train_set, test_set, out, seed, workers, state,
            device, ranks.team_of(world, bucket_mb), capture,
        )  # fmt: skip
        if weights is not None:
            common.load_weights(architecture, trainer.model, weights, options)
        if warm_start is not None:
            with user_errors(ValueError):
                architecture.warm_start(
                    trainer.model, common.load_checkpoint(architecture, warm_start).model
                )
        return run_trainer(architecture, trainer, out)

    return click.Command(
        "train", callback=command, params=_options(architecture), help="Train the network."
    )


def _resumed(architecture, path):
    """The checkpoint of a run that is to go on."""
    state = common.load_checkpoint(architecture, path)
    settings = state.about.get("settings")
    if not (
        isinstance(settings, dict) and isinstance(settings.get("lr"), (int, float))
        and all(common.is_count(settings.get(name)) for name in ("epochs", "batch_size"))
        and settings.get("precision", "float32") in dispatch.PRECISIONS
    ):  # fmt: skip
        raise UserError(f"{path}: no checkpoint of a run: settings is {settings!r}")
    return state


def _default_out(architecture, resume):
    """Where a run goes that was not told where: on with the one it resumes, or to a fixed place."""
    if resume is None:
        return Path("runs") / architecture.name
    return resume if resume.is_dir() else resume.parent


def _options(architecture):
    ours = "  [default: the recipe's]"
    options = [
        *common.RUNTIME, *common.DATA,
        click.Option(["--epochs"], type=click.IntRange(min=1), help=f"Passes over the data.{ours}"),
        click.Option(["--batch-size"], type=click.IntRange(min=1), help=f"Images a step.{ours}"),
        click.Option(
            ["--lr"], type=click.FloatRange(min=0, min_open=True), callback=_finite,
            help=f"Learning rate, at the start.{ours}",
        ),
        click.Option(
            ["--precision"], type=click.Choice(dispatch.PRECISIONS),
            help="Of matrix products: float32, tf32 (with --backend cuda), or float16 with scaled "
            "gradients.  [default: float32]",
        ),
        click.Option(
            ["--capture/--no-capture"], default=None,
            help="Record forward and backward of a batch once and replay them, which costs the "
            "processor less; the numbers are the same.  [default: with --backend cuda, but for "
            "float16 and --distributed]",
        ),
        click.Option(
            ["--out"], type=click.Path(path_type=Path),
            help="Directory for checkpoints, log and curves.  "
            f"[default: runs/{architecture.name}; with --resume, where that run lies]",
        ),
        click.Option(
            ["--resume"], type=click.Path(path_type=Path),
            help="Go on from this checkpoint (or the last one of this directory), exactly where "
            "it stopped. It brings its own options; --epochs may be another.",
        ),
        click.Option(
            ["--weights"], type=click.Path(path_type=Path),
            help="Start from the weights in this file (.safetensors or .pth).",
        ),
        *ranks.OPTIONS, *common.model_options(architecture, full=False),
    ]  # fmt: skip
    if architecture.warm_start is not None:
        options.append(
            click.Option(
                ["--warm-start"], type=click.Path(path_type=Path),
                help="Copy the layers that the paper copies from this checkpoint of a shallower "
                "form.",
            )
        )  # fmt: skip
    return options


def _finite(context, option, value):
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


def _trainer(
    architecture, options, settings, train_set, test_set, out, seed, workers, state, device, team,
    capture,
):  # fmt: skip
    from minidl.amp import GradScaler
    from minidl.data import DataLoader
    from minidl.distributed import synchronize_batch_norm
    from minidl.train import Trainer

    recipe = architecture.recipe(**options)
    stored = state.about["settings"] if state else {}
    defaults = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "lr": recipe.lr,
                "precision": "float32", "sync_batch_norm": False}  # fmt: skip
    asked = {name: value for name, value in settings.items() if value is not None}
    if state:
        # The length may change; what else the run was started with belongs to its state.
        asked = {name: asked[name] for name in ("epochs",) if name in asked}
    settings = {**defaults, **stored, **asked}
    if settings["precision"] == "tf32" and device != "cuda":
        raise UserError("--precision tf32 needs --backend cuda")
    can_capture = device == "cuda" and team is None and settings["precision"] != "float16"
    if capture and not can_capture:
        raise UserError("--capture needs --backend cuda, without float16 and --distributed")
    dispatch.precision("tf32" if settings["precision"] == "tf32" else "float32")
    common.check_images(architecture, train_set, recipe, options)
    common.check_images(architecture, test_set, recipe, options)
    with user_errors(ValueError):
        model = architecture.build(num_classes=train_set.num_classes, **options).to(device)
    shard = (0, 1) if team is None else (team.rank, team.size)
    if team is not None and settings["sync_batch_norm"]:
        synchronize_batch_norm(model, team)
    with user_errors(ValueError):
        train_loader = DataLoader(
            train_set, settings["batch_size"], shuffle=True, seed=seed, workers=workers,
            transform=recipe.train_transform, shard=shard,
        )  # fmt: skip
    test_set = _part(test_set, shard)
    test_loader = DataLoader(
        test_set, settings["batch_size"], workers=workers, transform=recipe.eval_transform
    )
    optimizer = recipe.make_optimizer(model.parameters(), settings["lr"])
    scheduler = None
    if recipe.make_scheduler is not None:
        scheduler = recipe.make_scheduler(optimizer, settings["epochs"], len(train_loader))
    about = {
        "architecture": architecture.name,
        "options": options,
        "settings": settings,
        "class_names": train_set.class_names,
        "image_shape": train_set.image_shape,
    }
    trainer = Trainer(
        model, optimizer, train_loader, test_loader, recipe.loss, out, settings["epochs"],
        scheduler=scheduler, schedule_by=recipe.schedule_by, clip_norm=recipe.clip_norm,
        scores=recipe.scores, after_step=recipe.after_step, about=about, team=team,
        scaler=GradScaler() if settings["precision"] == "float16" else None,
        capture=can_capture and capture is not False,
    )  # fmt: skip
    if state:
        with user_errors(ValueError, KeyError, TypeError, prefix="the checkpoint does not fit: "):
            trainer.restore(state)
    return trainer


def _part(dataset, shard):
    """The part of a dataset that a rank tests."""
    from minidl.data import shard_slice

    if shard == (0, 1):
        return dataset
    return dataset.subset(np.arange(len(dataset))[shard_slice(len(dataset), *shard)])


def run_trainer(architecture, trainer, out) -> int:
    """Train to the end, drawing curves at last; returns the command's exit status."""
    from minidl.progress import TrainingDisplay
    from minidl.train import BEST, LAST, TrainingDiverged
    from minidl.visualize.curves import save_curves

    chief = trainer.team.is_chief
    with user_errors(OSError):
        out.mkdir(parents=True, exist_ok=True)  # not only after an epoch of work
    with TrainingDisplay(trainer.epochs) if chief else nullcontext() as trainer.display:
        try:
            with common.data_errors(), user_errors(TrainingDiverged):
                rows = trainer.run()
        except KeyboardInterrupt:
            if chief:
                click.echo(f"Stopped. To go on: train --resume {out / LAST}", err=True)
            return INTERRUPTED
    if not chief:
        return 0
    with user_errors(OSError):
        save_curves(out / "curves.png", rows, architecture.title)
    best = max(rows, key=lambda row: row["test_accuracy"])
    click.echo(
        f"test accuracy {rows[-1]['test_accuracy']:.2%} after the last epoch, best "
        f"{best['test_accuracy']:.2%} in epoch {best['epoch']}: {out / BEST}"
    )
    return 0
