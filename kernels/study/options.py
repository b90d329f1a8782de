"""What the commands of this room share: shapes on the command line, and threads."""

import click

from kernels import dispatch
from kernels.command_line import UserError, user_errors
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


_INTS, _SHAPE = Ints(), Shape()
SHAPE = click.option("--shape", type=_SHAPE, help="N,C,H,W of the images; M,K of a product.")
WEIGHT = click.option("--weight", type=_SHAPE, help="O,C,kh,kw of a convolution; K,N of a product.")
WINDOW = (
    click.option("--kernel", "kernel_size", type=_INTS, help="A pooling's window: k or kh,kw."),
    click.option("--stride", type=_INTS, help="One int, or two: vertical, horizontal."),
    click.option("--padding", type=_INTS, help="One int; two; or four: top, bottom, left, right."),
)
CASE = (
    SHAPE, WEIGHT, *WINDOW,
    click.option("--dilation", type=_INTS, help="One int, or two: vertical, horizontal."),
    click.option("--groups", type=click.IntRange(min=1), help="Groups of a convolution."),
    click.option("--size", type=click.IntRange(min=1), help="Channels of LRN's window."),
)  # fmt: skip
ROUNDS = click.option(
    "--rounds", type=click.IntRange(min=1), default=7, show_default=True,
    help="Turns that every candidate has; the median counts.",
)  # fmt: skip
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Processor cores to use.  [default: all]"
)


def with_options(*options):
    """A decorator that gives a command all of these options, in this order."""

    def decorate(function):
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def set_threads(threads: int | None) -> int:
    """Run the kernels on so many threads, all by default; returns how many."""
    with user_errors(ValueError):
        if threads is not None:
            dispatch.set_num_threads(threads)
    return dispatch.get_num_threads()


def given_options(kernel: str, given: dict, known) -> dict:
    """The options given, by the names of the kernels' arguments; those of windows as pairs.

    One-line error for one that is not among `known`, and for other than one, two or four ints.
    """
    options = {}
    for name, value in given.items():
        if value is None:
            continue
        if name not in known:
            flags = ", ".join(flag(option) for option in known)
            raise UserError(f"{kernel} has no {flag(name)}: it takes {flags}")
        options[name] = _window(name, value) if name in _WINDOWS else value
    return options


_WINDOWS = ("kernel_size", "stride", "padding", "dilation")


def flag(name: str) -> str:
    """The option that stands for an argument of a kernel."""
    return "--kernel" if name == "kernel_size" else f"--{name}"


def _window(name, value):
    numbers = value[0] if len(value) == 1 else value
    with user_errors(ValueError):
        if name == "padding":
            return padding4(flag(name), numbers)
        return pair(flag(name), numbers)
