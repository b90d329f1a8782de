"""`python -m kernels list`: every kernel, where it is implemented, and what papers call it."""

import dataclasses
import json
import textwrap

import click

from kernels.study.explanations import EXPLANATIONS, of_kernel
from kernels.study.inventory import ROOMS, Kernel, kernels
from kernels.study.papers import PAPERS

# A longer name gets a line of its own, so that the rest fits into 80 columns.
_NAME = 24


@click.command("list", help="List the kernels: where each is implemented, what papers call it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(as_json):
    found = kernels()
    if as_json:
        click.echo(json.dumps([_entry(kernel) for kernel in found], indent=2))
    else:
        click.echo("\n".join(_lines(found)))


def _entry(kernel: Kernel) -> dict:
    paper = PAPERS.get(kernel.name)
    return {
        "name": kernel.name,
        "places": {
            room: None if place is None else dataclasses.asdict(place)
            for room, place in kernel.places.items()
        },
        "paper": None if paper is None else paper._asdict(),
        "explanation": of_kernel(kernel.name),
    }


def _lines(found: list[Kernel]):
    names = [f"{kernel.name}{' *' if of_kernel(kernel.name) else ''}" for kernel in found]
    wide = max(len(name) for name in names if len(name) <= _NAME)
    places = [[_short(kernel, room) for room in ROOMS] for kernel in found]
    widths = [max(len(row[i]) for row in (ROOMS, *places)) for i in range(len(ROOMS))]
    cells = [f"{room:<{width}}" for room, width in zip(ROOMS, widths, strict=True)]
    yield f"{'':<{wide}}  {'  '.join(cells)}".rstrip()
    for kernel, name, row in zip(found, names, places, strict=True):
        cells = [f"{text:<{width}}" for text, width in zip(row, widths, strict=True)]
        if len(name) > wide:
            yield name
            name = ""
        yield f"{name:<{wide}}  {'  '.join(cells)}".rstrip()
        if kernel.name in PAPERS:
            paper = PAPERS[kernel.name]
            yield "    " + ", ".join(filter(None, (paper.term, paper.source, paper.place)))
    yield ""
    yield "Files lie in kernels/reference, kernels/cpu and kernels/cuda."
    yield "* python -m kernels explain NAME shows it step by step. What it explains:"
    yield from textwrap.wrap(", ".join(EXPLANATIONS), 78, initial_indent="  ",
                             subsequent_indent="  ")


def _short(kernel: Kernel, room: str) -> str:
    """The file and the line, without the room's directory; "-" where there is none."""
    place = kernel.places[room]
    return "-" if place is None else str(place).rsplit("/", 1)[1]
