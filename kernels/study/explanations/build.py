"""Tools that the explanations share: grids from arrays, and who reads what, found by asking."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from kernels.study.explanations.model import Cell, Grid, Link, Position

# More cells a grid, or links between them, would be neither drawn in good time nor looked at.
MAX_CELLS, MAX_LINKS = 2500, 60_000


class TooLarge(ValueError):
    """What was asked for has too many cells to be drawn."""


def check_cells(**counts: int) -> None:
    """TooLarge where one of the grids, named by the keywords, has more cells than can be drawn."""
    for name, count in counts.items():
        if count > MAX_CELLS:
            raise TooLarge(
                f"{name.replace('_', ' ')} would have {count:,} cells, and at most {MAX_CELLS:,} "
                "are drawn: choose smaller numbers"
            )


def check_finite(**values: float) -> None:
    """ValueError unless all values are finite numbers."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")


def check_links(count: int) -> None:
    """TooLarge where there are more links between cells than can be drawn."""
    if count > MAX_LINKS:
        raise TooLarge(
            f"{count:,} links between cells are too many, at most {MAX_LINKS:,} are drawn: choose "
            "smaller numbers"
        )


def number(value) -> str:
    """A number as short as it can be read: integers without a point, others to four digits."""
    value = float(value)
    if not np.isfinite(value):
        return str(value)
    if abs(value - round(value)) < 1e-9 and abs(value) < 1e9:
        return str(round(value))
    return f"{value:.4g}"


def signed(value) -> str:
    """A number that can stand behind an operator: negative ones in brackets."""
    text = number(value)
    return f"({text})" if text.startswith("-") else text


def counted(count: int, noun: str) -> str:
    """ "1 window", "2 windows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def fraction(value) -> str:
    """A small rational number as a fraction, such as -1/6."""
    return str(Fraction(float(value)).limit_denominator(1000))


def grid(
    name: str,
    title: str,
    kind: str,
    values,
    rows=None,
    columns=None,
    show: Callable = number,
    tones=None,
    levels=None,
) -> Grid:
    """A grid of a matrix of values, shown by `show`; row and column numbers are the labels.

    `tones` (strings) and `levels` (0 to 1) are matrices of the same shape, or None.
    """
    values = np.asarray(values)
    height, width = values.shape
    cells = tuple(
        tuple(
            Cell(
                show(values[r, c]),
                "" if tones is None else str(tones[r][c]),
                None if levels is None else float(levels[r][c]),
            )
            for c in range(width)
        )
        for r in range(height)
    )
    return Grid(name, title, kind, cells, _labels(rows, height), _labels(columns, width))


def _labels(labels, count) -> tuple[str, ...]:
    return tuple(map(str, range(count) if labels is None else labels))


def padded_grid(name, title, plane, padding, kind="input", beyond=(0, 0), levels=None) -> Grid:
    """A grid of a plane (H, W) and of the padding around it, numbered as the plane is.

    `beyond` rows and columns follow the padding, which only clipped windows reach.
    """
    top, bottom, left, right = padding
    h, w = plane.shape
    rows, columns = range(-top, h + bottom + beyond[0]), range(-left, w + right + beyond[1])

    def cell(r, c):
        if 0 <= r < h and 0 <= c < w:
            return Cell(number(plane[r, c]), "", None if levels is None else float(levels[r, c]))
        inside = r < h + bottom and c < w + right
        return Cell("·" if inside else "×", "padding" if inside else "outside")

    cells = tuple(tuple(cell(r, c) for c in columns) for r in rows)
    return Grid(name, title, kind, cells, tuple(map(str, rows)), tuple(map(str, columns)))


def heat(values) -> np.ndarray:
    """The values as levels: 0 stays 0, the largest becomes 1."""
    values = np.asarray(values, float)
    return values / max(1.0, values.max(initial=0.0))


def reads(run: Callable, x: np.ndarray) -> np.ndarray:
    """Which results of run(x) depend on which elements of x: a boolean matrix (y.size, x.size).

    Found by asking the kernel itself: whatever becomes NaN when one element is NaN, has read it.
    """
    flat = x.reshape(-1)
    result = None
    for element in range(flat.size):
        marked = flat.copy()
        marked[element] = np.nan
        found = np.isnan(run(marked.reshape(x.shape))).reshape(-1)
        if result is None:
            result = np.zeros((found.size, flat.size), bool)
        result[:, element] = found
    return result


def coefficients(run: Callable, shape) -> np.ndarray:
    """The matrix (y.size, x.size) of a linear run(x), x of this shape, column by column."""
    units = np.eye(math.prod(shape)).reshape(-1, *shape)
    return np.stack([run(unit).reshape(-1) for unit in units], axis=1)


Place = Callable[[int], tuple[str, Position]]


def link(dependence: np.ndarray, source: Place, target: Place) -> tuple[Link, ...]:
    """Links from a matrix as `reads` returns it; the places tell grid and cell of an element.

    TooLarge for too many of them.
    """
    check_links(int(dependence.sum()))
    pairs: dict[tuple[str, str], list] = {}
    for y, x in zip(*np.nonzero(dependence), strict=True):
        (source_grid, here), (target_grid, there) = source(int(y)), target(int(x))
        pairs.setdefault((source_grid, target_grid), []).append((here, there))
    return tuple(Link(*names, tuple(found)) for names, found in pairs.items())


def places(elements, place: Place) -> dict[str, tuple[Position, ...]]:
    """Marks, by grid, of the elements with these flat indices."""
    marks: dict[str, list[Position]] = {}
    for element in elements:
        name, position = place(int(element))
        marks.setdefault(name, []).append(position)
    return {name: tuple(found) for name, found in marks.items()}


def in_matrix(name: str, shape: tuple[int, int]) -> Place:
    """The place of an element of a matrix that is drawn as one grid."""
    return lambda element: (name, divmod(element, shape[1]))


def plane_name(name: str, shape, n: int, c: int) -> str:
    """The name of the grid of one plane of an array (N, C, H, W): as short as it is unique."""
    if shape[0] > 1:
        return f"{name}[{n}, {c}]"
    return f"{name}[{c}]" if shape[1] > 1 else name


def in_planes(name: str, shape, offset: Position = (0, 0)) -> Place:
    """The place of an element of an array (N, C, H, W) drawn as one grid a plane.

    `offset` is where the plane begins in its grid: the padding above and to the left.
    """

    def place(element):
        n, c, r, column = (int(i) for i in np.unravel_index(element, shape))
        return plane_name(name, shape, n, c), (r + offset[0], column + offset[1])

    return place


def whole_numbers(shape, low: int, high: int, seed: int = 0) -> np.ndarray:
    """Small integers as float64, the same at every call: numbers that one can follow by head."""
    return np.random.default_rng(seed).integers(low, high, shape, endpoint=True).astype(float)


def weights(shape, seed: int = 1) -> np.ndarray:
    """Small integers other than zero, so that a zero in a matrix is one that is not stored."""
    values = whole_numbers(shape, -2, 2, seed)
    return np.where(values == 0, 3.0, values)


def as_text(value) -> str:
    """A setting as it is shown: equal numbers once, others separated by commas."""
    if isinstance(value, tuple):
        return str(value[0]) if len(set(value)) == 1 else ", ".join(map(str, value))
    return number(value) if isinstance(value, float) else str(value)
