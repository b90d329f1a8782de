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

    _measure("kernels", lambda wanted, machine: kernels.tasks(wanted), kernels.NOTES, **options)


@_command
def layers(**options):
    """Every convolution and pooling, and the largest other layers, of the networks."""
    from benchmarks import layers

    _measure("layers", lambda wanted, machine: layers.tasks(wanted), layers.NOTES, **options)


@_command
@click.option(
    "--backend", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
    help="The processor, or an NVIDIA GPU.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["float32", "tf32"]), default="float32", show_default=True,
    help="With cuda, of the products of minidl and of PyTorch.",
)  # fmt: skip
def networks(backend, precision, **options):
    """A training step and inference of every network, with its peak memory."""
    from benchmarks import networks

    if precision != "float32" and backend != "cuda":
        raise click.UsageError(f"--precision {precision} needs --backend cuda")
    notes = networks.NOTES[backend]
    _measure("networks", networks.tasks, notes, **options, backend=backend, precision=precision)


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


def _measure(
    name, tasks, notes, against, threads, quick, only, out, backend="cpu", precision="float32"
):  # fmt: skip
    from benchmarks import cuda, report
    from benchmarks.tasks import Machine, Plan, run

    # PyTorch first: how long OpenMP's threads spin, which kernels.cpu sets, is minidl's own.
    peer = against == "torch" and _torch_is_there()
    device = common.setup("auto" if backend == "cpu" else backend, 0, threads)
    machine = Machine(dispatch.get_num_threads(), device, precision)
    peer = peer and _set_up_torch(machine)
    dispatch.precision(precision)
    todo = list(tasks(lambda task: fnmatchcase(task.lower(), f"*{only.lower()}*"), machine))
    if not todo:
        raise click.BadParameter(f"nothing that is measured matches {only!r}", param_hint="--only")
    with common.user_errors(OSError):
        out.mkdir(parents=True, exist_ok=True)
    plan = Plan(QUICK_ROUNDS if quick else ROUNDS, peer, machine)
    with common.user_errors(RuntimeError, MemoryError):
        gpu = cuda.about() if device == "cuda" else None
        figures, error = run(todo, plan, lambda task: click.echo(f"{task} ...", err=True))
    about = report.taken_on(machine, gpu)
    click.echo(report.table(figures, about, notes))
    with common.user_errors(OSError):
        paths = report.save(out, name, figures, about, notes)
    click.echo("\n" + "\n".join(map(str, paths)))
    if error is not None:
        click.echo(f"{len(figures)} of {len(todo)} measured.", err=True)
        if isinstance(error, KeyboardInterrupt):
            raise click.Abort
        with common.user_errors(RuntimeError, MemoryError):
            raise error


def _torch_is_there() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        click.echo(INSTALL, err=True)
        return False
    return True


def _set_up_torch(machine) -> bool:
    """Give PyTorch what minidl has; False, after a hint, where it lacks the device."""
    import torch

    from benchmarks import cuda

    torch.set_num_threads(machine.threads)
    if machine.device == "cuda":
        if not torch.cuda.is_available():
            click.echo(cuda.NO_PEER, err=True)
            return False
        cuda.set_torch_precision(machine.precision)
    return True


if __name__ == "__main__":
    sys.exit(run_group(main, sys.argv[1:], "python -m benchmarks"))
