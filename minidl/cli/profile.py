"""``profile``: where a training step's time and memory go, operation by operation."""

from pathlib import Path

import click
import numpy as np

from minidl import random
from minidl.cli import common
from minidl.cli.common import user_errors
from minidl.profiler import report


def profile_command(architecture) -> click.Command:
    """The command ``profile`` of a network."""

    def command(backend, seed, threads, batch_size, steps, by, sort, limit, trace, **options):
        from minidl.profiler import profile

        device = common.setup(backend, seed, threads)
        step = _training_step(architecture, batch_size, options, device)
        step()  # compiles the kernels and makes the optimiser's state
        with profile() as measured:
            for _ in range(steps):
                step()
        click.echo(measured.text(by, sort, limit))
        if trace is not None:
            with user_errors(OSError):
                measured.chrome_trace(trace)
            click.echo(str(trace))

    options = [
        click.Option(
            ["--batch-size"], type=click.IntRange(min=1), default=16, show_default=True,
            help="Images a step.",
        ),
        click.Option(
            ["--steps"], type=click.IntRange(min=1), default=3, show_default=True,
            help="Training steps to add up, after one that does not count.",
        ),
        click.Option(
            ["--by"], type=click.Choice(report.GROUPS), default="op", show_default=True,
            help="What a row stands for: an operation, a layer, or an operation on inputs of one "
            "shape.",
        ),
        click.Option(
            ["--sort"], type=click.Choice(report.SORTS), default="time", show_default=True,
            help="What the rows are sorted by.",
        ),
        click.Option(
            ["--limit"], type=click.IntRange(min=1), default=20, show_default=True,
            help="Rows at most.",
        ),
        click.Option(
            ["--trace"], type=click.Path(path_type=Path),
            help="Write all operations to this JSON file, for chrome://tracing or "
            "ui.perfetto.dev.",
        ),
        *common.RUNTIME, *common.model_options(architecture, full=False),
    ]  # fmt: skip
    return click.Command(
        "profile", callback=command, params=options,
        help="Time and memory of training steps on noise, by operation, forward and backward.",
    )  # fmt: skip


def _training_step(architecture, batch_size, options, device):
    """A function that trains the network on `device` for a step, always on the same noise."""
    from minidl import Tensor

    classes = architecture.num_classes(**options)
    with user_errors(ValueError):
        model = architecture.build(num_classes=classes, **options).to(device)
        recipe = architecture.recipe(**options)
    draw = random.generator()
    shape = (batch_size, *architecture.input_shape(**options))
    images = Tensor(draw.standard_normal(shape, np.float32)).to(device)
    labels = draw.integers(0, classes, batch_size)
    optimizer = recipe.make_optimizer(model.parameters(), recipe.lr)

    def step():
        optimizer.zero_grad()
        recipe.loss(model, model(images), labels).backward()
        optimizer.step()

    return step
