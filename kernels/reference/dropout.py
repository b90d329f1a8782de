"""Inverted dropout (Srivastava et al. 2014) with a mask that is computed, not stored.

The mask is a pure function of (seed, step, element index) through the counter-based generator
Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
2011, section 3.2). Any thread, on any backend, computes any element of it on its own, and backward
replays it. Element i is word i % 4 of the generator's block i // 4:

    key = (seed low, seed high)    counter = (block low, block high, step low, step high)

and is kept where that 32-bit word is at least floor(p 2^32).
"""

import math

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
ROUNDS = 10


def philox4x32(counter, key):
    """The four output words: counter, four arrays, and key, two integers, all of 32 bits.

    Words are held in uint64 arrays, so that the 64-bit product of two of them is exact.
    """
    x0, x1, x2, x3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (product1 >> _HALF) ^ x1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ x3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return x0, x1, x2, x3


def check_dropout(p, seed, step) -> int:
    """The threshold floor(p 2^32); ValueError for p outside [0, 1) or a counter beyond 64 bits."""
    if not 0 <= p < 1:
        raise ValueError(f"p must be in [0, 1), got {p}")
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} must be in [0, 2**64), got {value}")
    return math.floor(p * 2**32)


def dropout_mask(shape, p, seed, step):
    """Boolean array of `shape`, True where an element is kept (probability 1 - p)."""
    threshold = check_dropout(p, seed, step)
    size = math.prod(shape)
    block = np.arange((size + 3) // 4, dtype=np.uint64)
    step_words = np.uint64(step & 0xFFFFFFFF), np.uint64(step >> 32)
    counter = (block & _LOW, block >> _HALF, *step_words)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return (np.stack(words, axis=-1).reshape(-1)[:size] >= np.uint64(threshold)).reshape(shape)


def dropout(x, p, seed, step):
    """x / (1 - p) where the mask keeps, else 0, in x's dtype; on dy it is its own backward."""
    scale = x.dtype.type(1 / (1 - p))
    return np.where(dropout_mask(x.shape, p, seed, step), x * scale, x.dtype.type(0))
