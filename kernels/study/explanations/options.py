"""The command-line options that explanations share, and the types that read their values."""

import re

import click


class Integers(click.ParamType):
    """One or more integers, "3", "3,2" or "3x2": an int, or a tuple of them."""

    name = "integers"

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        parts = re.split(r"[,x]", value)
        try:
            numbers = tuple(int(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not an integer, or several such as 3,2", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


def option(name: str, default, help: str, **more) -> click.Option:
    """A click option that shows its default."""
    return click.Option([name], default=default, show_default=True, help=help, **more)


def integers(name: str, default, help: str) -> click.Option:
    """An option for one integer or several."""
    return option(name, default, help, type=Integers(), metavar="N[,N]")


def count(name: str, default: int, help: str, minimum: int = 1) -> click.Option:
    """An option for one integer, at least `minimum`."""
    return option(name, default, help, type=click.IntRange(min=minimum), metavar="N")


def flag(name: str, help: str) -> click.Option:
    """An option that is there or not."""
    return click.Option([name], is_flag=True, default=False, help=help)


SIZE = integers("--size", 5, "Height and width of the image.")
KERNEL = integers("--kernel", 3, "Height and width of the kernel.")
STRIDE = integers("--stride", 1, "Pixels from one window to the next.")
PADDING = integers("--padding", 0, "Rows and columns of padding: one, two or four numbers.")
DILATION = integers("--dilation", 1, "Pixels from one tap of the kernel to the next.")
CHANNELS = count("--channels", 1, "Channels of the image.")
BATCH = count("--batch", 1, "Number of images.")
OUTPUTS = count("--outputs", 2, "Channels of the result.")
GROUPS = count("--groups", 1, "Groups of channels.")
