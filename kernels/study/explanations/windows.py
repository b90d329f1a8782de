"""The geometry of a convolution's windows, and grids of the matrices that im2col makes of them."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernels.geometry import conv_output_size, padding4, pair
from kernels.reference import im2col
from kernels.study.explanations import build
from kernels.study.explanations.model import Cell, Frame, Grid

UNPADDED = (0, 0, 0, 0)


@dataclass(frozen=True)
class Windows:
    """The images (N, C, H, W) and the windows that a kernel takes of them."""

    shape: tuple[int, int, int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, size, kernel, stride, padding, dilation, channels=1, batch=1) -> "Windows":
        """From the values of the options; ValueError or TypeError naming the one that is wrong."""
        windows = cls(
            (batch, channels, *pair("size", size)),
            pair("kernel", kernel),
            pair("stride", stride),
            padding4("padding", padding),
            pair("dilation", dilation),
        )
        build.check_cells(
            the_padded_image=math.prod(windows.padded_shape),
            the_column_matrix=math.prod(windows.columns_shape),
        )
        return windows

    @property
    def settings(self) -> tuple:
        """(kernel_size, stride, padding, dilation), in the order that the kernels take them."""
        return self.kernel_size, self.stride, self.padding, self.dilation

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """The settings as they are shown."""
        values = (self.shape, self.kernel_size, self.stride, self.padding, self.dilation)
        names = ("x", "kernel", "stride", "padding", "dilation")
        return tuple(
            (name, str(value) if name == "x" else build.as_text(value))
            for name, value in zip(names, values, strict=True)
        )

    @cached_property
    def output_size(self) -> tuple[int, int]:
        """(OH, OW). ValueError where no window fits."""
        return conv_output_size(*self.shape[2:], *self.settings)

    @cached_property
    def columns_shape(self) -> tuple[int, int]:
        """(C kh kw, N OH OW), the shape of the column matrix."""
        n, c, *_ = self.shape
        return c * math.prod(self.kernel_size), n * math.prod(self.output_size)

    @cached_property
    def padded_shape(self) -> tuple[int, int, int, int]:
        """The shape of the images with their padding."""
        n, c, h, w = self.shape
        top, bottom, left, right = self.padding
        return n, c, h + top + bottom, w + left + right

    @cached_property
    def sources(self) -> np.ndarray:
        """For every entry of the column matrix the flat index, in the padded images, of its pixel.

        It is what im2col makes of images that hold their own indices.
        """
        index = np.arange(math.prod(self.padded_shape), dtype=float).reshape(self.padded_shape)
        settings = self.kernel_size, self.stride, UNPADDED, self.dilation
        return im2col(index, *settings).astype(int)

    def pixel(self, name: str = "x"):
        """The place of a pixel of the images in the grids of `images`."""
        return build.in_planes(name, self.shape, (self.padding[0], self.padding[2]))

    def padded_pixel(self, name: str = "x"):
        """The place of a pixel of the padded images in the grids of `images`."""
        return build.in_planes(name, self.padded_shape)

    def output(self, name: str = "y"):
        """The place of a column, numbered (n, v, u), in the grids of one output channel."""
        return build.in_planes(name, (self.shape[0], 1, *self.output_size))

    def column_position(self, column: int) -> tuple[int, int, int]:
        """(n, v, u): the image and the output's row and column that a column belongs to."""
        found = np.unravel_index(column, (self.shape[0], *self.output_size))
        return tuple(int(i) for i in found)

    def images(self, x, title: str, name="x", kind="input", levels=None) -> tuple[Grid, ...]:
        """Grids of the images x (N, C, H, W) with their padding, one a plane."""
        return tuple(
            build.padded_grid(
                build.plane_name(name, self.shape, n, c),
                build.plane_name(title, self.shape, n, c),
                x[n, c],
                self.padding,
                kind,
                levels=None if levels is None else levels[n, c],
            )
            for n in range(self.shape[0])
            for c in range(self.shape[1])
        )

    def outputs(self, y, title: str, name="y", kind="output") -> tuple[Grid, ...]:
        """Grids of an array (N, O, OH, OW), one a plane."""
        return tuple(
            build.grid(
                build.plane_name(name, y.shape, n, o),
                build.plane_name(title, y.shape, n, o),
                kind,
                y[n, o],
            )
            for n in range(y.shape[0])
            for o in range(y.shape[1])
        )

    @property
    def tap_labels(self) -> tuple[str, ...]:
        """The names of the rows of the column matrix: "i,j", after "c:" where there are several."""
        kh, kw = self.kernel_size
        return tuple(
            (f"{c}:" if self.shape[1] > 1 else "") + f"{i},{j}"
            for c in range(self.shape[1])
            for i in range(kh)
            for j in range(kw)
        )

    def is_padding(self, source: int) -> bool:
        """Whether a pixel of the padded images lies in the padding."""
        *_, r, c = np.unravel_index(source, self.padded_shape)
        top, _, left, _ = self.padding
        return not (0 <= r - top < self.shape[2] and 0 <= c - left < self.shape[3])

    def columns(self, cols, title: str, name="cols", kind="matrix") -> Grid:
        """A grid of the column matrix; entries from the padding are dots."""
        cells = tuple(
            tuple(
                Cell("·", "padding") if self.is_padding(source) else Cell(build.number(value))
                for value, source in zip(*row, strict=True)
            )
            for row in zip(cols, self.sources, strict=True)
        )
        labels = tuple(map(str, range(cols.shape[1])))
        return Grid(name, title, kind, cells, self.tap_labels, labels)

    def patch(self, column: int, name="x") -> dict:
        """Marks of the pixels, in the padding too, that one column is taken from."""
        return build.places(self.sources[:, column], self.padded_pixel(name))

    def column(self, column: int, name="cols") -> dict:
        """Marks of one column of the matrix."""
        return {name: tuple((row, column) for row in range(self.columns_shape[0]))}

    def where(self, column: int) -> str:
        """"rows -1 to 1, columns 1 to 3" (of image 0): the pixels of one window."""
        n, _, rows, columns = np.unravel_index(self.sources[:, column], self.padded_shape)
        text = (
            f"rows {span(rows - self.padding[0])}, columns {span(columns - self.padding[2])}"
        )
        return text + (f" of image {n[0]}" if self.shape[0] > 1 else "")

    def window_frames(self, caption, extra) -> tuple[Frame, ...]:
        """A frame for every window: its pixels, its column, and what `extra` adds to the marks."""
        return tuple(
            Frame(caption(k), {**self.patch(k), **self.column(k), **extra(k)})
            for k in range(self.columns_shape[1])
        )


def span(values) -> str:
    """The distinct integers as "2", "0 to 2" or, with gaps, "0, 2, 4"."""
    distinct = [int(value) for value in np.unique(values)]
    if len(distinct) > 1 and distinct[-1] - distinct[0] == len(distinct) - 1:
        return f"{distinct[0]} to {distinct[-1]}"
    return ", ".join(map(str, distinct))


def size_formula(windows: Windows) -> str:
    """The output's size, by its formula, with the numbers put in."""
    lines = []
    for axis, name in enumerate("HW"):
        before, after = windows.padding[2 * axis : 2 * axis + 2]
        extent, k = windows.shape[2 + axis], windows.kernel_size[axis]
        d, s = windows.dilation[axis], windows.stride[axis]
        lines.append(
            f"    O{name} = floor(({extent} + {before} + {after} - {d} ({k} - 1) - 1) / {s}) + 1"
            f" = {windows.output_size[axis]}"
        )
    return "\n".join(lines)
