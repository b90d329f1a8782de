"""What commands need to run as one of several ranks: options, threads, and a common end."""

import os
import sys
import time
import traceback
from contextlib import contextmanager

import click

from kernels import dispatch
from kernels.command_line import INTERRUPTED, UserError, user_errors
from minidl import distributed, random

_PATIENCE = 2.0  # seconds in which ranks that make the same mistake make it
_DELIVERY = 1.0  # seconds for mpiexec to read a message, before it drops what it has not read
_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # set by MPICH and its relatives, by Open MPI

OPTIONS = (
    click.Option(
        ["--distributed"], is_flag=True,
        help="Share each batch among the ranks that mpiexec started: mpiexec -n 4 python -m ... "
        "train --distributed. --batch-size counts the images of all ranks together, --threads and "
        "--workers those of a rank.  [threads by default: this machine's cores, divided]",
    ),
    click.Option(
        ["--sync-batch-norm"], is_flag=True,
        help="With --distributed: batch-norm statistics of the whole batch, not of a rank's part.",
    ),
    click.Option(
        ["--bucket-mb"], type=click.FloatRange(min=0, min_open=True), show_default=True,
        default=distributed.DEFAULT_BUCKET_BYTES / 2**20,
        help="With --distributed: MiB of gradients that are sent together, while the others are "
        "still computed.",
    ),
    click.Option(
        ["--timeout"], type=click.FloatRange(min=0, min_open=True), show_default=True,
        default=distributed.DEFAULT_TIMEOUT,
        help="With --distributed: seconds to wait for another rank before giving up.",
    ),
)  # fmt: skip


@contextmanager
def joined(asked: bool, timeout: float):
    """The World of a command's ranks, which end together; None without --distributed.

    One-line errors without mpi4py, and where mpiexec started several ranks that know nothing of
    each other.
    """
    if not asked:
        context = click.get_current_context()
        for name in ("sync_batch_norm", "bucket_mb", "timeout"):
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise UserError(f"--{name.replace('_', '-')} is for --distributed only")
        if (ranks := _launched_ranks()) > 1:
            raise UserError(f"mpiexec started {ranks} ranks: add --distributed")
        yield None
        return
    world = join(timeout)
    with ended_together(world):
        yield world


def join(timeout: float):
    """`minidl.distributed.join`, with one-line errors, and dropout masks of this rank's own."""
    with user_errors(RuntimeError):
        world = distributed.join(timeout)
    random.set_stream(world.rank)
    return world


def placed(world, backend: str, threads: int | None) -> int | None:
    """Give a rank its GPU; returns its threads: those asked for, or its part of the cores."""
    if world is None:
        return threads
    if backend == "cuda":
        from minidl.distributed.nccl import select_gpu

        with user_errors(RuntimeError):
            select_gpu(world)
    return threads or min(world.threads(), dispatch.get_num_threads())


def team_of(world, bucket_mb: float):
    """The team that shares batches; None for the one process that there is without a world."""
    if world is None:
        return None
    return distributed.DataParallel(world, max(1, round(bucket_mb * 2**20)))


@contextmanager
def ended_together(world):
    """What is raised inside ends every rank of `world`, not this one alone.

    A mistake that all ranks make alike is raised on rank 0 alone, for it needs to be told once. A
    rank that fails otherwise names itself on stderr, with a traceback unless the mistake is the
    user's, and aborts the job with status 1: the others would wait for it in vain.
    """
    try:
        yield
    except BaseException as error:
        if world.size == 1:
            raise
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        message = " ".join(text.split()) or type(error).__name__
        if _all_failed_alike(world, message):
            if world.is_chief:
                raise
            raise click.exceptions.Exit(_status(error)) from error
        plain = click.ClickException, distributed.CollectiveTimeout, KeyboardInterrupt
        if not isinstance(error, plain):
            traceback.print_exc()
        print(f"Error on {world.name}: {message}", file=sys.stderr, flush=True)
        time.sleep(_DELIVERY)
        world.abort(1)


def _all_failed_alike(world, message) -> bool:
    everyones = world.failures(message, _PATIENCE)
    return everyones is not None and len(set(everyones)) == 1


def _status(error) -> int:
    """The status with which rank 0 exits for an error."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return 2 if isinstance(error, click.ClickException) else 1


def _launched_ranks() -> int:
    """How many ranks an MPI launcher started along with this process; 1 without a launcher."""
    for name in _LAUNCHERS:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1
