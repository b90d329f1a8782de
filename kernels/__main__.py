"""``python -m kernels COMMAND``: look at the kernels, explain them, measure them."""

import sys
from importlib import import_module

import click

from kernels.command_line import run_group

# Command -> the module of kernels.study whose `command` it is; imported when it is called for.
COMMANDS: dict[str, str] = {
    "list": "listing",
    "explain": "explain",
    "asm": "asm",
    "bench": "bench",
    "ladder": "ladder.command",
    "exercise": "exercise",
}


class StudyGroup(click.Group):
    """The commands of COMMANDS, each loaded on first use: --help stays quick."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        return import_module(f"kernels.study.{COMMANDS[name]}").command


@click.command(cls=StudyGroup, help="Look at the kernels, explain them, measure them.")
def main():
    pass


if __name__ == "__main__":
    sys.exit(run_group(main, sys.argv[1:], "python -m kernels"))
