"""What the commands of this room share: shapes on the command line, and threads."""

import click

from kernels import dispatch
from kernels.command_line import user_errors
from kernels.geometry import padding4, pair


class Ints(click.ParamType):
    """Integers parted by commas (or x): 8,64,56,56."""

    name = "ints"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(number) for number in value.replace("x", ",").split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of integers such as 8,64,56,56", param, ctx)


class Shape(Ints):
    """Ints of at least 1."""

    name = "shape"

    def convert(self, value, param, ctx):
        shape = super().convert(value, param, ctx)
        if min(shape) < 1:
            self.fail(f"every extent must be at least 1, got {value}", param, ctx)
        return shape


INTS, SHAPE = Ints(), Shape()
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Processor cores to use.  [default: all]"
)


def set_threads(threads: int | None) -> int:
    """Run the kernels on so many threads, all by default; returns how many."""
    with user_errors(ValueError):
        if threads is not None:
            dispatch.set_num_threads(threads)
    return dispatch.get_num_threads()


def window(name: str, value: tuple[int, ...]):
    """Two ints (four for a padding) of the option --NAME. One-line error for others."""
    with user_errors(ValueError, prefix="--"):
        numbers = value[0] if len(value) == 1 else value
        return padding4(name, numbers) if name == "padding" else pair(name, numbers)
