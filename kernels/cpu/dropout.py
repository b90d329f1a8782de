"""Dropout on all cores: every block of four elements computes its own random words.

The definition of the mask stands in kernels.reference.dropout.
"""

import math

import numpy as np
from numba import njit, prange

from kernels.cpu.streams import PIECE, landing, landings, settle
from kernels.cpu.tasks import chunk_bounds
from kernels.cpu.workspace import empty
from kernels.reference.dropout import ROUNDS, check_dropout, drop_below

_BLOCKS = PIECE // 4  # a task


@njit(inline="always")
def _philox(block, step, seed):
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, x2, x3 = block & low, block >> half, step & low, step >> half
    k0, k1 = seed & low, seed >> half
    for _ in range(ROUNDS):
        product0 = np.uint64(0xD2511F53) * x0
        product1 = np.uint64(0xCD9E8D57) * x2
        x0 = (product1 >> half) ^ x1 ^ k0
        x1 = product1 & low
        x2 = (product0 >> half) ^ x3 ^ k1
        x3 = product0 & low
        k0 = (k0 + np.uint64(0x9E3779B9)) & low
        k1 = (k1 + np.uint64(0xBB67AE85)) & low
    return x0, x1, x2, x3


@njit(inline="always")
def _draw(words, first, blocks, step, seed):
    """The words of some blocks, one after the other.

    They are written down before they are used: so the loop has neither branches nor an end of its
    own, and the compiler computes as many blocks at a time as 64-bit numbers fit a vector.
    """
    for b in range(blocks):
        w0, w1, w2, w3 = _philox(np.uint64(first + b), step, seed)
        words[4 * b] = w0
        words[4 * b + 1] = w1
        words[4 * b + 2] = w2
        words[4 * b + 3] = w3


@njit(parallel=True, cache=True)
def _mask(kept, threshold, seed, step):
    blocks = (kept.size + 3) // 4
    for chunk in prange((blocks + _BLOCKS - 1) // _BLOCKS):
        start, stop = chunk_bounds(chunk, _BLOCKS, blocks)
        words = np.empty(PIECE, np.uint32)
        _draw(words, start, stop - start, step, seed)
        target = kept[4 * start : 4 * stop]
        for i in range(target.size):
            target[i] = words[i] >= threshold


@njit(parallel=True, cache=True)
def _dropout(x, scale, threshold, seed, step, y, scratch):
    zero = x.dtype.type(0)
    blocks = (x.size + 3) // 4
    for chunk in prange((blocks + _BLOCKS - 1) // _BLOCKS):
        start, stop = chunk_bounds(chunk, _BLOCKS, blocks)
        first, last = 4 * start, min(4 * stop, x.size)
        words = np.empty(PIECE, np.uint32)
        _draw(words, start, stop - start, step, seed)
        source, target = x[first:last], landing(y, first, last, scratch)
        for i in range(target.size):
            target[i] = source[i] * scale if words[i] >= threshold else zero
        settle(y, first, target, scratch)


def dropout_mask(shape, p, seed, step):
    """See kernels.reference.dropout_mask."""
    check_dropout(p, seed, step)
    kept = empty((math.prod(shape),), bool)
    _mask(kept, drop_below(p), np.uint64(seed), np.uint64(step))
    return kept.reshape(shape)


def dropout(x, p, seed, step):
    """See kernels.reference.dropout."""
    check_dropout(p, seed, step)
    y = empty(x.shape, x.dtype)
    scale = x.dtype.type(1 / (1 - p))
    flat, seed, step = np.ascontiguousarray(x).reshape(-1), np.uint64(seed), np.uint64(step)
    _dropout(flat, scale, drop_below(p), seed, step, y.reshape(-1), landings(y, x))
    return y
