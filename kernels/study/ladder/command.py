"""``python -m kernels ladder KERNEL``: from the naive loops to the fastest version, timed."""

import click

from kernels.command_line import UserError, user_errors
from kernels.study.options import INTS, SHAPE, THREADS, set_threads, window

# The options of each ladder, with their defaults.
DEFAULTS = {
    "conv2d": {
        "shape": (4, 64, 56, 56), "weight": (64, 64, 3, 3), "stride": (1,), "padding": (1,),
    },
    "lrn": {"shape": (16, 96, 55, 55)},
    "max_pool2d": {
        "shape": (16, 64, 112, 112), "kernel": (3, 3), "stride": (2,), "padding": (1,),
    },
}  # fmt: skip


@click.command(help="From the naive loops to the fastest version: every rung explained and timed.")
@click.argument("kernel", type=click.Choice(tuple(DEFAULTS)))
@click.option("--shape", type=SHAPE, help="N,C,H,W of the images.")
@click.option("--weight", type=SHAPE, help="O,C,kh,kw of a convolution's weights.")
@click.option("--kernel", "kernel_size", type=SHAPE, help="Window of a pooling: k or kh,kw.")
@click.option("--stride", type=INTS, help="One int, or two: vertical, horizontal.")
@click.option("--padding", type=INTS, help="One int; two; or four: top, bottom, left, right.")
@THREADS
@click.option(
    "--rounds", type=click.IntRange(min=1), default=7, show_default=True,
    help="Turns that every rung has; the median counts.",
)  # fmt: skip
@click.option("--markdown", is_flag=True, help="Print the table alone, in Markdown.")
def command(kernel, threads, rounds, markdown, **given):
    from kernels.study import machine
    from kernels.study.ceilings import measure_ceilings
    from kernels.study.ladder import rungs, show

    given["kernel"] = given.pop("kernel_size")
    options = _settings(kernel, given)
    threads = set_threads(threads)
    with user_errors(ValueError):
        ladder = _build(kernel, options)
    if not markdown:
        click.echo(f"{ladder.title}\n\n{show.rungs_text(ladder)}\n")
    before = measure_ceilings(rounds)
    with user_errors(rungs.WrongRung):
        steps = rungs.climb(ladder, rounds, lambda name: click.echo(f"{name} ...", err=True))
    ceilings = before.highest(measure_ceilings(rounds))
    if markdown:
        about = machine.sentence(machine.describe(threads))
        click.echo(show.markdown(ladder, steps, ceilings, about))
    else:
        click.echo(show.table(ladder, steps, ceilings))


def _settings(kernel, given):
    """The options given and the defaults of the others; one-line error for one of no use here."""
    defaults = DEFAULTS[kernel]
    for name, value in given.items():
        if value is not None and name not in defaults:
            known = ", ".join(f"--{option}" for option in defaults)
            raise UserError(f"{kernel} has no --{name}: it takes {known}")
    return {name: given[name] or default for name, default in defaults.items()}


def _build(kernel, options):
    from kernels.study.ladder import conv, lrn, pool

    if kernel == "lrn":
        return lrn.build(options["shape"])
    build, size = {
        "conv2d": (conv.build, options.get("weight")),
        "max_pool2d": (pool.build, window("kernel", options.get("kernel", (1,)))),
    }[kernel]
    return build(
        options["shape"], size, window("stride", options["stride"]),
        window("padding", options["padding"]),
    )  # fmt: skip
