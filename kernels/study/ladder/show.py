"""A ladder as text: for the terminal, and in Markdown for the documentation."""

import math
import textwrap

from kernels.study.ceilings import Ceilings
from kernels.study.ladder.rungs import Ladder, Step
from kernels.table import format_table

_WIDTH = 100
_MEANING = (
    "Times are medians of turns that the rungs take one after the other in one process. "
    "A rung marked + is another way and no step: the next goes on from the one before it. "
    "x before: how many times faster than the step before. Error: the largest, over the largest "
    "result, against the reference. Bar: a mark for each doubling of the first rung's speed."
)
_PARTS = "* Timed on a part of the work ({parts}) and scaled up to all of it."


def rungs_text(ladder: Ladder) -> str:
    """What each rung does, and why it is faster than the one before."""
    blocks = []
    for name, rung in zip(_numbers(ladder.rungs), ladder.rungs, strict=True):
        why = textwrap.fill(" ".join(rung.why.split()), _WIDTH - 4)
        blocks.append(f"{name} {rung.name}\n{textwrap.indent(why, '    ')}")
    return "\n\n".join(blocks)


def _numbers(rungs):
    """1 2 3 ... for steps, + for what stands aside."""
    number = 0
    for rung in rungs:
        number += not rung.aside
        yield " +" if rung.aside else f"{number:2d}"


def columns(ladder: Ladder, steps: list[Step], ceilings: Ceilings):
    """(header, rows) of the table."""
    arithmetic = ceilings.bound(ladder.flops, ladder.traffic) == "arithmetic"
    amount, unit = (ladder.flops, "GFLOP/s") if arithmetic else (ladder.traffic, "GB/s")
    peak = ceilings.flops if arithmetic else ceilings.bandwidth
    header = (
        "", "rung", "ms", unit, "% of peak" if arithmetic else "% of bandwidth", "x before",
        "x first", "error", "bar",
    )  # fmt: skip
    rows, first, before = [], steps[0].seconds, None
    for number, step in zip(_numbers([s.rung for s in steps]), steps, strict=True):
        speed, factor = amount / step.seconds, first / step.seconds
        scaled = "" if step.share == 1 else "*"
        rows.append((
            number.strip(), step.rung.name, f"{_three_digits(1e3 * step.seconds)}{scaled}",
            _three_digits(speed / 1e9), _three_digits(100 * speed / peak),
            "" if before is None else _three_digits(before / step.seconds),
            _three_digits(factor), f"{step.error:.0e}" if step.error else "0",
            "#" * max(1, round(1 + math.log2(max(1, factor)))),
        ))  # fmt: skip
        if not step.rung.aside:
            before = step.seconds
    return header, rows


def _three_digits(value):
    """A positive number with three digits that count, without an exponent."""
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def notes(ladder: Ladder, steps: list[Step]) -> list[str]:
    """What the columns mean, what was timed in part, and what the kernel would choose."""
    parts = [f"{s.rung.name}: 1/{_three_digits(1 / s.share)}" for s in steps if s.share < 1]
    scaled = [_PARTS.format(parts="; ".join(parts))] if parts else []
    return [_MEANING, *scaled, ladder.note]


def table(ladder: Ladder, steps: list[Step], ceilings: Ceilings) -> str:
    """The table for the terminal, with its notes."""
    lines = _flush_bars(*columns(ladder, steps, ceilings))
    text = [textwrap.fill(note, _WIDTH) for note in notes(ladder, steps)]
    return "\n".join([*lines, "", ceilings.sentence(), *text])


def _flush_bars(header, rows):
    """`format_table`, but for the bars, which begin where their column begins."""
    lines = format_table(header[:-1], [row[:-1] for row in rows], left=2)
    bars = [header[-1], "", *(row[-1] for row in rows)]
    width = max(map(len, lines))
    return [f"{line:{width}}  {bar}".rstrip() for line, bar in zip(lines, bars, strict=True)]


def markdown(ladder: Ladder, steps: list[Step], ceilings: Ceilings, machine: str) -> str:
    """The same for a page: the machine, the table, the notes."""
    header, rows = columns(ladder, steps, ceilings)
    lines = [
        f"`{ladder.title}`", "", f"{machine}; float32.", "", ceilings.sentence(), "",
        _markdown_row(header), "|---|---" + "|--:" * (len(header) - 3) + "|---|",
        *map(_markdown_row, rows), "",
    ]  # fmt: skip
    listed = [
        textwrap.fill(note.replace("*", "\\*"), _WIDTH, initial_indent="- ", subsequent_indent="  ")
        for note in notes(ladder, steps)
    ]
    return "\n".join([*lines, *listed])


def _markdown_row(cells):
    return "| " + " | ".join(map(str, cells)) + " |"
