"""Exercise: the loss of classifiers."""

import numpy as np

from kernels.study.exercises.model import Exercise, Mistake, Part, arrays

_SHAPES = ((4, 5), (3, 4, 2, 3), (1, 2), (6, 1))


def _weights(draw, dtype, shape):
    """Class weights: those of labels, and others that do not sum to 1, some of them 0."""
    labels = np.eye(shape[1])[draw.integers(0, shape[1], (shape[0], *shape[2:]))]
    yield np.ascontiguousarray(np.moveaxis(labels, -1, 1).astype(dtype))
    yield (draw.random(shape) * draw.integers(0, 2, shape)).astype(dtype)


def _cases(draw):
    for dtype in (np.float64, np.float32):
        for shape in _SHAPES:
            for weights in _weights(draw, dtype, shape):
                yield {"logits": arrays(draw, dtype, shape)[0], "weights": weights}
    large = np.array([[1000.0, 0, -1000], [-2000, -2001, -np.inf]])
    yield {"logits": large, "weights": np.array([[0.0, 0, 1], [0.5, 0.5, 0]])}


def _backward_cases(draw):
    for case in _cases(draw):
        logits = case["logits"]
        grad = arrays(draw, logits.dtype, (logits.shape[0], *logits.shape[2:]))[0]
        yield {"grad": grad, **case}


def _slopes(code, draw):
    for shape in ((3, 4), (2, 3, 2)):
        for weights in _weights(draw, np.float64, shape):
            logits, u = arrays(draw, np.float64, shape, (shape[0], *shape[2:]))
            yield (
                "d weighted_losses / dlogits",
                lambda z, t=weights, u=u: (u * code.weighted_losses(z, t)).sum(), logits,
                code.weighted_losses_backward(u, logits, weights),
            )  # fmt: skip


CROSS_ENTROPY = Exercise(
    name="cross_entropy",
    title="softmax and cross-entropy in one, and the gradient",
    difficulty=2,
    module="loss",
    parts={
        "weighted_losses": Part(
            _cases, ("losses",),
            ("Subtract the largest logit before anything is exponentiated.",
             "Take no logarithm of a probability: log p = z - max z - log(sum).",
             "A class of weight 0 adds nothing, even where its logit is -inf: 0 times inf is NaN."),
        ),
        "weighted_losses_backward": Part(
            _backward_cases, ("dlogits",),
            ("The weights of a sample need not sum to 1: how often does the softmax count?",),
        ),
    },
    slopes=_slopes,
    mistakes=(
        Mistake(
            "what comes out when exp overflows: subtract the largest logit first.",
            {"logits - logits.max(axis=1, keepdims=True)": "logits"},
        ),
        Mistake(
            "what comes out of 0 times inf for a class of weight 0.",
            {"np.where(weights == 0, logits.dtype.type(0), log_total - shifted)":
             "(log_total - shifted)"},
        ),
        Mistake(
            "the mean over the classes: the loss is a sum.",
            {"return terms.sum(axis=1)": "return terms.mean(axis=1)"},
        ),
        Mistake(
            "the log-probability: the loss is its negative.",
            {"return terms.sum(axis=1)": "return -terms.sum(axis=1)"},
        ),
        Mistake(
            "softmax minus weights where weights do not sum to 1: the softmax counts sum(t) times.",
            {"softmax * weights.sum(axis=1, keepdims=True) - weights": "softmax - weights"},
        ),
        Mistake(
            "what comes out without the gradient that comes in.",
            {"np.expand_dims(grad, 1) * (softmax": "(softmax"},
        ),
        Mistake(
            "weights minus softmax: the loss falls where the right logit grows.",
            {"softmax * weights.sum(axis=1, keepdims=True) - weights":
             "weights - softmax * weights.sum(axis=1, keepdims=True)"},
        ),
    ),
)  # fmt: skip

EXERCISES = (CROSS_ENTROPY,)
