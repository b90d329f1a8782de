"""``python -m benchmarks lenet``: measure, and print tables in Markdown."""

import click

INSTALL = "the comparison needs PyTorch: pip install -e '.[oracle]'"


@click.group()
def main():
    """Speed of minidl, measured beside PyTorch."""


@main.command()
@click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: all]")
@click.option("--rounds", type=click.IntRange(min=4), default=200, show_default=True)
def lenet(batch, threads, rounds):
    """A training step of LeNet-5."""
    from benchmarks.lenet import table

    try:
        click.echo(table(batch, threads, rounds))
    except ImportError as error:
        raise click.ClickException(INSTALL) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
