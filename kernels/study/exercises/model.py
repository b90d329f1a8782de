"""What an exercise is: functions of the reference whose bodies the reader writes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Case = dict[str, Any]  # the arguments of a call, by keyword
Slope = tuple[str, Callable[[np.ndarray], float], np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Part:
    """One function: the cases it is tried on, by keyword, and the names of its results.

    An array in `writes` is one that the function shall write to; it counts as a result. `hints`
    are put into the empty body.
    """

    cases: Callable[[np.random.Generator], Iterator[Case]]
    results: tuple[str, ...]
    hints: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mistake:
    """A typical wrong version: the reference's source with some strings replaced, and its hint."""

    hint: str
    edits: dict[str, str]


@dataclass(frozen=True)
class Exercise:
    """Functions of the module `module` of kernels.reference, to be written anew.

    `slopes(code, draw)` yields, for the functions of the module `code`, what is derived by what, a
    scalar function of an array, that array and the gradient that `code` claims, for comparison with
    central differences. `given` names what the reader may use of the reference.
    """

    name: str
    title: str
    difficulty: int  # 1, a line or two; 2, a loop and an idea; 3, an evening
    module: str
    parts: dict[str, Part]
    mistakes: tuple[Mistake, ...]
    slopes: Callable[[Any, np.random.Generator], Iterator[Slope]] | None = None
    given: tuple[str, ...] = ()


def arrays(draw, dtype, *shapes):
    """Standard normal arrays of these shapes."""
    return [draw.standard_normal(shape).astype(dtype) for shape in shapes]
