"""The commands that all networks share, one module a family."""

import sys

import click

from kernels.command_line import run_group
from minidl.architecture import Architecture
from minidl.cli.evaluate import evaluate_command, predict_command
from minidl.cli.export import export_command
from minidl.cli.graph import draw_command, graph_command
from minidl.cli.inspect import gradcheck_command, summary_command
from minidl.cli.profile import profile_command
from minidl.cli.train import train_command
from minidl.cli.visualize import visualize_command

_COMMANDS = (
    train_command, evaluate_command, predict_command, summary_command, gradcheck_command,
    visualize_command, export_command, profile_command, graph_command, draw_command,
)  # fmt: skip


def main(architecture: Architecture) -> None:
    """Run the command line of `architecture` and exit with its status."""
    sys.exit(run(architecture, sys.argv[1:]))


def run(architecture: Architecture, arguments: list[str]) -> int:
    """Run one command and return its exit status; errors go to stderr in one line."""
    return run_group(
        build_group(architecture), arguments, f"python -m architectures.{architecture.name}"
    )


def build_group(architecture: Architecture) -> click.Group:
    """The click group of `architecture`."""
    group = click.Group(architecture.name, help=architecture.title)
    for make in _COMMANDS:
        group.add_command(make(architecture))
    return group
