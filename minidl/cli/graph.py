"""``graph`` and ``draw``: the computation graph of a network, and its architecture as a picture."""

from pathlib import Path

import click
import numpy as np

from minidl.cli import common
from minidl.cli.common import user_errors

_ENDINGS = ".svg, .png, .pdf, or .dot for Graphviz's source"


def graph_command(architecture) -> click.Command:
    """The command ``graph`` of a network."""

    def command(out, backward, batch_size, **options):
        from minidl.visualize import graph

        model = _model(architecture, options)
        images = np.zeros((batch_size, *architecture.input_shape(**options)), np.float32)
        labels = np.zeros(batch_size, np.int64)
        loss = architecture.recipe(**options).loss
        settings = {"loss": lambda outputs: loss(model, outputs, labels)} if backward else {}
        with user_errors(ValueError):
            found = graph.capture(model, images, backward=backward, **settings)
        click.echo(found.text())
        if out is not None:
            with user_errors(ImportError, OSError, RuntimeError, ValueError):
                graph.render(found, path=out)
            click.echo(str(out))

    options = [
        click.Option(
            ["--out"], type=click.Path(path_type=Path),
            help=f"Draw the graph to this file, too: {_ENDINGS}.",
        ),
        click.Option(
            ["--backward"], is_flag=True,
            help="The graph of the loss and of its gradients by all parameters.",
        ),
        click.Option(
            ["--batch-size"], type=click.IntRange(min=1), default=1, show_default=True,
            help="Images.",
        ),
        *common.model_options(architecture, full=True),
    ]  # fmt: skip
    return click.Command(
        "graph", callback=command, params=options,
        help="The computation graph in training: every operation with what it reads, makes and "
        "keeps for backward.",
    )  # fmt: skip


def draw_command(architecture) -> click.Command:
    """The command ``draw`` of a network."""

    def command(out, **options):
        from minidl.visualize import diagram

        model = _model(architecture, options)
        with user_errors(ImportError, OSError, RuntimeError, ValueError):
            diagram.draw(model, architecture.input_shape(**options), out)
        click.echo(str(out))

    return click.Command(
        "draw", callback=command,
        params=[
            click.Argument(["out"], type=click.Path(path_type=Path)),
            *common.model_options(architecture, full=True),
        ],
        help=f"Draw the architecture, layer by layer with shapes, to a file: {_ENDINGS}.",
    )  # fmt: skip


def _model(architecture, options):
    with user_errors(ValueError):
        return architecture.build(num_classes=architecture.num_classes(**options), **options)
