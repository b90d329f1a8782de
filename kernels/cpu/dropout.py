"""Dropout on all cores: every block of four elements computes its own random words.

The definition of the mask stands in kernels.reference.dropout.
"""

import math

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import chunk_bounds
from kernels.cpu.workspace import empty
from kernels.reference.dropout import ROUNDS, check_dropout, drop_below

_CHUNK_BLOCKS = 1 << 11


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


@njit(parallel=True, cache=True)
def _mask(kept, threshold, seed, step):
    size = kept.size
    blocks = (size + 3) // 4
    for chunk in prange((blocks + _CHUNK_BLOCKS - 1) // _CHUNK_BLOCKS):
        start, stop = chunk_bounds(chunk, _CHUNK_BLOCKS, blocks)
        for block in range(start, stop):
            words = _philox(np.uint64(block), step, seed)
            for k in range(min(4, size - 4 * block)):
                kept[4 * block + k] = words[k] >= threshold


@njit(parallel=True, cache=True)
def _dropout(x, scale, threshold, seed, step, y):
    zero = x.dtype.type(0)
    size = x.size
    blocks = (size + 3) // 4
    for chunk in prange((blocks + _CHUNK_BLOCKS - 1) // _CHUNK_BLOCKS):
        start, stop = chunk_bounds(chunk, _CHUNK_BLOCKS, blocks)
        for block in range(start, stop):
            words = _philox(np.uint64(block), step, seed)
            for k in range(min(4, size - 4 * block)):
                i = 4 * block + k
                y[i] = x[i] * scale if words[k] >= threshold else zero


def dropout_mask(shape, p, seed, step):
    """See kernels.reference.dropout_mask."""
    check_dropout(p, seed, step)
    threshold = drop_below(p)
    kept = empty((math.prod(shape),), bool)
    _mask(kept, np.uint64(threshold), np.uint64(seed), np.uint64(step))
    return kept.reshape(shape)


def dropout(x, p, seed, step):
    """See kernels.reference.dropout."""
    check_dropout(p, seed, step)
    threshold = drop_below(p)
    y = empty(x.shape, x.dtype)
    scale = x.dtype.type(1 / (1 - p))
    words = np.uint64(threshold), np.uint64(seed), np.uint64(step)
    _dropout(np.ascontiguousarray(x).reshape(-1), scale, *words, y.reshape(-1))
    return y
