"""The commands that all networks share: train, evaluate, predict, summary, gradcheck."""

import sys
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from kernels import dispatch
from minidl import random
from minidl.architecture import Architecture

INTERRUPTED = 130  # the shell's status for a program that SIGINT ended


class UserError(click.ClickException):
    """A mistake of the user's, reported in one line with exit status 2."""

    exit_code = 2


@contextmanager
def user_errors(*kinds):
    """Turn exceptions of these kinds into one-line errors."""
    try:
        yield
    except kinds as error:
        raise UserError(" ".join(str(error).split())) from error


def main(architecture: Architecture) -> None:
    """Run the command line of `architecture` and exit with its status."""
    sys.exit(run(architecture, sys.argv[1:]))


def run(architecture: Architecture, arguments: list[str]) -> int:
    """Run one command and return its exit status; errors go to stderr in one line."""
    group = build_group(architecture)
    try:
        status = group.main(
            arguments, prog_name=f"python -m architectures.{architecture.name}",
            standalone_mode=False,
        )  # fmt: skip
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED


def _setup(backend: str, seed: int, threads: int | None) -> None:
    with user_errors(ValueError, RuntimeError):
        dispatch.use(backend)
        random.manual_seed(seed)
        if threads is not None:
            dispatch.set_num_threads(threads)


_SHARED = (
    click.Option(
        ["--backend"], type=click.Choice(dispatch.BACKENDS), default="auto", show_default=True,
        help="Kernels to use: the readable NumPy ones (reference), the fast ones (cpu), or the "
        "fastest for this machine (auto). Those for NVIDIA GPUs (cuda) are still to come.",
    ),
    click.Option(
        ["--seed"], type=click.IntRange(min=0), default=0, show_default=True,
        help="Start of all random numbers: the same seed gives the same run.",
    ),
    click.Option(
        ["--threads"], type=click.IntRange(min=1), default=None,
        help="Processor cores to use.  [default: all]",
    ),
)  # fmt: skip

_DATA = click.Option(
    ["--data"], type=click.Path(path_type=Path), default=None,
    help="Directory with the IDX files of MNIST or a set like it, gzipped or not.  "
    "[default: the 5,000 digits that come with minidl]",
)  # fmt: skip


def build_group(architecture: Architecture) -> click.Group:
    """The click group of `architecture`."""
    group = click.Group(architecture.name, help=architecture.title)
    for make in (_train, _evaluate, _predict, _summary, _gradcheck):
        group.add_command(make(architecture))
    return group


def _load_data(directory):
    from minidl import data

    if directory is None:
        return data.bundled_digits()
    with user_errors(ValueError, OSError):
        return data.mnist(directory)


def _loader(dataset, recipe, batch_size, *, training, seed=0):
    from minidl.data import DataLoader

    transform = recipe.train_transform if training else recipe.eval_transform
    return DataLoader(dataset, batch_size, shuffle=training, seed=seed, transform=transform)


def _check_images(architecture, dataset, recipe):
    if not len(dataset):
        raise UserError("the data set is empty")
    images, _ = dataset.batch(np.array([0]))
    shape = recipe.eval_transform(images, np.random.default_rng(0)).shape[1:]
    if shape != architecture.input_shape:
        raise UserError(
            f"{architecture.name} takes images of shape {architecture.input_shape}, the data gives "
            f"{shape} (from {dataset.image_shape})"
        )


# -- train -------------------------------------------------------------------------------------


def _train(architecture):
    def command(backend, seed, threads, data, epochs, batch_size, lr, out, resume, **options):
        from minidl.progress import TrainingDisplay
        from minidl.train import LAST, TrainingDiverged

        out = out or Path("runs") / architecture.name
        _setup(backend, seed, threads)
        train_set, test_set = _load_data(data)
        state = None
        if resume is not None:
            state = _load_checkpoint(architecture, resume / LAST if resume.is_dir() else resume)
            options = state.about["options"]
            _check_classes(state, test_set)
        settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
        trainer = _trainer(architecture, options, settings, train_set, test_set, out, seed, state)
        with TrainingDisplay(trainer.epochs) as display:
            trainer.display = display
            try:
                with user_errors(TrainingDiverged, OSError):
                    rows = trainer.run()
            except KeyboardInterrupt:
                click.echo(f"Stopped. To go on: train --resume {out / LAST}", err=True)
                return INTERRUPTED
        _finish(architecture, rows, out)
        return 0

    options = [
        *_SHARED, _DATA,
        click.Option(["--epochs"], type=click.IntRange(min=1), help="Passes over the data."),
        click.Option(["--batch-size"], type=click.IntRange(min=1), help="Images a step."),
        click.Option(
            ["--lr"], type=click.FloatRange(min=0, min_open=True), help="Learning rate."
        ),
        click.Option(
            ["--out"], type=click.Path(path_type=Path),
            help="Directory for checkpoints, log and curves.  "
            f"[default: runs/{architecture.name}]",
        ),
        click.Option(
            ["--resume"], type=click.Path(path_type=Path),
            help="Go on from this checkpoint (or the last one of this directory), exactly where "
            "it stopped; its own options count, but for --epochs and --out.",
        ),
        *architecture.options,
    ]  # fmt: skip
    return click.Command("train", callback=command, params=options, help="Train the network.")


def _trainer(architecture, options, settings, train_set, test_set, out, seed, state):
    from minidl.train import Trainer

    recipe = architecture.recipe(**options)
    stored = state.about["settings"] if state else {}
    defaults = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "lr": recipe.lr}
    asked = {name: value for name, value in settings.items() if value is not None}
    if state:
        # The length may change; what else the run was started with belongs to its state.
        asked = {name: asked[name] for name in ("epochs",) if name in asked}
    settings = {**defaults, **stored, **asked}
    _check_images(architecture, train_set, recipe)
    with user_errors(ValueError):
        model = architecture.build(num_classes=train_set.num_classes, **options)
    train_loader = _loader(train_set, recipe, settings["batch_size"], training=True, seed=seed)
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
        model, optimizer, train_loader, _loader(test_set, recipe, 256, training=False),
        recipe.loss, out, settings["epochs"], scheduler=scheduler, schedule_by=recipe.schedule_by,
        clip_norm=recipe.clip_norm, scores=recipe.scores, about=about,
    )  # fmt: skip
    if state:
        with user_errors(ValueError, KeyError):
            trainer.restore(state)
    return trainer


def _finish(architecture, rows, out):
    from minidl.train import BEST
    from minidl.visualize.curves import save_curves

    save_curves(out / "curves.png", rows, architecture.title)
    best = max(rows, key=lambda row: row["test_accuracy"])
    click.echo(
        f"test accuracy {rows[-1]['test_accuracy']:.2%} after the last epoch, best "
        f"{best['test_accuracy']:.2%} in epoch {best['epoch']}: {out / BEST}"
    )


# -- evaluate and predict ------------------------------------------------------------------------


def _load_checkpoint(architecture, path):
    from minidl import checkpoint

    with user_errors(ValueError, OSError):
        state = checkpoint.load(path)
    name = state.about.get("architecture")
    if name != architecture.name:
        raise UserError(f"{path}: a checkpoint of {name!r}, expected {architecture.name!r}")
    return state


def _check_classes(state, dataset):
    known = len(state.about["class_names"])
    if dataset.num_classes != known:
        raise UserError(
            f"the checkpoint knows {known} classes, the data has {dataset.num_classes}"
        )


def _restored(architecture, path):
    """(model in evaluation mode, recipe, what the checkpoint says of itself)."""
    state = _load_checkpoint(architecture, path)
    with user_errors(ValueError, KeyError, TypeError):
        options = state.about["options"]
        model = architecture.build(num_classes=len(state.about["class_names"]), **options)
        model.load_state_dict(state.model)
    return model.eval(), architecture.recipe(**options), state


_CHECKPOINT = click.Argument(["checkpoint"], type=click.Path(path_type=Path))


def _evaluate(architecture):
    def command(backend, seed, threads, data, checkpoint):
        from minidl.train import evaluate

        _setup(backend, seed, threads)
        model, recipe, state = _restored(architecture, checkpoint)
        _, test_set = _load_data(data)
        _check_classes(state, test_set)
        _check_images(architecture, test_set, recipe)
        loader = _loader(test_set, recipe, 256, training=False)
        result = evaluate(model, loader, recipe.loss, recipe.scores)
        wrong = result.samples - result.correct
        click.echo(
            f"{result.samples} images: accuracy {result.accuracy:.2%} ({wrong} wrong), "
            f"loss {result.loss:.4f}"
        )

    return click.Command(
        "evaluate", callback=command, params=[_CHECKPOINT, *_SHARED, _DATA],
        help="Test accuracy of a trained network.",
    )  # fmt: skip


def _predict(architecture):
    def command(backend, seed, threads, checkpoint, images, invert):
        from minidl import Tensor, no_grad, ops

        _setup(backend, seed, threads)
        model, recipe, state = _restored(architecture, checkpoint)
        names = state.about["class_names"]
        for path in images:
            pixels = _read_image(path, state.about["image_shape"], invert)
            inputs = recipe.eval_transform(pixels[None], np.random.default_rng(0))
            with no_grad():
                scores = recipe.scores(model(Tensor(inputs)))
                probabilities = ops.softmax(scores, axis=1).numpy()[0]
            click.echo(f"{path}:")
            for index in np.argsort(-probabilities, kind="stable")[:5]:
                click.echo(f"  {names[index]:<20} {probabilities[index]:8.4%}")

    options = [
        _CHECKPOINT,
        click.Argument(["images"], type=click.Path(path_type=Path), nargs=-1, required=True),
        click.Option(
            ["--invert"], is_flag=True,
            help="Swap light and dark: the digits of MNIST are light on dark.",
        ),
        *_SHARED,
    ]  # fmt: skip
    return click.Command(
        "predict", callback=command, params=options,
        help="The five most probable classes of pictures (PNG, JPEG).",
    )  # fmt: skip


def _read_image(path, shape, invert):
    """A picture as float32 (C, H, W) in [0, 1], resized to `shape`."""
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    with user_errors(OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        with Image.open(path) as image:
            image = image.convert("L" if channels == 1 else "RGB")
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, np.float32) / 255
    pixels = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(1 - pixels if invert else pixels)


# -- summary and gradcheck -----------------------------------------------------------------------


def _summary(architecture):
    def command(num_classes, **options):
        from minidl.summary import summary

        with user_errors(ValueError):
            model = architecture.build(num_classes=num_classes, **options)
        click.echo(str(summary(model, architecture.input_shape)))

    classes = click.Option(
        ["--num-classes"], type=click.IntRange(min=1), default=10, show_default=True,
        help="Number of classes.",
    )  # fmt: skip
    return click.Command(
        "summary", callback=command, params=[classes, *architecture.options],
        help="The table of layers: output shape, parameters, multiply-adds, memory.",
    )  # fmt: skip


def _gradcheck(architecture):
    def command(backend, seed, threads, **options):
        from minidl import Tensor
        from minidl.gradcheck import GradcheckError, gradcheck_module

        _setup(backend, seed, threads)
        model = architecture.build(num_classes=10, **options).to(np.float64)
        images = random.generator().standard_normal((2, *architecture.input_shape))
        with user_errors(GradcheckError):
            gradcheck_module(model, Tensor(images, requires_grad=True))
        count = sum(p.size for p in model.parameters())
        click.echo(
            f"backward agrees with central differences for the input and all {count:,} "
            "parameters, along random directions in float64"
        )

    return click.Command(
        "gradcheck", callback=command, params=[*_SHARED, *architecture.options],
        help="Check backward against finite differences in float64.",
    )  # fmt: skip
