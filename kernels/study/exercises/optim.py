"""Exercises: the steps of optimisers, which write to their arguments."""

import numpy as np

from kernels.study.exercises.model import Exercise, Mistake, Part, arrays

_SGD = (
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.3},
    {"lr": 0.2, "momentum": 0.5, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.8, "nesterov": True},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
)


def _sgd_cases(draw):
    for dtype in (np.float64, np.float32):
        for settings in _SGD:
            values, gradient, velocity = arrays(draw, dtype, *[(3, 4)] * 3)
            velocity = velocity if "momentum" in settings else None
            yield {"values": values, "gradient": gradient, "velocity": velocity, **settings}


SGD = Exercise(
    name="sgd",
    title="a step of SGD with momentum, Nesterov's too",
    difficulty=1,
    module="optim",
    parts={
        "sgd_step": Part(
            _sgd_cases, ("values", "velocity"),
            ("Write to values and velocity with +=, -=, *=: `values = ...` would only move a name.",
             "The gradient is not yours to change."),
            writes=("values", "velocity"),
        ),
    },
    mistakes=(
        Mistake("what comes out uphill: a step goes against the gradient.",
                {"values -= lr * gradient": "values += lr * gradient"}),
        Mistake(
            "what comes out when `values` stays as it was: `values = values - ...` makes a new "
            "array, `values -= ...` writes to this one.",
            {"values -= lr * gradient": "values - lr * gradient"},
        ),
        Mistake(
            "a running mean, (1 - momentum) times the gradient: here the gradient enters whole.",
            {"velocity += gradient": "velocity += (1 - momentum) * gradient"},
        ),
        Mistake(
            "what comes out when `velocity` stays as it was: it remembers from step to step.",
            {"        velocity *= momentum\n        velocity += gradient\n":
             "        velocity = momentum * velocity + gradient\n"},
        ),
        Mistake("what comes out without weight decay.",
                {"gradient = gradient + weight_decay * values": "pass"}),
        Mistake(
            "what comes out when the decay has the wrong sign: it pulls the values to 0.",
            {"gradient + weight_decay * values": "gradient - weight_decay * values"},
        ),
        Mistake(
            "what comes out when nesterov is ignored: its step is g + momentum v.",
            {"gradient + momentum * velocity if nesterov else velocity": "velocity"},
        ),
        Mistake(
            "Caffe's form, with the rate in the velocity: here it multiplies the step alone.",
            {"velocity += gradient\n": "velocity += lr * gradient\n",
             "values -= lr * gradient\n": "values -= gradient if velocity is not None else "
             "lr * gradient\n",
             "gradient = gradient + momentum * velocity if":
             "gradient = lr * gradient + momentum * velocity if"},
        ),
    ),
)  # fmt: skip

_ADAM = (
    {"step": 1},
    {"step": 7},
    {"step": 3, "weight_decay": 0.2},
    {"step": 4, "weight_decay": 0.2, "decoupled": True},
)


def _adam_cases(draw):
    for dtype in (np.float64, np.float32):
        for settings in _ADAM:
            values, gradient, mean, square = arrays(draw, dtype, *[(3, 4)] * 4)
            yield {
                "values": values, "gradient": gradient, "mean": mean, "square": np.abs(square),
                "lr": 0.1, "betas": (0.8, 0.95), "eps": 0.05, **settings,
            }  # fmt: skip


ADAM = Exercise(
    name="adam",
    title="a step of Adam and of AdamW",
    difficulty=2,
    module="optim",
    parts={
        "adam_step": Part(
            _adam_cases, ("values", "mean", "square"),
            ("Corrected moments: mean / (1 - beta1^step), square / (1 - beta2^step).",
             "eps is added to the root of the corrected square.",
             "decoupled: the values shrink by lr weight_decay, and the moments see none of it."),
            writes=("values", "mean", "square"),
        ),
    },
    mistakes=(
        Mistake(
            "what comes out without the bias corrections.",
            {"rate, correction = adam_corrections(step, lr, betas)": "rate, correction = lr, 1.0"},
        ),
        Mistake(
            "what comes out when the mean alone is left uncorrected.",
            {"lr / (1 - betas[0] ** step)": "lr"},
        ),
        Mistake(
            "what comes out when the mean square gathers the gradient, not its square.",
            {"(1 - beta2) * gradient * gradient": "(1 - beta2) * gradient"},
        ),
        Mistake(
            "what comes out when decoupled decay lacks the rate: it shrinks by lr weight_decay.",
            {"values *= 1 - lr * weight_decay": "values *= 1 - weight_decay"},
        ),
        Mistake(
            "what comes out when the decay is decoupled and a penalty, both.",
            {"elif weight_decay:": "if weight_decay:"},
        ),
        Mistake(
            "what comes out when steps count from 0: `step` is 1 at the first.",
            {"correction = adam_corrections(step,": "correction = adam_corrections(step + 1,"},
        ),
        Mistake(
            "what comes out with eps inside of the root.",
            {"(square**0.5 / correction + eps)": "(square / correction**2 + eps) ** 0.5"},
        ),
        Mistake(
            "what comes out when eps is added before the correction.",
            {"(square**0.5 / correction + eps)": "((square**0.5 + eps) / correction)"},
        ),
        Mistake("what comes out when the betas are exchanged.",
                {"beta1, beta2 = betas": "beta2, beta1 = betas"}),
        Mistake(
            "what comes out when `decoupled` is ignored: the decay passes through the moments.",
            {"if decoupled:": "if False:"},
        ),
        Mistake("what comes out when the root is forgotten.",
                {"square**0.5 / correction": "square / correction"}),
        Mistake("what comes out uphill: a step goes against the gradient.",
                {"values -= rate * mean": "values += rate * mean"}),
        Mistake(
            "what comes out when `values` stays as it was: `values = values - ...` makes a new "
            "array, `values -= ...` writes to this one.",
            {"values -= rate * mean": "values - rate * mean"},
        ),
    ),
)  # fmt: skip

EXERCISES = (SGD, ADAM)
