"""The filters of a convolution as small images and as the rows of a matrix."""

import math
from functools import cached_property

import numpy as np

from kernels.reference import conv2d
from kernels.study.explanations import build
from kernels.study.explanations.model import Grid, Link
from kernels.study.explanations.windows import Windows


class Filters:
    """Filters (O, C/G, kh, kw) of small integers other than zero, for images cut by `windows`."""

    def __init__(self, windows: Windows, outputs: int, groups: int):
        """ValueError where the groups do not divide the channels."""
        channels = windows.shape[1]
        if channels % groups or outputs % groups:
            raise ValueError(
                f"groups must divide the {channels} channels and the {outputs} outputs, "
                f"got {groups}"
            )
        build.check_cells(
            the_matrix_of_filters=outputs * windows.columns_shape[0],
            the_result=outputs * windows.columns_shape[1],
        )
        self.windows, self.outputs, self.groups = windows, outputs, groups
        self.weight = build.weights((outputs, channels // groups, *windows.kernel_size))

    @property
    def settings(self) -> tuple:
        """(stride, padding, dilation, groups), in the order that the kernels take them."""
        return *self.windows.settings[1:], self.groups

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """The settings as they are shown."""
        more = (("weight", str(self.weight.shape)), ("groups", str(self.groups)))
        return *self.windows.shown, *more

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """(N, O, OH, OW)."""
        return self.windows.shape[0], self.outputs, *self.windows.output_size

    @cached_property
    def matrix(self) -> np.ndarray:
        """The matrix W (O, C kh kw) by which the convolution multiplies columns.

        Its columns are what conv2d makes of the images (C, kh, kw) with a single one.
        """
        channels, size = self.windows.shape[1], self.windows.kernel_size
        count = channels * math.prod(size)
        units = np.eye(count).reshape(count, channels, *size)
        return conv2d(units, self.weight, groups=self.groups).reshape(count, self.outputs).T

    @property
    def stored(self) -> np.ndarray:
        """Which entries of `matrix` stand in the weight: no weight is zero."""
        return self.matrix != 0

    def group_of_output(self, output: int) -> int:
        """The group that an output channel belongs to."""
        return output // (self.outputs // self.groups)

    def matrix_grid(self, name="W") -> Grid:
        """A grid of `matrix`, the groups in colours of their own."""
        tones = [
            [self._tone(o) if stored else "blank" for stored in row]
            for o, row in enumerate(self.stored)
        ]
        return build.grid(
            name, "W, a filter a row", "weight", self.matrix,
            columns=self.windows.tap_labels, tones=tones,
            show=lambda value: build.number(value) if value else "",
        )  # fmt: skip

    def _tone(self, output: int) -> str:
        return f"group{self.group_of_output(output) % 4}" if self.groups > 1 else ""

    def product_links(self, cols_shape) -> tuple[Link, ...]:
        """Links from the entries of y = W cols to those of W and of cols that they are sums of."""
        build.check_links(int(self.stored.sum()) * cols_shape[1])
        to_filters, to_columns = [], []
        for o, row in enumerate(self.stored):
            for k in range(cols_shape[1]):
                for r in map(int, np.flatnonzero(row)):
                    to_filters.append(((o, k), (o, r)))
                    to_columns.append(((o, k), (r, k)))
        return Link("y", "W", tuple(to_filters)), Link("y", "cols", tuple(to_columns))

    def filter_grids(self, values=None, name="weight", kind="weight") -> tuple[Grid, ...]:
        """Grids of the filters, or of an array of their shape, one a plane."""
        values = self.weight if values is None else values
        place = self.tap(name)
        planes = values.reshape(-1, *values.shape[2:])
        size = math.prod(values.shape[2:])
        return tuple(
            build.grid(place(plane * size)[0], place(plane * size)[0], kind, planes[plane])
            for plane in range(len(planes))
        )

    def tap(self, name: str):
        """The place of a weight in the grids of `filter_grids`."""
        several = self.weight.shape[1] > 1

        def place(element):
            o, c, i, j = (int(k) for k in np.unravel_index(element, self.weight.shape))
            return (f"{name}[{o}, {c}]" if several else f"{name}[{o}]"), (i, j)

        return place

    def filter_marks(self, output: int) -> dict:
        """Marks of all weights of one filter."""
        size = self.weight[0].size
        return build.places(range(output * size, (output + 1) * size), self.tap("weight"))

    def output(self, name: str = "y"):
        """The place of an element of an array of `y_shape`."""
        return build.in_planes(name, self.y_shape)
