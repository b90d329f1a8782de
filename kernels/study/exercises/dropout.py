"""Exercises: dropout and the random bits behind it."""

import numpy as np

from kernels.study.exercises.model import Exercise, Mistake, Part, arrays


def _dropout_cases(draw):
    for dtype in (np.float64, np.float32):
        for shape, p in (((4, 5), 0.3), ((2, 3, 4, 5), 0.5), ((7,), 0.0), ((1, 9), 0.8)):
            seed, step = (int(n) for n in draw.integers(0, 2**63, 2))
            yield {"x": arrays(draw, dtype, shape)[0], "p": p, "seed": seed, "step": step}


def _dropout_slopes(code, draw):
    x, u = arrays(draw, np.float64, (3, 5), (3, 5))
    options = {"p": 0.4, "seed": 3, "step": 8}
    yield (
        "d dropout / dx",
        lambda x: (u * code.dropout(x, **options)).sum(), x, code.dropout(u, **options),
    )  # fmt: skip


DROPOUT = Exercise(
    name="dropout",
    title="inverted dropout with a given mask",
    difficulty=1,
    module="dropout",
    given=("dropout_mask",),
    parts={
        "dropout": Part(
            _dropout_cases, ("y",),
            ("dropout_mask(shape, p, seed, step) is True where an element is kept.",
             "The expected value of y is x: so nothing is left to do in evaluation.",
             "Divide in x's dtype."),
        ),
    },
    slopes=_dropout_slopes,
    mistakes=(
        Mistake(
            "what comes out when the kept elements stay as they are: divide them by 1 - p.",
            {"x * x.dtype.type(1 / (1 - p))": "x"},
        ),
        Mistake(
            "what comes out when they are multiplied by 1 - p: divide by it.",
            {"x.dtype.type(1 / (1 - p))": "x.dtype.type(1 - p)"},
        ),
        Mistake(
            "what comes out when the kept elements are dropped: the mask is True where to keep.",
            {"np.where(mask, ": "np.where(~mask, "},
        ),
        Mistake(
            "what comes out when p is taken for the probability of keeping.",
            {"x.dtype.type(1 / (1 - p))": "x.dtype.type(1 / max(p, 1e-300))"},
        ),
        Mistake(
            "what comes out when the mask is drawn for another step: use `step` as it is.",
            {"dropout_mask(x.shape, p, seed, step)": "dropout_mask(x.shape, p, seed, step + 1)"},
        ),
    ),
)  # fmt: skip


def _philox_cases(draw):
    for _ in range(3):
        counter = tuple(draw.integers(0, 2**32, 5, dtype=np.uint64) for _ in range(4))
        yield {"counter": counter, "key": tuple(int(n) for n in draw.integers(0, 2**32, 2))}


def _mask_cases(draw):
    for shape, p in (((4, 5), 0.3), ((2, 3, 3), 0.5), ((7,), 0.9), ((1,), 0.1), ((100,), 0.25)):
        seed, step = (int(n) for n in draw.integers(0, 2**63, 2))
        yield {"shape": shape, "p": p, "seed": seed, "step": step}


MASK = Exercise(
    name="dropout_mask",
    title="Philox, and the mask of dropout from a counter",
    difficulty=3,
    module="dropout",
    given=("KEY_STEPS", "MULTIPLIERS", "ROUNDS", "drop_below"),
    parts={
        "philox4x32": Part(
            _philox_cases, ("w0", "w1", "w2", "w3"),
            ("A round, from (c0, c1, c2, c3): multiply c0 and c2 by the MULTIPLIERS into 64 bits, "
             "and return (high half of c2's product ^ c1 ^ k0, its low half, high half of c0's "
             "product ^ c3 ^ k1, its low half).",
             "The key moves on by KEY_STEPS after every round, modulo 2^32, not before the first.",
             "uint64 holds the products; uint32 is what is returned."),
        ),
        "dropout_mask": Part(
            _mask_cases, ("mask",),
            ("The counter of a block: its number's low and high 32 bits, then the step's.",
             "The key: the seed's low and high 32 bits.",
             "The words of a block belong to four elements in a row; the last block may be cut."),
        ),
    },
    mistakes=(
        Mistake(
            "what comes out when the key moves on before the first round.",
            {"(k + turn * step) & _LOW": "(k + (turn + 1) * step) & _LOW"},
        ),
        Mistake("what comes out when the key never moves on.",
                {"(k + turn * step) & _LOW": "k & _LOW"}),
        Mistake("what comes out after nine rounds.", {"ROUNDS = 10\n": "ROUNDS = 9\n"}),
        Mistake(
            "what comes out when the multipliers are exchanged.",
            {"c0 * np.uint64(MULTIPLIERS[0])": "c0 * np.uint64(MULTIPLIERS[1])",
             "c2 * np.uint64(MULTIPLIERS[1])": "c2 * np.uint64(MULTIPLIERS[0])"},
        ),
        Mistake(
            "what comes out when the first words of all blocks come first: words of one block lie "
            "side by side.",
            {"axis=-1": "axis=0"},
        ),
        Mistake(
            "the elements that are to be dropped: an element is kept where its word is at least "
            "drop_below(p).",
            {">= drop_below(p)": "< drop_below(p)"},
        ),
        Mistake(
            "what comes out when seed and step change places.",
            {"step & _LOW, step >> 32)": "seed & _LOW, seed >> 32)",
             "(seed & _LOW, seed >> 32)), axis": "(step & _LOW, step >> 32)), axis"},
        ),
    ),
)  # fmt: skip

EXERCISES = (DROPOUT, MASK)
