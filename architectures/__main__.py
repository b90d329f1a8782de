"""``python -m architectures``: ``compare`` sets the networks side by side, ``draw`` draws them."""

import sys
from pathlib import Path

import click

from minidl.cli import common, run_group


@click.group(help="What concerns all networks; each has commands of its own: architectures.NAME.")
def main():
    pass


@main.command(help="Size, cost, speed here and the papers' errors of all networks, full size.")
@click.option("--batch-size", type=click.IntRange(min=1), default=4, show_default=True)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True,
    help="Batches that are timed; the median counts.",
)  # fmt: skip
@click.option("--measure/--no-measure", default=True, show_default=True, help="Time them at all.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor cores.  [default: all]")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/compare.png"), show_default=True,
    help="Where the picture goes.",
)  # fmt: skip
def compare(batch_size, rounds, measure, threads, out):
    from architectures.compare import ENTRIES, compare, save_chart, table

    common.setup("auto", 0, threads)
    results = compare(
        ENTRIES, batch_size, rounds, measure, lambda name: click.echo(f"{name} ...", err=True)
    )
    click.echo(table(results))
    with common.user_errors(OSError):
        save_chart(out, results)
    click.echo(out)


@main.command(help="Draw all networks, layer by layer with shapes, as SVG files.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/networks"), show_default=True,
    help="Directory for the files.",
)  # fmt: skip
def draw(out):
    from architectures.diagrams import DIAGRAMS, save_diagram

    for name in DIAGRAMS:
        with common.user_errors(ImportError, OSError, RuntimeError):
            click.echo(save_diagram(name, out))


if __name__ == "__main__":
    sys.exit(run_group(main, sys.argv[1:], "python -m architectures"))
