"""``python -m kernels bench KERNEL``: the implementations side by side, under the roofline."""

import statistics
import textwrap
from importlib import import_module
from pathlib import Path

import click
import numpy as np

from kernels.command_line import UserError, user_errors
from kernels.study.cases import SPECS, as_tuple, formula, make_case
from kernels.study.ceilings import Ceilings, timed_under_ceilings
from kernels.study.implementations import implementations
from kernels.study.options import (
    CASE,
    ROUNDS,
    THREADS,
    flag,
    given_options,
    set_threads,
    with_options,
)
from kernels.study.roofline import attainable, save_chart, text_chart
from kernels.table import format_bytes, format_table

# The largest difference of two implementations in float32, over the largest value: that which is
# granted to Winograd's F(4x4, 3x3), the least exact of them.
_TOLERANCE = 4e-5
_NOTES = (
    "Bytes: every operand read once, every result written once. Intensity: operations a byte. "
    "% of roof: of the operations a second that the measured peak and bandwidth of this machine "
    "(or of its GPU) allow at this intensity, or of the bandwidth where there are none. Operands "
    "that stay in a cache, and algorithms that need fewer operations than the definition, can be "
    "above 100 %. The reference runs on one thread."
)


@click.command(help="The implementations of a kernel side by side, and the machine's roofline.")
@click.argument("kernel", type=click.Choice(tuple(SPECS)), metavar="KERNEL")
@with_options(*CASE, THREADS, ROUNDS)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write the roofline as a PNG."
)
def command(kernel, threads, rounds, plot, **given):
    options = given_options(kernel, given, SPECS[kernel].defaults)
    threads = set_threads(threads)
    with user_errors(ValueError, TypeError, MemoryError):
        case = make_case(kernel, **options)
        rooms = implementations()
        runs, traffic, missing = _prepare(case, rooms)
    if plot and not case.flops:
        raise UserError(f"{kernel} does no float operations: there is no roofline to plot")
    times, ceilings = timed_under_ceilings(runs, rounds)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    roofs = {name: ceilings for name in seconds}
    if "cuda" in seconds:
        roofs["cuda"] = import_module("kernels.study.device").measure_ceilings(rounds)
    title = _title(kernel, SPECS[kernel].defaults | options)
    click.echo(f"{title}, float32, {threads} thread{'s' * (threads > 1)}\n")
    click.echo("\n".join(_table(case, traffic, seconds, roofs, missing)))
    click.echo("\n" + _facts(case, traffic, roofs))
    if case.flops:
        speeds = {name: case.flops / time for name, time in seconds.items()}
        charts = _charts(roofs, speeds)
        for limits, under in charts.values():
            click.echo("\n" + text_chart(limits, case.flops / traffic, under))
        if plot:
            with user_errors(OSError):
                save_chart(plot, title, case.flops / traffic, charts)
            click.echo(f"\n{plot}")


def _charts(roofs, speeds):
    """{machine: (ceilings, {name: operations a second})}: what has a roof in common."""
    machines = {name: "GPU" if name == "cuda" else "CPU" for name in speeds}
    return {
        machine: (roofs[name], {n: s for n, s in speeds.items() if machines[n] == machine})
        for name, machine in machines.items()
    }


def _title(kernel, options):
    """conv2d --shape 8,64,56,56 ...: the command again, with all that was left to default."""
    settings = (
        f"{flag(name)} {','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in options.items()
    )
    return f"{kernel} {' '.join(settings)}"


def _prepare(case, rooms):
    """(calls, bytes, reasons): by name, what can run, after its results were compared."""
    runs, missing, expected, traffic = {}, {}, None, 0
    for name, room in rooms.items():
        if isinstance(room, str) or not hasattr(room.kernels, case.kernel):
            missing[name] = room if isinstance(room, str) else f"no {case.kernel} there yet"
            continue
        arguments = room.arguments(case.arguments)
        results = _results(case, room)
        if expected is None:
            expected, traffic = results, case.traffic(results)
        _compare(name, results, expected)
        runs[name] = _run(case, room, arguments)
    return runs, traffic, missing


def _run(case, room, arguments):
    def run():
        case.call(room.kernels, arguments)
        room.wait()

    return run


def _results(case, room):
    """What a call returns or, where it writes to its arguments, those of a copy after it."""
    if not case.written:
        results = as_tuple(case.call(room.kernels, room.arguments(case.arguments)))
        return tuple(room.to_host(result) for result in results)
    copies = tuple(a.copy() if isinstance(a, np.ndarray) else a for a in case.arguments)
    arguments = room.arguments(copies)
    case.call(room.kernels, arguments)
    return tuple(room.to_host(a) for a in arguments if hasattr(a, "dtype"))


def _compare(name, results, expected):
    """One-line error unless the results agree with those of the reference."""
    for mine, reference in zip(results, expected, strict=True):
        if reference.dtype.kind != "f":
            agree = np.array_equal(mine, reference)
        else:
            largest = np.abs(reference).max(initial=0)
            agree = np.abs(mine - reference).max(initial=0) <= _TOLERANCE * max(1, largest)
        if not agree:
            raise UserError(f"the result of {name} is not that of the reference: nothing is timed")


def _table(case, traffic, seconds, roofs, missing):
    header = ("", "ms", "GFLOP/s", "GB/s", "% of roof", "x reference")
    rows = []
    for name, time in seconds.items():
        roof = 100 * roofs[name].floor(case.flops, traffic) / time
        rows.append((
            name, f"{1e3 * time:,.3f}", f"{case.flops / time / 1e9:,.2f}",
            f"{traffic / time / 1e9:,.2f}", f"{roof:.1f}", f"{seconds['reference'] / time:,.2f}",
        ))  # fmt: skip
    return [*format_table(header, rows), *(f"{name}: {why}" for name, why in missing.items())]


def _facts(case, traffic, roofs: dict[str, Ceilings]) -> str:
    """The counts, their formula, the roofs, and what the columns mean."""
    intensity = case.flops / traffic
    gpu = _roof(case, traffic, roofs["cuda"]) if "cuda" in roofs else ()
    lines = [
        f"Float operations: {case.flops:,}. Bytes: {traffic:,} ({format_bytes(traffic)}). "
        f"Intensity: {intensity:.3g} operations a byte.",
        f"How operations are counted. {formula(case.kernel)}",
        *_roof(case, traffic, roofs["reference"]),
        *(f"GPU. {line}" for line in gpu),
        _NOTES,
    ]  # fmt: skip
    return "\n".join(textwrap.fill(line, 100) for line in lines)


def _roof(case, traffic, ceilings: Ceilings):
    """What a machine can do at all, and with this kernel."""
    yield ceilings.sentence()
    roof = attainable(ceilings, case.flops / traffic) / 1e9
    bound = ceilings.bound(case.flops, traffic)
    yield (
        f"Roof here: {roof:.3g} GFLOP/s, set by {bound}." if case.flops else
        "Roof here: the bandwidth of memory."
    )  # fmt: skip
