"""Dropout on all cores: every block of four elements computes its own random words.

The definition of the mask stands in kernels.reference.dropout.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, VECTOR_BYTES, Emitter
from kernels.cpu.planes import flat
from kernels.cpu.streams import past_caches, write
from kernels.cpu.tasks import chunk_bounds
from kernels.cpu.workspace import empty
from kernels.reference.dropout import KEY_STEPS, MULTIPLIERS, ROUNDS, check_dropout, drop_below

# Elements of a task: a power of two, so that all its blocks share the upper half of their numbers.
_PIECE = 1 << 14
# Blocks, one to a 64-bit lane, and vectors of them on the way at a time: a product that is not yet
# there does not hold up the others.
_LANES = VECTOR_BYTES // 8
_VECTORS = 4
_WORD, _HALF = ir.IntType(32), INT(32)


class _Philox(Emitter):
    """Philox of many blocks at a time, a word of each to a 64-bit lane.

    Only the lower half of a lane counts, which is all that a product of 32 by 32 bits looks at:
    the upper may hold what it likes, so that a round is two products, two shifts and two sums of
    three without carry.
    """

    halves = ir.VectorType(_WORD, 2 * _LANES)

    def spread(self, value):
        """A 64-bit number in every lane."""
        return self.splat(value, _LANES)

    def numbers(self, first):
        """first, first + 1, ..."""
        return ir.Constant(ir.VectorType(INT, _LANES), list(range(first, first + _LANES)))

    def keys(self, seed):
        """The two words of the key in every round, spread."""
        low = INT(0xFFFFFFFF)
        words = self.builder.and_(seed, low), self.builder.lshr(seed, _HALF)
        return [
            [
                self.spread(self.builder.and_(self.builder.add(word, INT(turn * step)), low))
                for word, step in zip(words, KEY_STEPS, strict=True)
            ]
            for turn in range(ROUNDS)
        ]

    def pairs(self, counter, keys):
        """The words of all blocks: vectors of (second, first) and of (fourth, third) in a lane."""
        builder, half = self.builder, self.spread(_HALF)
        for k0, k1 in keys[:-1]:
            counter = [self._mixed(words, k0, k1) for words in counter]
        # At last both halves of a lane: the lower of a product is a word as it is.
        k0, k1 = (builder.bitcast(builder.shl(key, half), self.halves) for key in keys[-1])
        results = []
        for x0, x1, x2, x3 in counter:
            product0, product1 = self._product(x0, 0), self._product(x2, 1)
            for product, word, key in ((product1, x1, k0), (product0, x3, k1)):
                mixed = builder.xor(builder.bitcast(product, self.halves), self._raised(word))
                results.append(builder.xor(mixed, key))
        return results

    def _raised(self, words):
        """The lower half of every lane in the upper, below it 0; as a shift would be, which the
        compiler would make part of a product of 64 bits."""
        order = [place for lane in range(_LANES) for place in (2 * _LANES, 2 * lane)]
        words = self.builder.bitcast(words, self.halves)
        return self.shuffled(words, ir.Constant(self.halves, None), order)

    def _mixed(self, words, k0, k1):
        builder, half = self.builder, self.spread(_HALF)
        x0, x1, x2, x3 = words
        product0, product1 = self._product(x0, 0), self._product(x2, 1)
        x0 = builder.xor(builder.xor(builder.lshr(product1, half), x1), k0)
        x2 = builder.xor(builder.xor(builder.lshr(product0, half), x3), k1)
        return x0, product1, x2, product0

    def _product(self, word, number):
        low = self.spread(INT(0xFFFFFFFF))
        factor = self.spread(INT(MULTIPLIERS[number]))
        return self.builder.mul(self.builder.and_(word, low), factor)

    def words(self, counter, keys):
        """The same as vectors of words, block after block."""
        pairs = self.pairs(counter, keys)
        order = [
            2 * block + word
            for block in range(_LANES)
            for word in (1, 0, 2 * _LANES + 1, 2 * _LANES)
        ]
        return [
            self.shuffled(*pairs[i : i + 2], order[start : start + 2 * _LANES])
            for i in range(0, len(pairs), 2)
            for start in (0, 2 * _LANES)
        ]


@intrinsic
def _drop(_, x, y, block, scale, threshold, seed, step, past):
    """y = x scale where a word is at least the threshold, else 0; the first is one of `block`'s.

    All blocks must have the upper half of their numbers in common. `past`: past the caches.
    """

    def emit(context, builder, signature, args):
        e = _Philox(context, builder, signature, args)
        source, target = e.pointer(0), e.pointer(1)
        (length,) = e.shape(1)
        factor, nothing = e.splat(args[3]), e.constant(0.0)
        least = e.splat(args[4], 2 * _LANES)
        keys = e.keys(args[5])
        upper, *steps = (
            e.spread(word)
            for word in (
                builder.lshr(args[2], _HALF), builder.and_(args[6], INT(0xFFFFFFFF)),
                builder.lshr(args[6], _HALF),
            )
        )  # fmt: skip
        lower = builder.and_(args[2], INT(0xFFFFFFFF))

        def compute(place, load):
            first = e.spread(builder.add(lower, builder.udiv(place, INT(4))))
            counters = [
                (builder.add(first, e.numbers(v * _LANES)), upper, *steps) for v in range(_VECTORS)
            ]
            flags = [builder.icmp_unsigned(">=", words, least) for words in e.words(counters, keys)]
            kept = [
                e.shuffled(some, some, list(range(start, start + e.lanes)))
                for some in flags
                for start in range(0, 2 * _LANES, e.lanes)
            ]
            return [
                [
                    builder.select(keep, builder.fmul(load(source, v), factor), nothing)
                    for v, keep in enumerate(kept)
                ]
            ]

        write(e, [target], length, [args[7]], 4 * _LANES * _VECTORS // e.lanes, compute)
        return context.get_dummy_value()

    return types.void(
        x, y, types.uint64, x.dtype, types.uint32, types.uint64, types.uint64, types.boolean
    ), emit


@njit(parallel=True, cache=True)
def _mask(kept, threshold, seed, step):
    for chunk in prange((kept.size + _PIECE - 1) // _PIECE):
        start, stop = chunk_bounds(chunk, _PIECE, kept.size)
        ones, target = np.ones(stop - start, np.float32), kept[start:stop]
        _drop(ones, ones, start // 4, np.float32(1), threshold, seed, step, False)
        for i in range(target.size):
            target[i] = ones[i] != 0


@njit(parallel=True, cache=True)
def _dropout(x, scale, threshold, seed, step, y, past):
    for chunk in prange((x.size + _PIECE - 1) // _PIECE):
        start, stop = chunk_bounds(chunk, _PIECE, x.size)
        _drop(x[start:stop], y[start:stop], start // 4, scale, threshold, seed, step, past)


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
    seed, step = np.uint64(seed), np.uint64(step)
    _dropout(flat(x), scale, drop_below(p), seed, step, flat(y), past_caches(x, y))
    return y
