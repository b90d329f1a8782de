"""``python -m kernels ladder KERNEL``: from the naive loops to the fastest version, timed."""

import click

from kernels.command_line import user_errors
from kernels.study.options import (
    ROUNDS,
    SHAPE,
    THREADS,
    WEIGHT,
    WINDOW,
    given_options,
    set_threads,
    with_options,
)

# The arguments of each ladder.
DEFAULTS = {
    "conv2d": {
        "shape": (4, 64, 56, 56), "weight": (64, 64, 3, 3), "stride": (1, 1),
        "padding": (1, 1, 1, 1),
    },
    "lrn": {"shape": (16, 96, 55, 55)},
    "max_pool2d": {
        "shape": (16, 64, 112, 112), "kernel_size": (3, 3), "stride": (2, 2),
        "padding": (1, 1, 1, 1),
    },
}  # fmt: skip


@click.command(help="From the naive loops to the fastest version: every rung explained and timed.")
@click.argument("kernel", type=click.Choice(tuple(DEFAULTS)))
@with_options(SHAPE, WEIGHT, *WINDOW, THREADS, ROUNDS)
@click.option("--markdown", is_flag=True, help="Print the table alone, in Markdown.")
def command(kernel, threads, rounds, markdown, **given):
    from kernels.study import machine
    from kernels.study.ladder import rungs, show

    options = DEFAULTS[kernel] | given_options(kernel, given, DEFAULTS[kernel])
    threads = set_threads(threads)
    with user_errors(ValueError, MemoryError):
        ladder = _builder(kernel)(**options)
    if not markdown:
        click.echo(f"{ladder.title}\n\n{show.rungs_text(ladder)}\n")

    def progress(name):
        click.echo(f"{name} ...", err=True)

    with user_errors(rungs.WrongRung):
        steps, ceilings = rungs.climb(ladder, rounds, progress)
    if markdown:
        about = machine.sentence(machine.describe(threads))
        click.echo(show.markdown(ladder, steps, ceilings, about))
    else:
        click.echo(show.table(ladder, steps, ceilings))


def _builder(kernel):
    from kernels.study.ladder import conv, lrn, pool

    return {"conv2d": conv.build, "lrn": lrn.build, "max_pool2d": pool.build}[kernel]
