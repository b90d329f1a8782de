"""Exercises: pooling."""

import numpy as np

from kernels import reference
from kernels.study.exercises.model import Exercise, Mistake, Part, arrays


def _settings(kernel, stride, padding=(0, 0, 0, 0), **others):
    return {"kernel_size": kernel, "stride": stride, "padding": padding, **others}


# Image size, and settings; windows that overlap, that leave gaps, and last windows cut off.
_MAX = (
    ((6, 6), _settings((2, 2), (2, 2))),
    ((7, 6), _settings((3, 2), (2, 1))),
    ((5, 5), _settings((3, 3), (2, 2), (1, 1, 1, 1))),
    ((6, 7), _settings((3, 3), (2, 2), ceil_mode=True)),
    ((6, 5), _settings((2, 2), (3, 3), (1, 0, 1, 1), ceil_mode=True)),
    ((7, 8), _settings((2, 3), (1, 2), dilation=(2, 2))),
)


def _max_pool_cases(draw):
    for dtype in (np.float64, np.float32):
        for plane, settings in _MAX:
            for x in (
                draw.standard_normal((2, 3, *plane)),
                draw.integers(0, 3, (2, 2, *plane)),  # ties
                -1 - draw.random((1, 2, *plane)),
            ):
                yield {"x": x.astype(dtype), **settings}
    x = draw.standard_normal((2, 2, 6, 6))
    x[draw.random(x.shape) < 0.2] = np.nan
    yield {"x": x, **_settings((2, 2), (2, 2))}


def _unpool_cases(draw):
    for dtype in (np.float64, np.float32):
        for plane, settings in _MAX:
            x = arrays(draw, dtype, (2, 3, *plane))[0]
            y, switches = reference.max_pool2d(x, **settings)
            yield {"y": arrays(draw, dtype, y.shape)[0], "switches": switches, "plane_shape": plane}


def _max_slopes(code, draw):
    for plane, settings in _MAX:
        size = 2 * plane[0] * plane[1]
        x = draw.permutation(size).reshape(1, 2, *plane) / 10  # no ties, no near ones
        y, switches = code.max_pool2d(x, **settings)
        (u,) = arrays(draw, np.float64, y.shape)
        gradient = code.max_unpool2d(u, switches, plane)
        yield (
            f"d max_pool2d / dx ({settings})",
            lambda x, u=u, s=settings: (u * code.max_pool2d(x, **s)[0]).sum(), x, gradient,
        )  # fmt: skip


MAX_POOL = Exercise(
    name="max_pool2d",
    title="max-pooling with switches, and its gradient through them",
    difficulty=2,
    module="pool",
    parts={
        "max_pool2d": Part(
            _max_pool_cases, ("y", "switches"),
            ("pool_output_size gives (OH, OW), ceil_mode included.",
             "Padding never wins, not even among negative numbers.",
             "The first of equals wins; once a NaN has won, it stays.",
             "A switch is r W + c in the image without padding, int32."),
        ),
        "max_unpool2d": Part(
            _unpool_cases, ("x",),
            ("Where windows overlap, several may share a winner.",),
        ),
    },
    slopes=_max_slopes,
    mistakes=(
        Mistake(
            "what comes out where the last of equals wins: ties go to the first, so compare by >.",
            {"candidate > best": "candidate >= best"},
        ),
        Mistake(
            "what comes out where padding takes part as 0, or the maximum starts at 0: a window of "
            "negative numbers has a negative maximum.",
            {"        np.copyto(switch, index[pixels], where=wins)\n    return y, switches":
             "        np.copyto(switch, index[pixels], where=wins)\n"
             "    return np.maximum(y, 0), switches"},
        ),
        Mistake(
            "what comes out where comparisons pass over a NaN: it shall win.",
            {"| (candidate > best) | first_nan": "| (candidate > best)"},
        ),
        Mistake(
            "the index in the padded image: switches count in the image without padding.",
            {"dtype=np.int32).reshape(x.shape[2:])":
             "dtype=np.int32).reshape(x.shape[2:])\n"
             "    row, column = np.divmod(index, x.shape[3])\n"
             "    row, column = row + padding[0], column + padding[2]\n"
             "    index = row * (x.shape[3] + sum(padding[2:])) + column"},
        ),
        Mistake(
            "the index c H + r: switches count row by row, r W + c.",
            {"dtype=np.int32).reshape(x.shape[2:])": "dtype=np.int32).reshape(x.shape[:1:-1]).T"},
        ),
        Mistake(
            "what comes out without dilation.",
            {"_taps(x.shape, y_shape, kernel_size, stride, padding, dilation)":
             "_taps(x.shape, y_shape, kernel_size, stride, padding)"},
        ),
        Mistake(
            "what comes out where ceil_mode is ignored: it may add a last window.",
            {"size = pool_output_size(*plane, kernel_size, stride, padding, dilation, ceil_mode)":
             "size = pool_output_size(*plane, kernel_size, stride, padding, dilation, False)"},
        ),
        Mistake(
            "what comes out without the stride: windows start every s pixels.",
            {"check_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)\n":
             "check_max_pool2d(x, kernel_size, (1, 1), padding, dilation, ceil_mode)\n",
             "_taps(x.shape, y_shape, kernel_size, stride, padding, dilation)":
             "_taps(x.shape, y_shape, kernel_size, (1, 1), padding, dilation)"},
        ),
        Mistake(
            "what comes out where elements that share a switch overwrite each other: they are "
            "summed, by np.add.at, for `x[i] += y` adds once where an index repeats.",
            {"np.add.at(x, (planes, switches.reshape(n * c, oh * ow)), y.reshape(n * c, oh * ow))":
             "x[planes, switches.reshape(n * c, oh * ow)] = y.reshape(n * c, oh * ow)"},
        ),
    ),
)  # fmt: skip

_AVERAGE = (
    ((6, 6), _settings((2, 2), (2, 2))),
    ((7, 6), _settings((3, 2), (2, 1))),
    ((5, 5), _settings((3, 3), (2, 2), (1, 1, 1, 1))),
    ((5, 5), _settings((3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=False)),
    ((6, 7), _settings((3, 3), (2, 2), ceil_mode=True)),
    ((6, 7), _settings((3, 3), (2, 2), (1, 1, 0, 1), ceil_mode=True, count_include_pad=False)),
)


def _avg_pool_cases(draw):
    for dtype in (np.float64, np.float32):
        for plane, settings in _AVERAGE:
            yield {"x": arrays(draw, dtype, (2, 3, *plane))[0], **settings}


def _avg_pool_backward_cases(draw):
    for case in _avg_pool_cases(draw):
        x = case.pop("x")
        y = reference.avg_pool2d(x, **case)
        yield {"dy": arrays(draw, x.dtype, y.shape)[0], "x_shape": x.shape, **case}


def _average_slopes(code, draw):
    for plane, settings in _AVERAGE:
        (x,) = arrays(draw, np.float64, (1, 2, *plane))
        (u,) = arrays(draw, np.float64, code.avg_pool2d(x, **settings).shape)
        yield (
            f"d avg_pool2d / dx ({settings})",
            lambda x, u=u, s=settings: (u * code.avg_pool2d(x, **s)).sum(), x,
            code.avg_pool2d_backward(u, x.shape, **settings),
        )  # fmt: skip


AVG_POOL = Exercise(
    name="avg_pool2d",
    title="average pooling, its counts at the border, and its transpose",
    difficulty=2,
    module="pool",
    parts={
        "avg_pool2d": Part(
            _avg_pool_cases, ("y",),
            ("Sum and count are different questions: padding adds nothing to the sum, but with "
             "count_include_pad it counts, as far as the padded image reaches.",),
        ),
        "avg_pool2d_backward": Part(
            _avg_pool_backward_cases, ("dx",),
            ("Every real tap of a window gets dy / count of that window.",),
        ),
    },
    slopes=_average_slopes,
    mistakes=(
        Mistake(
            "what comes out where every window is divided by the whole kernel: a last window of "
            "ceil_mode is clipped to the padded image.",
            {"np.minimum(stop, extent + after) - start": "stop - start"},
        ),
        Mistake(
            "what comes out where padding always counts: not with count_include_pad=False.",
            {"if count_include_pad:": "if True:"},
        ),
        Mistake(
            "what comes out where padding never counts: with count_include_pad it does.",
            {"if count_include_pad:": "if False:"},
        ),
        Mistake("the sum: it is not divided yet.", {"y /= np.outer(": "_ = np.outer("}),
        Mistake(
            "what comes out where dy is not divided by the counts.",
            {"share = dy / np.outer(": "share = dy + 0 * np.outer("},
        ),
        Mistake(
            "what comes out where overlapping windows overwrite each other: a pixel gets the sum "
            "over all its windows.",
            {"dx[pixels] += share[outputs]": "dx[pixels] = share[outputs]"},
        ),
        Mistake(
            "what comes out where a later window overwrites what an earlier one gave: a pixel gets "
            "the sum over all its windows.",
            {"in _taps(x_shape, dy.shape, kernel_size, stride, padding):":
             "in [*_taps(x_shape, dy.shape, kernel_size, stride, padding)][::-1]:",
             "dx[pixels] += share[outputs]": "dx[pixels] = share[outputs]"},
        ),
    ),
)  # fmt: skip


def _global_cases(draw):
    for dtype in (np.float64, np.float32):
        for shape in ((2, 3, 4, 5), (1, 2, 1, 1), (3, 1, 7, 2)):
            yield {"x": arrays(draw, dtype, shape)[0]}


def _global_backward_cases(draw):
    for case in _global_cases(draw):
        x = case["x"]
        yield {"dy": arrays(draw, x.dtype, (*x.shape[:2], 1, 1))[0], "x_shape": x.shape}


def _global_slopes(code, draw):
    x, u = arrays(draw, np.float64, (2, 3, 4, 5), (2, 3, 1, 1))
    gradient = code.global_avg_pool2d_backward(u, x.shape)
    yield "d mean / dx", lambda x: (u * code.global_avg_pool2d(x)).sum(), x, gradient


GLOBAL_AVG_POOL = Exercise(
    name="global_avg_pool2d",
    title="the mean of each plane, and its transpose",
    difficulty=1,
    module="pool",
    parts={
        "global_avg_pool2d": Part(
            _global_cases, ("y",), ("Sum in float64, but return the dtype of x.",)
        ),
        "global_avg_pool2d_backward": Part(
            _global_backward_cases, ("dx",),
            ("np.broadcast_to gives a view that cannot be written to: return a copy.",),
        ),
    },
    slopes=_global_slopes,
    mistakes=(
        Mistake("the sum: divide by H W.",
                {"return x.mean(axis=(2, 3)": "return x.sum(axis=(2, 3)"}),
        Mistake("the largest value: this is the mean.",
                {"x.mean(axis=(2, 3), keepdims=True, dtype=np.float64)":
                 "x.max(axis=(2, 3), keepdims=True)"}),
        Mistake("what comes out where dy is not divided: every pixel gets dy / (H W).",
                {"dy / dy.dtype.type(h * w)": "dy"}),
        Mistake("what comes out where dy is divided by N C H W: a mean is taken of one plane.",
                {"dy / dy.dtype.type(h * w)": "dy / dy.dtype.type(n * c * h * w)"}),
    ),
)  # fmt: skip

EXERCISES = (GLOBAL_AVG_POOL, MAX_POOL, AVG_POOL)
