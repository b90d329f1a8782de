"""Inverted dropout with a mask that is a function of (seed, step, element index).

    y_i = x_i / (1 - p) where element i is kept, else 0        P(kept) = 1 - p

The mask is not stored: whoever knows (p, seed, step) can compute it again, on any backend and in
any order. Element i of the array in C order takes word i mod 4 of Philox's block i // 4, 32 random
bits, and is kept where that word is at least floor(2^32 p).

**Philox** turns a counter into random bits, so that there is no state to advance. Of its four
words two are multiplied by constants into 64 bits, whose high halves are mixed with the other two
words and the key; ten rounds do so, and the key moves on by the golden ratio and sqrt(3) - 1.

Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting"
(2014), section 10; Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), section 3.3 and table 2, Philox4x32-10.
"""

import math

import numpy as np

from kernels.geometry import check_dtypes

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox4x32(counter, key, rounds=ROUNDS):
    """Four random words (uint32 arrays) from a counter of four words and a key of two.

    The counter's words are uint64 arrays or integers below 2^32, broadcast together. Fewer rounds
    than the ten of the definition show how the words are mixed.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    low, half = np.uint64(_LOW), np.uint64(32)
    for turn in range(rounds):
        steps = zip(key, KEY_STEPS, strict=True)
        k0, k1 = (np.uint64((k + turn * step) & _LOW) for k, step in steps)
        product0 = c0 * np.uint64(MULTIPLIERS[0])
        product1 = c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (product1 >> half) ^ c1 ^ k0,
            product1 & low,
            (product0 >> half) ^ c3 ^ k1,
            product0 & low,
        )
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def dropout_mask(shape, p, seed, step):
    """The boolean mask of `shape` that `dropout` applies: True where an element is kept.

    Raises ValueError for p outside [0, 1), seed or step outside [0, 2^64).
    """
    check_dropout(p, seed, step)
    size = math.prod(shape)
    block = np.arange(-(-size // 4), dtype=np.uint64)
    counter = (block & np.uint64(_LOW), block >> np.uint64(32), step & _LOW, step >> 32)
    words = np.stack(philox4x32(counter, (seed & _LOW, seed >> 32)), axis=-1)
    return (words.reshape(-1)[:size] >= drop_below(p)).reshape(shape)


def dropout(x, p, seed, step):
    """x / (1 - p) where `dropout_mask` is True, else 0; of any shape. Its own gradient, by dy.

    Raises as `dropout_mask`, and TypeError for other than float32 and float64.
    """
    check_dtypes(x=x)
    mask = dropout_mask(x.shape, p, seed, step)
    return np.where(mask, x * x.dtype.type(1 / (1 - p)), x.dtype.type(0))


def drop_below(p) -> np.uint32:
    """The first word that keeps its element: floor(2^32 p)."""
    return np.uint32(math.floor(p * 2**32))


def check_dropout(p, seed, step) -> None:
    """ValueError unless p is in [0, 1) and seed and step are unsigned 64-bit numbers."""
    if not 0 <= p < 1:
        raise ValueError(f"p must be in [0, 1), got {p}")
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} must be in [0, 2**64), got {value}")
