"""A profile as a table of text."""

from collections import Counter
from dataclasses import dataclass, field

from minidl.table import format_bytes, format_table

PHASES = ("forward", "backward", "optimiser")
GROUPS = ("op", "module", "shape")
SORTS = ("time", "forward", "backward", "calls", "allocated", "saved", "name")


@dataclass
class Row:
    """Operations that have `name` in common: calls and nanoseconds by phase, and bytes.

    `inner` are the rows of what their backward called, of which this row's figures are the sum
    and more. `allocated` and `saved` are over all calls.
    """

    name: str
    calls: Counter = field(default_factory=Counter)
    nanoseconds: Counter = field(default_factory=Counter)
    allocated: int = 0
    saved: int = 0
    inner: list["Row"] = field(default_factory=list)

    @property
    def time(self) -> int:
        """Nanoseconds over all phases."""
        return self.nanoseconds.total()

    def add(self, event) -> None:
        """Count an event."""
        self.calls[event.phase] += 1
        self.nanoseconds[event.phase] += event.duration
        self.allocated += event.allocated
        self.saved += event.saved

    def _key(self, sort):
        if sort in PHASES:
            return self.nanoseconds[sort]
        return self.calls.total() if sort == "calls" else getattr(self, sort)


def rows(events, by: str, sort: str) -> list[Row]:
    """The rows of a table by `by`, the largest first; names in their order.

    Raises ValueError for an unknown `by` or `sort`.
    """
    if by not in GROUPS:
        raise ValueError(f"by must be one of {', '.join(GROUPS)}, got {by!r}")
    if sort not in SORTS:
        raise ValueError(f"sort must be one of {', '.join(SORTS)}, got {sort!r}")
    operations = [e for e in events if e.phase != "span"]
    found = {}
    inner = []
    waiting = []  # what the backward that ends next has called
    for event in operations:
        if event.parent:
            waiting.append(event)
            continue
        key = _group(event, by)
        row = found.setdefault(key, Row(key))
        row.add(event)
        # A backward that raised has no event; what it had called stands before this one's start.
        inner += [(row, child) for child in waiting if child.start >= event.start]
        waiting.clear()
    if by != "module":
        below = {}
        for row, child in inner:
            key = row.name, _group(child, by)
            if key not in below:
                below[key] = Row(key[1])
                row.inner.append(below[key])
            below[key].add(child)
    for row in found.values():
        row.inner = _sorted(row.inner, sort)
    return _sorted(found.values(), sort)


def _group(event, by):
    if by == "module":
        return event.module or "-"
    if by == "op" or not event.shapes:
        return event.name
    return f"{event.name} {', '.join(shape_text(shape) for shape in event.shapes)}"


def shape_text(shape) -> str:
    """"64x1x28x28"; "()" for a single number."""
    return "x".join(map(str, shape)) or "()"


def _sorted(found, sort):
    return sorted(found, key=lambda row: row._key(sort), reverse=sort != "name")


def text(profile, by: str, sort: str, limit: int | None) -> str:
    """The table and the totals of a profile; see `profile.table`."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    found = rows(profile.events, by, sort)
    total = sum(row.time for row in found)
    phases = [p for p in PHASES if any(row.calls[p] for row in found)]
    header = [by]
    for phase in phases:
        header += [phase, "calls"]
    header += ["total", "share", "allocated", "saved"]
    lines = []
    for row in found[:limit]:
        lines.append(_line(row.name, row, phases, total))
        lines += [_line(f"  {inner.name}", inner, phases, total) for inner in row.inner]
    table = format_table(header, lines)
    if limit is not None and limit < len(found):
        table.append(f"... and {len(found) - limit} more")
    whole, saved = seconds_text(profile.seconds * 1e9), format_bytes(profile.peak_saved_bytes)
    totals = [
        f"time    {seconds_text(total)} in operations, of {whole}",
        f"memory  {format_bytes(profile.peak_bytes)} at most in arrays that operations made; "
        f"{saved} at most kept for backward",
    ]
    return "\n".join([*table, table[1], *totals])


def _line(name, row, phases, total):
    cells = [name]
    for phase in phases:
        called = row.calls[phase]
        cells += [seconds_text(row.nanoseconds[phase]), called] if called else ["", ""]
    share = f"{100 * row.time / total:.1f} %" if total else ""
    return [*cells, seconds_text(row.time), share, format_bytes(row.allocated),
            format_bytes(row.saved)]  # fmt: skip


def seconds_text(nanoseconds: float) -> str:
    """A time in milliseconds, the unit of a whole table."""
    return f"{nanoseconds / 1e6:,.3f} ms"
