"""An explanation in the terminal: grids as text, marked cells in brackets and, where there are
colours, coloured too."""

import textwrap

from rich.console import Console
from rich.text import Text

from kernels.study.explanations.model import Explanation, Grid, Step, texts_at

# Frames of a step that are listed, and rows of a grid that are drawn, before the rest is left out.
MAX_FRAMES, MAX_ROWS = 25, 40
MIN_WIDTH = 40
_GAP = "   "
# What stands for the signs beyond ASCII where the output cannot take them.
_ASCII = str.maketrans("·×…", ".x~")
_STYLES = {
    "mark": "bold black on bright_cyan", "strong": "bold black on bright_yellow",
    "padding": "bright_black", "outside": "bright_black", "blank": "bright_black",
    "group0": "blue", "group1": "magenta", "group2": "green", "group3": "red",
}  # fmt: skip


def show(explanation: Explanation, console: Console) -> None:
    """Print the whole explanation, no line wider than the console (but at least `MIN_WIDTH`).

    Wider are only grids of which not even three columns fit.
    """
    width = max(console.width, MIN_WIDTH)
    ascii_only = not console.encoding.startswith("utf")
    for line in lines(explanation, width):
        if ascii_only:
            line.plain = line.plain.translate(_ASCII)
        console.print(line, no_wrap=True, overflow="ignore", crop=False, highlight=False)


def lines(explanation: Explanation, width: int):
    """The lines of the explanation as rich Text, each at most `width` wide, as `show` says."""
    yield from _wrapped(explanation.title, width, "bold")
    settings = ", ".join(f"{name} {value}" for name, value in explanation.settings)
    yield from _wrapped(settings, width, "bright_black")
    for number, step in enumerate(explanation.steps, 1):
        yield Text()
        yield from _wrapped(f"{number}. {step.title}", width, "bold underline")
        yield from _step(step, width)


def _step(step: Step, width: int):
    for paragraph in step.text:
        yield Text()
        yield from _paragraph(paragraph, width)
    if step.grids:
        yield Text()
        yield from _figure(step, width)
    if step.frames:
        yield Text()
        yield from _captions(step, width)


def _paragraph(paragraph: str, width: int):
    for line in paragraph.split("\n"):
        if line.startswith("    "):
            yield from _wrapped(line[4:], width, "cyan", indent=4)
        else:
            yield from _wrapped(line, width)


def _wrapped(text: str, width: int, style: str = "", indent: int = 0, hanging: int = 0):
    """Lines of the text, the first indented by `indent`, the others by `hanging` more."""
    first, others = " " * indent, " " * (indent + hanging)
    for line in textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    ):
        yield Text(line, style)


def _captions(step: Step, width: int):
    """What happens at each frame; the line of the one that is drawn starts with ">"."""
    shown = range(len(step.frames))[step.shown]
    for number in _fitting(len(step.frames), MAX_FRAMES):
        if number is None:
            left = len(step.frames) - MAX_FRAMES + 1
            yield Text(f"  ... {left} more ...", "bright_black")
            continue
        here, style = (">", "bold") if number == shown else (" ", "")
        caption = f"{here} {step.frames[number].caption}"
        yield from _wrapped(caption, width, style, hanging=4)


def _figure(step: Step, width: int):
    """The grids of the step, side by side as far as there is room."""
    texts = texts_at(step, step.shown)
    row: list[list[Text]] = []
    used = 0
    for grid in step.grids:
        block = _grid(grid, texts[grid.name], _marks(step, grid.name), width)
        wide = max(line.cell_len for line in block)
        if row and used + len(_GAP) + wide > width:
            yield from _side_by_side(row)
            yield Text()
            row, used = [], 0
        used += wide + (len(_GAP) if row else 0)
        row.append(block)
    yield from _side_by_side(row)


def _marks(step: Step, name: str) -> dict:
    """Position -> "mark" or "strong", for one grid at the frame that is shown."""
    if not step.frames:
        return {}
    frame = step.frames[step.shown]
    marks = dict.fromkeys(frame.marks.get(name, ()), "mark")
    return marks | dict.fromkeys(frame.strong.get(name, ()), "strong")


def _side_by_side(blocks: list[list[Text]]):
    widths = [max(line.cell_len for line in block) for block in blocks]
    for number in range(max(map(len, blocks))):
        line = Text()
        for block, wide in zip(blocks, widths, strict=True):
            part = block[number].copy() if number < len(block) else Text()
            part.pad_right(wide - part.cell_len)
            line = line + part + Text(_GAP)
        line.rstrip()
        yield line


def _grid(grid: Grid, texts: list[list[str]], marks: dict, width: int) -> list[Text]:
    """The title, the column labels and the rows; columns that do not fit are left out."""
    height, count = grid.shape
    edge = max(map(len, grid.row_labels), default=0)
    cell = max((len(text) for row in (grid.column_labels, *texts) for text in row), default=1)
    columns = _fitting(count, (width - edge - 1) // (cell + 2))
    rows = _fitting(height, MAX_ROWS)
    title = Text(grid.title, "italic")
    title.truncate(width, overflow="ellipsis")
    header = Text(" " * (edge + 1))
    for c in columns:
        label = "…" if c is None else grid.column_labels[c]
        header.append(f" {label:>{cell}} ", "bright_black")
    block = [title, header]
    for r in rows:
        label = "…" if r is None else grid.row_labels[r]
        line = Text(f"{label:>{edge}} ", "bright_black")
        for c in columns:
            if r is None or c is None:
                line.append(f" {'…':>{cell}} ", "bright_black")
            else:
                mark = marks.get((r, c), "")
                before, after = {"mark": "[]", "strong": "<>"}.get(mark, "  ")
                style = _STYLES.get(mark or grid.cells[r][c].tone, "")
                line.append(f"{before}{texts[r][c]:>{cell}}{after}", style)
        block.append(line)
    return block


def _fitting(count: int, room: int) -> list[int | None]:
    """The indices of `count` lines that fit into the room, None for those left out between."""
    room = max(room, 3)
    if count <= room:
        return list(range(count))
    return [*range(room - 2), None, count - 1]
