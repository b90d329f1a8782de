"""Exercises: local response normalisation and batch normalisation."""

import numpy as np

from kernels import reference
from kernels.study.exercises.model import Exercise, Mistake, Part, arrays

# (channels, settings): odd and even windows, wider than the channels, both conventions of alpha.
_LRN = (
    (7, {"size": 5, "alpha": 0.5, "beta": 0.75, "k": 2.0}),
    (6, {"size": 4, "alpha": 0.3, "beta": 0.5, "k": 1.5}),
    (5, {"size": 3, "alpha": 0.6, "beta": 0.75, "k": 2.0, "size_normalized": True}),
    (3, {"size": 9, "alpha": 0.2, "beta": 1.0, "k": 1.0}),
    (4, {"size": 1, "alpha": 0.4, "beta": 0.75, "k": 3.0}),
)


def _lrn_cases(draw):
    for dtype in (np.float64, np.float32):
        for channels, settings in _LRN:
            yield {"x": arrays(draw, dtype, (2, channels, 3, 2))[0], **settings}


def _lrn_backward_cases(draw):
    for case in _lrn_cases(draw):
        x = case.pop("x")
        _, scale = reference.lrn(x, **case)
        yield {"dy": arrays(draw, x.dtype, x.shape)[0], "x": x, "scale": scale, **case}


def _lrn_slopes(code, draw):
    for channels, settings in _LRN:
        x, u = arrays(draw, np.float64, *[(1, channels, 2, 2)] * 2)
        gradient = code.lrn_backward(u, x, code.lrn(x, **settings)[1], **settings)
        yield (
            f"d lrn / dx ({settings})",
            lambda x, u=u, s=settings: (u * code.lrn(x, **s)[0]).sum(), x, gradient,
        )  # fmt: skip


LRN = Exercise(
    name="lrn",
    title="local response normalisation and its gradient",
    difficulty=2,
    module="lrn",
    parts={
        "lrn": Part(
            _lrn_cases, ("y", "scale"),
            ("The windows of the first and the last channels are shorter.",
             "alpha multiplies the sum as it is; only with size_normalized it is divided by size."),
        ),
        "lrn_backward": Part(
            _lrn_backward_cases, ("dx",),
            ("Two terms: x_i in the numerator of y_i, and in the scales of its neighbours.",
             "For an even size the channels whose window holds i are not the window of i."),
        ),
    },
    slopes=_lrn_slopes,
    mistakes=(
        Mistake(
            "what comes out when alpha is divided by n (the size) although size_normalized is "
            "False: the paper's alpha multiplies the sum, Caffe's and PyTorch's the mean.",
            {"if size_normalized else float(alpha)": "if True else float(alpha)"},
        ),
        Mistake(
            "what comes out when size_normalized is ignored: with it, alpha is divided by n.",
            {"float(alpha) / size if size_normalized else float(alpha)": "float(alpha)"},
        ),
        Mistake(
            "what comes out of windows without their last channel: is a range one short?",
            {"min(after, channels) + 1)": "min(after, channels))"},
        ),
        Mistake(
            "what comes out of slices that begin below 0: a negative index counts from the end, "
            "and x[:, -1:3] is empty.",
            {"    return total\n":
             "    return np.stack([x[:, i - before : i + after + 1].sum(axis=1)\n"
             "                     for i in range(channels)], axis=1)\n"},
        ),
        Mistake(
            "what comes out when an even window reaches further after the channel than before it: "
            "it is size // 2 before and (size - 1) // 2 after.",
            {"_window_sum(x * x, size // 2, (size - 1) // 2)":
             "_window_sum(x * x, (size - 1) // 2, size // 2)"},
        ),
        Mistake(
            "the sum of x instead of x squared.", {"_window_sum(x * x, ": "_window_sum(x, "}
        ),
        Mistake("what comes out with k = 1.", {"float(k) + alpha": "1.0 + alpha"}),
        Mistake(
            "what comes out when y is multiplied by scale^beta: the exponent is -beta.",
            {"x * scale ** -float(beta)": "x * scale ** float(beta)"},
        ),
        Mistake(
            "the direct term alone: x_i also stands in the scales of its neighbours.",
            {" - (2 * alpha * beta) * x * through": ""},
        ),
        Mistake(
            "what comes out without the 2 that the derivative of x squared brings.",
            {"(2 * alpha * beta)": "(alpha * beta)"},
        ),
        Mistake(
            "what comes out with the window of i: the sum runs over the channels whose window "
            "holds i, which for an even size is the window mirrored.",
            {"_window_sum(dy * x * scale ** (-beta - 1), (size - 1) // 2, size // 2)":
             "_window_sum(dy * x * scale ** (-beta - 1), size // 2, (size - 1) // 2)"},
        ),
        Mistake(
            "what comes out with the exponent -beta in the second term: the derivative of s^-beta "
            "is -beta s^(-beta - 1).",
            {"scale ** (-beta - 1)": "scale ** -beta"},
        ),
    ),
)  # fmt: skip

_SHAPES = ((4, 3, 2, 3), (2, 1, 1, 1), (1, 4, 3, 3), (5, 2, 1, 2))
_EPS = 0.1  # large, so that its place shows


def _train_cases(draw):
    for dtype in (np.float64, np.float32):
        for shape in _SHAPES:
            x, gamma, beta = arrays(draw, dtype, shape, shape[1], shape[1])
            yield {"x": 2 * x + 1, "gamma": gamma, "beta": beta, "eps": _EPS}


def _backward_cases(draw):
    for case in _train_cases(draw):
        x, gamma = case["x"], case["gamma"]
        _, mean, _, inv_std = reference.batchnorm_train(**case)
        dy = arrays(draw, x.dtype, x.shape)[0]
        yield {"dy": dy, "x": x, "gamma": gamma, "mean": mean, "inv_std": inv_std}


def _train_slopes(code, draw):
    x, u = arrays(draw, np.float64, (3, 2, 2, 2), (3, 2, 2, 2))
    gamma, beta = arrays(draw, np.float64, 2, 2)
    _, mean, _, inv_std = code.batchnorm_train(x, gamma, beta, _EPS)
    gradients = code.batchnorm_backward(u, x, gamma, mean, inv_std)

    def loss(x, gamma, beta):
        return (u * code.batchnorm_train(x, gamma, beta, _EPS)[0]).sum()

    yield "d batchnorm / dx", lambda x: loss(x, gamma, beta), x, gradients[0]
    yield "d batchnorm / dgamma", lambda g: loss(x, g, beta), gamma, gradients[1]
    yield "d batchnorm / dbeta", lambda b: loss(x, gamma, b), beta, gradients[2]


BATCHNORM = Exercise(
    name="batchnorm",
    title="batch normalisation in training, and its gradients",
    difficulty=3,
    module="batchnorm",
    parts={
        "batchnorm_train": Part(
            _train_cases, ("y", "mean", "var", "inv_std"),
            ("Statistics run over axes 0, 2 and 3; the variance is the biased one.",
             "Compute in float64 and return x's dtype.",
             "others and rectify can be left aside: the check gives neither."),
        ),
        "batchnorm_backward": Part(
            _backward_cases, ("dx", "dgamma", "dbeta"),
            ("Three ways lead from x to y: directly, through the mean, through the variance.",
             "The check gives no y."),
        ),
    },
    slopes=_train_slopes,
    mistakes=(
        Mistake(
            "what comes out with the unbiased variance: divide by m, not by m - 1.",
            {"np.mean(centred * centred, _AXES)": "centred.var(_AXES, ddof=1)"},
        ),
        Mistake(
            "what comes out with eps outside of the root: it is 1 / sqrt(var + eps).",
            {"1 / np.sqrt(var + eps)": "1 / (np.sqrt(var) + eps)"},
        ),
        Mistake(
            "what comes out without eps.", {"1 / np.sqrt(var + eps)": "1 / np.sqrt(var)"}
        ),
        Mistake(
            "what comes out without gamma.",
            {"_per_channel(inv_std * gamma) + ": "_per_channel(inv_std) + "},
        ),
        Mistake(
            "what comes out without beta.",
            {"_per_channel(inv_std * gamma) + _per_channel(beta)": "_per_channel(inv_std * gamma)"},
        ),
        Mistake(
            "what comes out when x is divided by the variance: take its root.",
            {"_per_channel(inv_std * gamma) + ": "_per_channel(inv_std**2 * gamma) + "},
        ),
        Mistake(
            "what comes out without the way through the mean: mean(dy) is missing from dx.",
            {"direct = wide - wide.mean(_AXES, keepdims=True)": "direct = wide"},
        ),
        Mistake(
            "what comes out without the way through the variance: xh mean(dy xh) is missing.",
            {"* (direct - through_var)": "* direct"},
        ),
        Mistake(
            "what comes out where mean and variance are constants: dx of evaluation, not training.",
            {"* (direct - through_var)": "* wide"},
        ),
        Mistake(
            "what comes out where dx lacks gamma.",
            {"_per_channel(inv_std.astype(np.float64) * gamma) * (direct":
             "_per_channel(inv_std.astype(np.float64)) * (direct"},
        ),
        Mistake(
            "what comes out where the means are taken over the images alone: m is N H W.",
            {"direct = wide - wide.mean(_AXES, keepdims=True)":
             "direct = wide - wide.sum(_AXES, keepdims=True) / len(x)",
             "product.mean(_AXES, keepdims=True)": "product.sum(_AXES, keepdims=True) / len(x)"},
        ),
        Mistake(
            "the sum of dy xh in dx where its mean belongs.",
            {"product.mean(_AXES, keepdims=True)": "product.sum(_AXES, keepdims=True)"},
        ),
        Mistake(
            "the mean for dgamma and dbeta: they are sums.",
            {"for g in (product.sum(_AXES), wide.sum(_AXES))":
             "for g in (product.mean(_AXES), wide.mean(_AXES))"},
        ),
    ),
)  # fmt: skip


def _eval_cases(draw):
    for case in _train_cases(draw):
        mean, var = arrays(draw, case["x"].dtype, *[case["gamma"].shape] * 2)
        yield {**case, "mean": mean, "var": np.abs(var) + var.dtype.type(0.1)}


def _eval_backward_cases(draw):
    for case in _eval_cases(draw):
        x, gamma, mean = case["x"], case["gamma"], case["mean"]
        inv_std = (1 / np.sqrt(case["var"] + _EPS)).astype(x.dtype)
        dy = arrays(draw, x.dtype, x.shape)[0]
        yield {"dy": dy, "x": x, "gamma": gamma, "mean": mean, "inv_std": inv_std}


def _eval_slopes(code, draw):
    x, u = arrays(draw, np.float64, (2, 3, 2, 2), (2, 3, 2, 2))
    gamma, beta, mean = arrays(draw, np.float64, 3, 3, 3)
    var = draw.uniform(0.5, 2, 3)
    gradients = code.batchnorm_eval_backward(u, x, gamma, mean, 1 / np.sqrt(var + _EPS))

    def loss(x, gamma, beta):
        return (u * code.batchnorm_eval(x, gamma, beta, mean, var, _EPS)).sum()

    yield "d batchnorm / dx", lambda x: loss(x, gamma, beta), x, gradients[0]
    yield "d batchnorm / dgamma", lambda g: loss(x, g, beta), gamma, gradients[1]
    yield "d batchnorm / dbeta", lambda b: loss(x, gamma, b), beta, gradients[2]


BATCHNORM_EVAL = Exercise(
    name="batchnorm_eval",
    title="batch normalisation in evaluation, and its gradients",
    difficulty=1,
    module="batchnorm",
    parts={
        "batchnorm_eval": Part(
            _eval_cases, ("y",), ("The statistics are given: nothing is computed from x.",)
        ),
        "batchnorm_eval_backward": Part(
            _eval_backward_cases, ("dx", "dgamma", "dbeta"),
            ("Here mean and variance are constants. Which terms of the gradient in training go?",),
        ),
    },
    slopes=_eval_slopes,
    mistakes=(
        Mistake(
            "what comes out with eps outside of the root: it is sqrt(var + eps).",
            {"gamma / np.sqrt(var.astype(np.float64) + eps)":
             "gamma / (np.sqrt(var.astype(np.float64)) + eps)"},
        ),
        Mistake(
            "what comes out without eps.",
            {"np.sqrt(var.astype(np.float64) + eps)": "np.sqrt(var.astype(np.float64))"},
        ),
        Mistake(
            "what comes out where dx lacks gamma.",
            {"dx = wide * _per_channel(inv_std.astype(np.float64) * gamma)":
             "dx = wide * _per_channel(inv_std.astype(np.float64))"},
        ),
        Mistake(
            "what comes out with the statistics of the batch: use the given ones.",
            {"scale = gamma / np.sqrt(var.astype(np.float64) + eps)":
             "mean, var = x.mean(_AXES), x.var(_AXES)\n"
             "    scale = gamma / np.sqrt(var.astype(np.float64) + eps)"},
        ),
        Mistake(
            "what comes out when x is divided by var + eps: take its root.",
            {"gamma / np.sqrt(var.astype(np.float64) + eps)":
             "gamma / (var.astype(np.float64) + eps)"},
        ),
        Mistake(
            "dx of training: here mean and variance do not depend on x.",
            {"dx = wide * _per_channel(": "wide = wide - wide.mean(_AXES, keepdims=True) - normal "
             "* (wide * normal).mean(_AXES, keepdims=True)\n    dx = wide * _per_channel(",
             "(dx, (wide * normal).sum(_AXES), wide.sum(_AXES))":
             "(dx, (dy * normal).sum(_AXES), dy.sum(_AXES))"},
        ),
        Mistake(
            "the sum of dy x for dgamma: it is that of dy xh, with x normalised.",
            {"(dx, (wide * normal).sum(_AXES)": "(dx, (wide * x).sum(_AXES)"},
        ),
    ),
)  # fmt: skip

EXERCISES = (LRN, BATCHNORM_EVAL, BATCHNORM)
