"""``export``: a trained network as a file that other programs read."""

from pathlib import Path

import click

from kernels.command_line import UserError, user_errors
from minidl.cli import common


def export_command(architecture) -> click.Command:
    """The command ``export`` of a network."""

    def command(checkpoint, out):
        model, _, state = common.restored(architecture, checkpoint)
        options = state.about["options"]
        with user_errors(ValueError, OSError, ImportError):
            if out.suffix == ".onnx":
                from minidl import onnx

                onnx.export(model, out, architecture.input_shape(**options))
            elif out.suffix == ".safetensors":
                from minidl import weights

                weights.save(out, model)
            else:
                raise UserError(f"OUT must end in .onnx or .safetensors, got {str(out)!r}")
        click.echo(out)

    return click.Command(
        "export", callback=command,
        params=[common.CHECKPOINT, click.Argument(["out"], type=click.Path(path_type=Path))],
        help="Write a checkpoint's network as an ONNX file (OUT ends in .onnx) or its weights "
        "alone (.safetensors).",
    )  # fmt: skip
