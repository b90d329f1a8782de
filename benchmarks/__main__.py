"""``python -m benchmarks kernels|layers|networks``: measure, print a table, write it to files."""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

import click

from kernels import dispatch
from minidl.cli import common, run_group

INSTALL = "PyTorch is not installed, so only minidl is measured: pip install -e '.[oracle]'"
ROUNDS, QUICK_ROUNDS = 20, 3

_OPTIONS = (
    click.option("--against", type=click.Choice(["torch"]), help="Measure PyTorch beside it."),
    click.option(
        "--threads", type=click.IntRange(min=1), help="Processor cores.  [default: all]"
    ),
    click.option("--quick", is_flag=True, help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}."),
    click.option(
        "--only", metavar="PATTERN", default="*",
        help="What has this in its name; * and ? stand for any characters, case is ignored.",
    ),
    click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/benchmarks"),
        show_default=True, help="Directory of the table, the figures (JSON) and the picture.",
    ),
)  # fmt: skip


@click.group(help="Speed of minidl, beside the ceilings of the machine and beside PyTorch.")
def main():
    pass


def _command(function):
    for option in reversed(_OPTIONS):
        function = option(function)
    return main.command(help=function.__doc__)(function)


@_command
def kernels(**options):
    """The CPU kernels: those that wait for memory, and the ways of convolving."""
    from benchmarks import kernels

    _measure("kernels", kernels.tasks, kernels.NOTES, **options)


@_command
def layers(**options):
    """Every convolution and pooling, and the largest other layers, of the networks."""
    from benchmarks import layers

    _measure("layers", layers.tasks, layers.NOTES, **options)


@_command
def networks(**options):
    """A training step and inference of every network, with its peak memory."""
    from benchmarks import networks

    def tasks(wanted):
        return networks.tasks(wanted, dispatch.get_num_threads())

    _measure("networks", tasks, networks.NOTES, **options)


@main.command(help="ResNet-18 as the batch, the image and the threads grow: a table and curves.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor cores.  [default: all]")
@click.option("--quick", is_flag=True, help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/benchmarks"),
    show_default=True, help="Directory of the table, the figures (JSON) and the picture.",
)  # fmt: skip
def scaling(threads, quick, out):
    from benchmarks import report, scaling
    from kernels.study import machine

    common.setup("auto", 0, threads)
    with common.user_errors(OSError):
        out.mkdir(parents=True, exist_ok=True)
    about = machine.describe(dispatch.get_num_threads(), report.PACKAGES)
    about = f"{machine.sentence(about, report.PACKAGES)}; float32."
    points = scaling.measure(
        QUICK_ROUNDS if quick else ROUNDS, lambda what: click.echo(f"{what} ...", err=True)
    )
    click.echo(f"{about}\n\n{scaling.table(points)}")
    with common.user_errors(OSError):
        paths = scaling.save(out, points, about)
    click.echo("\n" + "\n".join(map(str, paths)))


def _measure(name, tasks, notes, against, threads, quick, only, out):
    from benchmarks import report
    from benchmarks.tasks import Plan, run
    from kernels.study import machine

    # PyTorch first: how long OpenMP's threads spin, which kernels.cpu sets, is minidl's own.
    peer = against == "torch" and _torch_is_there()
    common.setup("auto", 0, threads)
    threads = dispatch.get_num_threads()
    if peer:
        _set_torch_threads(threads)
    todo = list(tasks(lambda task: fnmatchcase(task.lower(), f"*{only.lower()}*")))
    if not todo:
        raise click.BadParameter(f"nothing that is measured matches {only!r}", param_hint="--only")
    with common.user_errors(OSError):
        out.mkdir(parents=True, exist_ok=True)
    plan = Plan(QUICK_ROUNDS if quick else ROUNDS, peer)
    with common.user_errors(RuntimeError):
        figures = run(todo, plan, lambda task: click.echo(f"{task} ...", err=True))
    about = machine.describe(threads, report.PACKAGES)
    click.echo(report.table(figures, about, notes))
    with common.user_errors(OSError):
        paths = report.save(out, name, figures, about, notes)
    click.echo("\n" + "\n".join(map(str, paths)))
    if len(figures) < len(todo):
        click.echo(f"{len(figures)} of {len(todo)} measured.", err=True)
        raise click.Abort


def _torch_is_there() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        click.echo(INSTALL, err=True)
        return False
    return True


def _set_torch_threads(threads):
    import torch

    torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(run_group(main, sys.argv[1:], "python -m benchmarks"))
