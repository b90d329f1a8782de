"""What the two poolings have in common: the windows of one plane, clipped to the image."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernels.geometry import padding4, pair, pool_output_size
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Grid, Step

OPTIONS = (
    options.SIZE,
    options.integers("--kernel", 3, "Height and width of the window."),
    options.integers("--stride", 2, "Pixels from one window to the next."),
    options.integers("--padding", 0, "Rows and columns of padding, at most half of the kernel."),
    options.flag("--ceil-mode", "Round the output's size up instead of down."),
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """The windows of a pooling on one plane (1, 1, H, W)."""

    plane: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    @classmethod
    def of(cls, size, kernel, stride, padding, ceil_mode, dilation=1) -> "Pool":
        """From the values of the options; ValueError or TypeError naming the one that is wrong."""
        pool = cls(
            pair("size", size),
            pair("kernel", kernel),
            pair("stride", stride),
            padding4("padding", padding),
            pair("dilation", dilation),
            ceil_mode,
        )
        build.check_cells(the_image=math.prod(pool.plane), the_result=math.prod(pool.size))
        reached = [
            pool.plane[axis] + sum(pool.padding[2 * axis :][:2]) + pool.beyond[axis]
            for axis in (0, 1)
        ]
        build.check_cells(the_image_and_what_windows_reach=math.prod(reached))
        return pool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of x."""
        return 1, 1, *self.plane

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """The settings as they are shown."""
        values = (self.kernel_size, self.stride, self.padding, self.dilation)
        names = ("kernel", "stride", "padding", "dilation")
        shown = tuple((n, build.as_text(v)) for n, v in zip(names, values, strict=True))
        mode = "yes" if self.ceil_mode else "no"
        return ("x", str(self.shape)), *shown, ("ceil_mode", mode)

    def size_in(self, ceil_mode: bool) -> tuple[int, int]:
        """(OH, OW) if the size were rounded so."""
        return pool_output_size(
            *self.plane, self.kernel_size, self.stride, self.padding, self.dilation, ceil_mode
        )

    @cached_property
    def size(self) -> tuple[int, int]:
        """(OH, OW)."""
        return self.size_in(self.ceil_mode)

    @property
    def beyond(self) -> tuple[int, int]:
        """Rows and columns beyond the padding that the last windows reach."""
        return tuple(
            max(0, self.starts(axis)[-1] + self.reach(axis) - extent - after)
            for axis, (extent, after) in enumerate(zip(self.plane, self.padding[1::2], strict=True))
        )

    def reach(self, axis: int) -> int:
        """The height (axis 0) or width (1) of a window, dilated."""
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1

    def starts(self, axis: int) -> list[int]:
        """The first row (axis 0) or column (1) of every window, negative in the padding."""
        return [k * self.stride[axis] - self.padding[2 * axis] for k in range(self.size[axis])]

    def x_grid(self, x, title="x", name="x", kind="input", levels=None) -> Grid:
        """A grid of a plane, its padding, and what windows reach beyond that."""
        levels = None if levels is None else levels[0, 0]
        return build.padded_grid(name, title, x[0, 0], self.padding, kind, self.beyond, levels)

    def y_grid(self, y, title, name, kind="output") -> Grid:
        """A grid of a result."""
        return build.grid(name, title, kind, y[0, 0])

    def pixel(self, name="x"):
        """The place of a pixel."""
        return build.in_planes(name, self.shape, (self.padding[0], self.padding[2]))

    def output(self, name="y"):
        """The place of an output."""
        return build.in_planes(name, (1, 1, *self.size))

    def window(self, output: int) -> str:
        """"window (v, u), rows 0 to 2, columns 4 to 6", of the taps, padding included."""
        place = divmod(output, self.size[1])
        parts = []
        for axis, name in enumerate(("rows", "columns")):
            first = self.starts(axis)[place[axis]]
            step = f" by {self.dilation[axis]}" if self.dilation[axis] > 1 else ""
            parts.append(f"{name} {first} to {first + self.reach(axis) - 1}{step}")
        return f"window {place}, {', '.join(parts)}"

    def taps(self, output: int, name="x") -> dict:
        """Marks of all taps of a window, those outside of the image too."""
        v, u = divmod(output, self.size[1])
        marks = []
        for i in range(self.kernel_size[0]):
            for j in range(self.kernel_size[1]):
                row = v * self.stride[0] + i * self.dilation[0]
                marks.append((row, u * self.stride[1] + j * self.dilation[1]))
        return {name: tuple(marks)}

    def sizes_step(self, x) -> Step:
        """How many windows there are, rounded down and up, and where the last of them ends."""
        lines = []
        for axis, name in enumerate("HW"):
            extent, (before, after) = self.plane[axis], self.padding[2 * axis :][:2]
            room = extent + before + after - self.reach(axis)
            floor, ceil = (_size_or_none(self, mode, axis) for mode in (False, True))
            lines.append(
                f"    O{name}: ({extent} + {before} + {after} - {self.reach(axis)}) / "
                f"{self.stride[axis]} + 1 = {build.number(room / self.stride[axis] + 1)}; "
                f"rounded down {floor}, up {ceil}"
            )
        return Step(
            "Sizes and clipping",
            (
                "How many windows fit? Where the stride does not divide, the size is rounded down, "
                "and the last pixels are in no window; or, in ceil_mode, up, and the last window "
                "reaches over the edge.",
                "\n".join(lines),
                self._clipping(),
                "Dots are padding; a cross is beyond even that.",
            ),
            (self.x_grid(x),),
        )

    def _clipping(self) -> str:
        dropped = [
            name
            for axis, name in enumerate(("row", "column"))
            if self.ceil_mode and self._is_dropped(axis)
        ]
        remarks = []
        if dropped:
            remarks.append(
                f"Rounding up would add a last {' and a last '.join(dropped)} of windows that "
                "start beyond the image and its first padding; they would see nothing and are "
                "dropped again."
            )
        if max(self.beyond):
            rows, columns = self.beyond
            remarks.append(
                f"Here the last windows reach {build.counted(rows, 'row')} and "
                f"{build.counted(columns, 'column')} beyond the padded image, and are clipped."
            )
        return " ".join(remarks) or "Here no window reaches beyond the padded image."

    def _is_dropped(self, axis: int) -> bool:
        extent, (before, after) = self.plane[axis], self.padding[2 * axis :][:2]
        room = extent + before + after - self.reach(axis)
        return -(-room // self.stride[axis]) + 1 > self.size[axis]

    @staticmethod
    def example(shape) -> np.ndarray:
        """Digits, among them equal ones."""
        return build.whole_numbers(shape, 0, 9)


def _size_or_none(pool, ceil_mode, axis):
    try:
        return pool.size_in(ceil_mode)[axis]
    except ValueError:
        return "none"
