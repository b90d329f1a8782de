"""Exercises: rectification, matrix products, sums by channel."""

import numpy as np

from kernels.study.exercises.model import Exercise, Mistake, Part, arrays

_SHAPES = ((2, 3, 4, 5), (7,), (3, 2), (1, 1, 1, 1))
_IMAGES = ((2, 3, 4, 5), (4, 2, 3), (5, 6), (3, 4, 1, 1))


def _with_zeros(draw, shape, dtype):
    """Small whole numbers: some of them are 0."""
    return draw.integers(-2, 3, shape).astype(dtype)


def _relu_cases(draw):
    for dtype in (np.float64, np.float32):
        for shape in _SHAPES:
            yield {"x": _with_zeros(draw, shape, dtype)}
    yield {"x": np.array([np.nan, -1, np.inf, -np.inf])}
    (x,) = arrays(draw, np.float64, (3, 4))
    yield {"x": x, "out": np.empty_like(x)}


def _relu_backward_cases(draw):
    for dtype in (np.float64, np.float32):
        for shape in _SHAPES:
            (dy,) = arrays(draw, dtype, shape)
            yield {"dy": dy, "y": np.maximum(_with_zeros(draw, shape, dtype), 0)}


def _away_from_zero(draw, shape):
    return draw.choice([-1.0, 1.0], shape) * draw.uniform(0.1, 1, shape)


def _relu_slopes(code, draw):
    x = _away_from_zero(draw, (2, 3, 4))
    (u,) = arrays(draw, np.float64, x.shape)
    yield "d relu / dx", lambda x: (u * code.relu(x)).sum(), x, code.relu_backward(u, code.relu(x))


_AT_ZERO = Mistake(
    "what comes out where the gradient passes at y = 0 as well: there it is 0, so y > 0 counts.",
    {"np.where(y > 0, dy,": "np.where(y >= 0, dy,"},
)

RELU = Exercise(
    name="relu",
    title="ReLU and its gradient",
    difficulty=1,
    module="activation",
    parts={
        "relu": Part(_relu_cases, ("y",), ("np.maximum keeps a NaN; a comparison would lose it.",
                                            "It takes `out`, too.")),
        "relu_backward": Part(
            _relu_backward_cases, ("dx",),
            ("The output y is enough: y > 0 exactly where x > 0.", "What is the gradient at 0?"),
        ),
    },
    slopes=_relu_slopes,
    mistakes=(
        Mistake(
            "what comes out where a NaN becomes 0: every comparison with it is False.",
            {"np.maximum(x, x.dtype.type(0), out=out)": "np.where(x > 0, x, x.dtype.type(0))"},
        ),
        Mistake(
            "the absolute value: negative elements become 0, not positive.",
            {"np.maximum(x, x.dtype.type(0), out=out)": "np.abs(x)"},
        ),
        _AT_ZERO,
        Mistake(
            "the output where it is positive: the gradient that passes is dy, not y.",
            {"np.where(y > 0, dy,": "np.where(y > 0, y,"},
        ),
        Mistake(
            "dy y: the derivative of the output is 1 or 0, not its value.",
            {"np.where(y > 0, dy, dy.dtype.type(0))": "dy * y"},
        ),
    ),
)  # fmt: skip


def _bias_relu_cases(draw):
    for dtype in (np.float64, np.float32):
        for shape in _IMAGES:
            bias = _with_zeros(draw, shape[1], dtype)
            yield {"x": _with_zeros(draw, shape, dtype), "bias": bias}


def _bias_relu_backward_cases(draw):
    for dtype in (np.float64, np.float32):
        for shape in _IMAGES:
            (dy,) = arrays(draw, dtype, shape)
            yield {"dy": dy, "y": np.maximum(_with_zeros(draw, shape, dtype), 0)}


def _bias_relu_slopes(code, draw):
    bias = draw.standard_normal(3)
    x = _away_from_zero(draw, (2, 3, 4)) - bias[:, None]
    (u,) = arrays(draw, np.float64, x.shape)
    dx, dbias = code.bias_relu_backward(u, code.bias_relu(x, bias))
    yield "d bias_relu / dx", lambda x: (u * code.bias_relu(x, bias)).sum(), x, dx
    yield "d bias_relu / dbias", lambda b: (u * code.bias_relu(x, b)).sum(), bias, dbias


BIAS_RELU = Exercise(
    name="bias_relu",
    title="a bias and ReLU in one, and the gradients by both",
    difficulty=1,
    module="activation",
    given=("relu", "relu_backward"),
    parts={
        "bias_relu": Part(
            _bias_relu_cases, ("y",), ("The bias lies along axis 1, whatever axes follow.",)
        ),
        "bias_relu_backward": Part(
            _bias_relu_backward_cases, ("dx", "dbias"),
            ("Every element of a channel got the same bias: its gradient is the sum of theirs.",),
        ),
    },
    slopes=_bias_relu_slopes,
    mistakes=(
        Mistake(
            "max(x, 0) + bias: the bias comes before the rectification.",
            {"return relu(x + bias.reshape(-1, *(1,) * (x.ndim - 2)))":
             "return relu(x) + bias.reshape(-1, *(1,) * (x.ndim - 2))"},
        ),
        Mistake(
            "what comes out without the bias.",
            {"relu(x + bias.reshape(-1, *(1,) * (x.ndim - 2)))": "relu(x)"},
        ),
        _AT_ZERO,
        Mistake(
            "the mean over images and positions for dbias: it is the sum.",
            {"dx.sum(axis=(0, *range(2, dx.ndim)))": "dx.mean(axis=(0, *range(2, dx.ndim)))"},
        ),
        Mistake(
            "the sum of dy for dbias: what does not pass the rectification never reaches it.",
            {"return dx, dx.sum(": "return dx, dy.sum("},
        ),
    ),
)  # fmt: skip


def _matmul_cases(draw):
    for dtype in (np.float64, np.float32):
        for m, k, n in ((3, 3, 3), (2, 5, 4), (1, 6, 1), (4, 1, 3)):
            a, b = arrays(draw, dtype, (m, k), (k, n))
            yield {"a": a, "b": b}


MATMUL = Exercise(
    name="matmul",
    title="the product of two matrices, without @",
    difficulty=1,
    module="matmul",
    parts={
        "matmul": Part(
            _matmul_cases, ("y",),
            ("Three loops do; or add up the outer products of a's columns and b's rows.",),
        ),
    },
    mistakes=(
        Mistake("b a: products of matrices do not commute.", {"return a @ b": "return b @ a"}),
        Mistake("a^T b: i runs over the rows of a.", {"return a @ b": "return a.T @ b"}),
        Mistake("a b^T: j runs over the columns of b.", {"return a @ b": "return a @ b.T"}),
        Mistake("what comes out one term short: k runs over all columns of a.",
                {"return a @ b": "return a[:, :-1] @ b[:-1]"}),
        Mistake("the elementwise product.", {"return a @ b": "return a * b"}),
    ),
)  # fmt: skip


def _channel_sums_cases(draw):
    for dtype in (np.float64, np.float32):
        for shape in ((3, 3, 3, 3), *_IMAGES):
            yield {"x": arrays(draw, dtype, shape)[0]}


CHANNEL_SUMS = Exercise(
    name="channel_sums",
    title="the gradient of a convolution's bias",
    difficulty=1,
    module="reduce",
    parts={"channel_sums": Part(_channel_sums_cases, ("sums",), ("x may have 2 axes or more.",))},
    mistakes=(
        Mistake(
            "the mean: what reaches a bias is the sum.",
            {"x.sum(axis=(0, *range(2, x.ndim)))": "x.mean(axis=(0, *range(2, x.ndim)))"},
        ),
        Mistake(
            "the sums by image: the channels lie along axis 1.",
            {"x.sum(axis=(0, *range(2, x.ndim)))": "x.sum(axis=tuple(range(1, x.ndim)))"},
        ),
        Mistake(
            "the sum of the first image alone.",
            {"x.sum(axis=(0, *range(2, x.ndim)))": "x[0].sum(axis=tuple(range(1, x.ndim - 1)))"},
        ),
    ),
)

EXERCISES = (RELU, BIAS_RELU, MATMUL, CHANNEL_SUMS)
