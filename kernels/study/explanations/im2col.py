"""im2col: which patch of the image becomes which column, and what that is good for."""

import math

import numpy as np

from kernels.reference import col2im, im2col
from kernels.study.explanations import build, options
from kernels.study.explanations.model import Explanation, Frame, Step
from kernels.study.explanations.windows import Windows, size_formula

OPTIONS = (
    options.SIZE, options.KERNEL, options.STRIDE, options.PADDING, options.DILATION,
    options.CHANNELS, options.BATCH,
)  # fmt: skip


def explain(size, kernel, stride, padding, dilation, channels, batch) -> Explanation:
    """The steps of im2col and of its gradient, on images that hold their own indices."""
    windows = Windows.of(size, kernel, stride, padding, dilation, channels, batch)
    index = np.arange(math.prod(windows.shape), dtype=float).reshape(windows.shape)
    cols = im2col(index, *windows.settings)
    steps = (
        _image(windows, index),
        _columns(windows, index, cols),
        _product(windows),
        lands(windows),
    )
    return Explanation("im2col", "im2col: every patch becomes a column", windows.shown, steps)


def _image(windows, index) -> Step:
    n, c, h, w = windows.shape
    return Step(
        "The image and its padding",
        (
            f"Every pixel of x {windows.shape} holds its own flat index, so that one can see where "
            "a number comes from. Padding (dots) is read as zero.",
            f"The kernel takes {math.prod(windows.output_size)} windows of each image, "
            f"{windows.output_size[0]} down and {windows.output_size[1]} across:",
            size_formula(windows),
        ),
        windows.images(index, "x"),
    )


def _columns(windows, index, cols) -> Step:
    count = cols.shape[1]
    numbers = np.arange(count).reshape(windows.shape[0], 1, *windows.output_size)

    def caption(column):
        n, v, u = windows.column_position(column)
        of = f"image {n}, " if windows.shape[0] > 1 else ""
        taken = ["·" if windows.is_padding(s) else build.number(value)
                 for s, value in zip(windows.sources[:, column], cols[:, column], strict=True)]
        return (
            f"column {column} = output {of}({v}, {u}), {windows.where(column)}: "
            f"{' '.join(taken)}"
        )

    dependence = windows.sources.reshape(-1, 1) == np.arange(math.prod(windows.padded_shape))
    links = build.link(dependence, build.in_matrix("cols", cols.shape), windows.padded_pixel())
    output = windows.output()
    owns = np.arange(cols.size) % count == np.arange(count)[:, None]
    return Step(
        "Each patch becomes a column",
        (
            f"cols {cols.shape}: a row for every tap of the kernel (i,j"
            f"{', channel first' if windows.shape[1] > 1 else ''}), a column for every output. "
            f"x has {math.prod(windows.shape)} values, cols {cols.size}: "
            f"{cols.size / math.prod(windows.shape):.3g} times as many, for a pixel is copied into "
            "every window that holds it.",
        ),
        (
            *windows.images(index, "x"),
            windows.columns(cols, "cols = im2col(x)"),
            *windows.outputs(numbers, "columns of y"),
        ),
        (*links, *build.link(owns, output, build.in_matrix("cols", cols.shape))),
        windows.window_frames(caption, lambda column: build.places([column], output)),
    )


def _product(windows) -> Step:
    rows, count = windows.columns_shape
    outputs = 8
    names = ("W", "cols", "y = W cols")
    shapes = ((outputs, rows), (rows, count), (outputs, count))
    table = np.array([[*shape, math.prod(shape), 4 * math.prod(shape)] for shape in shapes])
    return Step(
        "The convolution is one matrix product",
        (
            "A filter laid out as a row, times a column, is one output: filters times columns are "
            f"all of them. With O = {outputs} filters:",
            f"    W ({outputs}, {rows})  x  cols ({rows}, {count})  =  y ({outputs}, {count})",
            f"That is {outputs} x {rows} x {count} = {outputs * rows * count:,} multiply-adds, in "
            "the form that matrix libraries are fastest at. The gradients are products too: "
            "dW = dy cols^T and dcols = W^T dy.",
        ),
        (
            build.grid(
                "shapes", "shapes and float32 bytes", "table", table, names,
                ("rows", "columns", "values", "bytes"), show=lambda value: f"{value:,}",
            ),
        ),
    )  # fmt: skip


def lands(windows: Windows) -> Step:
    """Backward: the pixel that each gradient of the column matrix is added to, and how often."""
    shape, cols_shape = windows.shape, windows.columns_shape
    ones = np.ones(cols_shape)
    counts = col2im(ones, shape, *windows.settings)
    kept = int(counts.sum())
    number = np.arange(ones.size, dtype=float).reshape(cols_shape)
    entry = build.in_matrix("dcols", cols_shape)
    dependence = build.reads(lambda dcols: col2im(dcols, shape, *windows.settings), number)

    def frame(pixel):
        *_, r, c = (int(i) for i in np.unravel_index(pixel, shape))
        name, _ = windows.pixel("dx")(pixel)
        entries = np.nonzero(dependence[pixel])[0]
        numbers = ", ".join(build.number(e) for e in entries) or "none: no window reads it"
        return Frame(
            f"{name} at ({r}, {c}) is the sum of {len(entries)} of dcols: {numbers}",
            build.places(entries, entry),
            build.places([pixel], windows.pixel("dx")),
        )

    return Step(
        "Backward: where each gradient lands",
        (
            "The gradient of a copy is added back to what was copied: dx = col2im(dcols). The "
            "entries of dcols are numbered; each pixel of dx shows how many of them it sums, which "
            "is col2im of a matrix of ones.",
            f"Of {ones.size} entries {kept} land in the image, and {ones.size - kept} in the "
            "padding, where they are dropped.",
        ),
        (
            windows.columns(number, "dcols, numbered", "dcols", "gradient"),
            *windows.images(counts, "how many: dx", "dx", "gradient", build.heat(counts)),
        ),
        build.link(dependence, windows.pixel("dx"), entry),
        tuple(frame(pixel) for pixel in range(math.prod(shape))),
    )
