"""``summary`` and ``gradcheck``: what a network is made of, and whether its gradients are right."""

import click
import numpy as np

from minidl import random
from minidl.cli import common
from minidl.cli.common import user_errors


def summary_command(architecture) -> click.Command:
    """The command ``summary`` of a network."""

    def command(num_classes, **options):
        from minidl.summary import summary

        if num_classes is None:
            num_classes = architecture.num_classes(**options)
        with user_errors(ValueError):
            model = architecture.build(num_classes=num_classes, **options)
        click.echo(str(summary(model, architecture.input_shape(**options))))

    classes = click.Option(
        ["--num-classes"], type=click.IntRange(min=1), default=None,
        help="Number of classes.  [default: as in the paper]",
    )  # fmt: skip
    return click.Command(
        "summary", callback=command,
        params=[classes, *common.model_options(architecture, full=True)],
        help="The table of layers: output shape, parameters, multiply-adds, memory.",
    )  # fmt: skip


def gradcheck_command(architecture) -> click.Command:
    """The command ``gradcheck`` of a network."""

    def command(backend, seed, threads, **options):
        from minidl import Tensor
        from minidl.array_module import to_device
        from minidl.gradcheck import GradcheckError, gradcheck_module, move_biases

        device = common.setup(backend, seed, threads)
        with user_errors(ValueError):
            model = architecture.build(num_classes=10, **options).to(np.float64)
        move_biases(model.to(device))
        images = random.generator().standard_normal((4, *architecture.input_shape(**options)))
        with user_errors(GradcheckError):
            # A step so small crosses few of the kinks that a network's many ReLUs have.
            inputs = Tensor(to_device(images, device), requires_grad=True)
            gradcheck_module(model, inputs, eps=1e-7)
        count = sum(p.size for p in model.parameters())
        click.echo(
            f"backward agrees with central differences for the input and all {count:,} "
            "parameters, along random directions in float64"
        )

    return click.Command(
        "gradcheck", callback=command,
        params=[*common.RUNTIME, *common.model_options(architecture, full=False)],
        help="Check backward against finite differences in float64.",
    )  # fmt: skip
