"""col2im: every column is added back to the patch it was taken from."""

import numpy as np

from kernels.reference import col2im, im2col
from kernels.study.explanations import build
from kernels.study.explanations import im2col as forward
from kernels.study.explanations.model import Explanation, Frame, Step
from kernels.study.explanations.windows import Windows

OPTIONS = forward.OPTIONS


def explain(size, kernel, stride, padding, dilation, channels, batch) -> Explanation:
    """The steps of col2im, column by column, and why it is the transpose of im2col."""
    windows = Windows.of(size, kernel, stride, padding, dilation, channels, batch)
    cols = build.whole_numbers(windows.columns_shape, 1, 9)
    steps = (
        _adding(windows, cols),
        forward.lands(windows),
        _twice(windows),
        _transpose(windows, cols),
    )
    return Explanation(
        "col2im", "col2im: every column is added back to its patch", windows.shown, steps
    )


def _adding(windows, cols) -> Step:
    def image_of(columns):
        kept = np.where(np.arange(cols.shape[1]) < columns, cols, 0)
        return col2im(kept, windows.shape, *windows.settings)

    images = [image_of(count) for count in range(cols.shape[1] + 1)]
    pixel = windows.pixel()

    def frame(column):
        changed = np.flatnonzero(images[column + 1] != images[column])
        texts = {}
        for element in changed:
            name, at = pixel(element)
            text = build.number(images[column + 1].reshape(-1)[element])
            texts.setdefault(name, {})[at] = text
        dropped = sum(windows.is_padding(source) for source in windows.sources[:, column])
        return Frame(
            f"column {column} goes to {windows.where(column)}: {len(changed)} values added"
            + (f", {dropped} dropped in the padding" if dropped else ""),
            {**windows.patch(column), **windows.column(column)},
            texts=texts,
        )

    entries = np.arange(cols.size, dtype=float).reshape(cols.shape)
    lands = build.reads(lambda c: col2im(c, windows.shape, *windows.settings), entries)
    return Step(
        "Column after column is added",
        (
            f"cols {cols.shape} holds small numbers; entries that belong to the padding are dots, "
            f"and dropped. x {windows.shape} starts as zeros.",
        ),
        (
            windows.columns(cols, "cols"),
            *windows.images(images[0], "x, as far as it is summed"),
        ),
        build.link(lands, pixel, build.in_matrix("cols", cols.shape)),
        tuple(frame(column) for column in range(cols.shape[1])),
        shown=-1,
    )


def _twice(windows) -> Step:
    x = build.whole_numbers(windows.shape, 1, 9, seed=2)
    cols = im2col(x, *windows.settings)
    back = col2im(cols, windows.shape, *windows.settings)
    counts = col2im(np.ones(windows.columns_shape), windows.shape, *windows.settings)
    agree = "equal" if np.array_equal(back, counts * x) else "not equal"
    return Step(
        "It is no inverse",
        (
            "col2im(im2col(x)) gives back every pixel as often as windows have copied it. Here it "
            f"is {agree} to the counts times x. Only where windows neither overlap nor leave gaps "
            "are all counts 1.",
        ),
        (
            *windows.images(x, "x", "x"),
            *windows.images(counts, "counts", "counts", "gradient", build.heat(counts)),
            *windows.images(back, "col2im(im2col(x))", "back", "output"),
        ),
    )


def _transpose(windows, cols) -> Step:
    x = build.whole_numbers(windows.shape, 1, 9, seed=2)
    left = float(np.sum(im2col(x, *windows.settings) * cols))
    right = float(np.sum(x * col2im(cols, windows.shape, *windows.settings)))
    return Step(
        "It is the transpose",
        (
            "im2col is linear: a matrix of zeros and ones, a one for every copy. col2im multiplies "
            "by its transpose, which is why it carries gradients back. For the cols of step 1 and "
            "the x of step 3:",
            f"    sum(im2col(x) * cols) = {build.number(left)}\n"
            f"    sum(x * col2im(cols)) = {build.number(right)}",
            "And so the gradient of col2im is im2col: what lands in a pixel is copied from there.",
        ),
    )
