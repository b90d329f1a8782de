"""What an explanation is made of, before anything draws it.

An **explanation** is a list of **steps**; a step has a text, **grids** of cells, **links** between
the cells of two grids (what is read to compute what), and **frames**: one after another they mark
cells and say in a line what happens there, and may change what stands in a cell. The renderers for
the terminal and for HTML show the same model, so that neither knows of any kernel.
"""

from dataclasses import dataclass, field

Position = tuple[int, int]  # row and column of a cell, from 0
# What a cell is, beside what stands in it: nothing special, outside of the image (read as zero),
# beyond even that (never read), a zero that is not stored, or one of four groups.
TONES = ("", "padding", "outside", "blank", "group0", "group1", "group2", "group3")
# What a grid holds, which decides its colour.
KINDS = ("input", "matrix", "weight", "output", "gradient", "table")


@dataclass(frozen=True)
class Cell:
    """`text` stands in the cell; `level`, from 0 to 1, is how strongly it is coloured."""

    text: str
    tone: str = ""
    level: float | None = None


@dataclass(frozen=True)
class Grid:
    """Rows of cells with labels. `name` is unique in its step."""

    name: str
    title: str
    kind: str
    cells: tuple[tuple[Cell, ...], ...]
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]

    @property
    def shape(self) -> Position:
        """How many rows and columns there are."""
        return len(self.row_labels), len(self.column_labels)

    def texts(self) -> list[list[str]]:
        """What stands in the cells."""
        return [[cell.text for cell in row] for row in self.cells]


@dataclass(frozen=True)
class Link:
    """Cells of grid `target` that belong to cells of grid `source`: the ones are computed from,
    or added to, the others. `pairs` holds (source position, target position)."""

    source: str
    target: str
    pairs: tuple[tuple[Position, Position], ...]


@dataclass(frozen=True)
class Frame:
    """One moment: marked cells, a few of them strongly, by grid; and cells that change their text
    here and keep it in the frames that follow."""

    caption: str
    marks: dict[str, tuple[Position, ...]] = field(default_factory=dict)
    strong: dict[str, tuple[Position, ...]] = field(default_factory=dict)
    texts: dict[str, dict[Position, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """`text` is a list of paragraphs; a paragraph whose lines start with four spaces is a formula.

    `shown` is the frame that a still picture shows.
    """

    title: str
    text: tuple[str, ...]
    grids: tuple[Grid, ...] = ()
    links: tuple[Link, ...] = ()
    frames: tuple[Frame, ...] = ()
    shown: int = 0


@dataclass(frozen=True)
class Explanation:
    """`settings` are the parameters it was made for, as (name, value) to be shown."""

    name: str
    title: str
    settings: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]


def texts_at(step: Step, frame: int) -> dict[str, list[list[str]]]:
    """What stands in the cells of every grid of a step at one of its frames, the last being -1."""
    texts = {grid.name: grid.texts() for grid in step.grids}
    last = range(len(step.frames))[frame] if step.frames else -1
    for passed in step.frames[: last + 1]:
        for name, changes in passed.texts.items():
            for (row, column), text in changes.items():
                texts[name][row][column] = text
    return texts
