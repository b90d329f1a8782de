"""Exercise: convolution with fewer multiplications."""

import numpy as np

from kernels.study.exercises.model import Exercise, Mistake, Part, arrays

_SETTINGS = (
    (2, 3, (4, 4), {"size": 2}),
    (2, 3, (6, 10), {"size": 4}),
    (3, 2, (7, 5), {"size": 2, "padding": (1, 1, 1, 1)}),
    (4, 6, (6, 9), {"size": 4, "padding": (0, 1, 1, 2), "groups": 2}),
    (2, 2, (7, 8), {"size": 2, "taps": 5}),
)


def _cases(draw):
    for dtype in (np.float64, np.float32):
        for channels, outputs, plane, settings in _SETTINGS:
            settings = dict(settings)
            groups, taps = settings.get("groups", 1), settings.pop("taps", 3)
            filters = outputs, channels // groups, taps, taps
            x, weight, bias = arrays(draw, dtype, (2, channels, *plane), filters, outputs)
            yield {"x": x, "weight": weight, "bias": bias, **settings}


WINOGRAD = Exercise(
    name="winograd",
    title="Winograd's convolution, F(2x2, 3x3), F(4x4, 3x3) and F(2x2, 5x5)",
    difficulty=3,
    module="winograd",
    given=("minimal_filtering",),
    parts={
        "conv2d_winograd": Part(
            _cases, ("y",),
            ("minimal_filtering(size, taps) gives .pixels (B^T), .filters (G) and .outputs (A^T), "
             "float64.",
             "Pad the image so that it is cut into whole tiles, and cut the result at the end.",
             "np.lib.stride_tricks.sliding_window_view gives overlapping tiles.",
             "The result must have x's dtype."),
        ),
    },
    mistakes=(
        Mistake(
            "what comes out with the filters turned by 180 degrees.",
            {"(matrices.filters, weight)": "(matrices.filters, weight[..., ::-1, ::-1])"},
        ),
        Mistake(
            "what comes out with the filters transposed: rows and columns have changed places.",
            {"(matrices.filters, weight)": "(matrices.filters, weight.swapaxes(2, 3))"},
        ),
        Mistake(
            "what comes out where the tiles' rows and columns are interleaved: bring the axes into "
            "the order (tile row, row, tile column, column) before reshaping.",
            {"y.transpose(0, 1, 2, 3, 5, 4, 6).reshape(": "y.reshape("},
        ),
        Mistake(
            "what comes out where a matrix stands on the right without being transposed.",
            {"v = on_both_axes(matrices.pixels, tiles(x, size, padding, down, across, taps))":
             "v = matrices.pixels @ tiles(x, size, padding, down, across, taps) @ matrices.pixels\n"
             "    v = v.astype(x.dtype)"},
        ),
        Mistake("what comes out without the bias.", {"y += bias[:, None, None]": "pass"}),
        Mistake(
            "what comes out where padding is added at the bottom and right alone: the image starts "
            "at (top, left).",
            {"padded[:, :, top : top + h, left : left + w]": "padded[:, :, :h, :w]"},
        ),
    ),
)  # fmt: skip

EXERCISES = (WINOGRAD,)
