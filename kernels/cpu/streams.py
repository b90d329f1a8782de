"""Writing results past the caches, where they are too large to be found there by the next kernel.

A store into memory that no cache holds reads its line first, since it may be but a part of it. For
a kernel that only waits for memory that read is one third of all it does, or one half. A
**non-temporal** store gathers a whole line beside the caches and sends it off without the read. But
then the line is not in the cache either, which is a loss where the next kernel would have found it:
so only results of kernels whose arrays together exceed the last cache are written like that. Much
of them is gone from it in any case when the next kernel begins with their first elements.

Kernels compute a piece of a result in its `landing`: in the result itself or, where that is
streamed, in scratch memory that stays in a first cache. Then they `settle` it.

Other threads see streamed stores in any order until the thread executes a locked instruction. Those
that end a parallel loop do.
"""

import numpy as np
from llvmlite import ir
from numba import get_thread_id, njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, VECTOR_BYTES, Emitter
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

# Elements of a piece that is streamed: reading, computing and writing take turns often enough to
# overlap. And of one that is not: enough to hide its start, few enough to share out a small layer.
PIECE, LONG_PIECE = 1 << 10, 1 << 14
# Elements from what is read to what is fetched: memory's latency, and far less than a second cache.
_AHEAD = 1 << 12
# Bytes of all arrays of a kernel: twice a usual last cache, or one's share of a larger one. Up to
# there the cache still holds a part of them from one kernel to the next.
_CACHED = 64 << 20


def past_caches(*arrays) -> bool:
    """Whether the results of a kernel should be streamed; `arrays`: its operands and results."""
    return sum(array.nbytes for array in arrays) > _CACHED


def landings(result, *operands):
    """Scratch memory (threads, elements of a piece) for a result; no rows if it is not streamed."""
    if past_caches(result, *operands):
        return workspace("landings", (num_threads(), PIECE), result.dtype)
    return np.empty((0, LONG_PIECE), result.dtype)


@njit(inline="always")
def landing(y, start, stop, scratch):
    """Where y[start:stop], a piece at most, is to be computed; `scratch`: `landings`."""
    return scratch[get_thread_id(), : stop - start] if scratch.size else y[start:stop]


@njit(inline="always")
def settle(y, start, computed, scratch):
    """Bring what was computed in a `landing` to y[start:]."""
    if scratch.size:
        stream(y, start, computed, 0, computed.size)


def write(e, targets, length, past, vectors, compute, head=None):
    """Instructions, of an `Emitter`: targets[i][p] = the p-th value of compute's i-th, p < length.

    compute(place, load) gives, for each target, `vectors` vectors from element number `place` on;
    it must load what it needs by load(pointer, v), vector v from `place` on. A target whose flag in
    `past` is set is written past the caches, if it lies as vectors do behind the first `head`
    elements: `before_line`, or none. All vectors are loaded first and stored in one go then, since
    a memory that takes turns of reading and writing for every vector is half as fast.
    """
    builder, step = e.builder, INT(vectors * e.lanes)
    head = INT(0) if head is None else head
    past = [
        builder.and_(flag, _aligned(e, builder.gep(target, [head])))
        for flag, target in zip(past, targets, strict=True)
    ]

    def places(place):
        return [builder.add(place, INT(v * e.lanes)) for v in range(vectors)]

    def some(start, stop):
        def block(p, _):
            place = builder.add(start, p)
            spots = places(place)
            inside = [e.below(builder.sub(stop, place), v * e.lanes) for v in range(vectors)]
            results = compute(place, lambda pointer, v: e.load_some(pointer, spots[v], inside[v]))
            for target, values in zip(targets, results, strict=True):
                for spot, flags, value in zip(spots, inside, values, strict=True):
                    e.store_some(value, target, spot, flags)
            return []

        e.loop(builder.sub(stop, start), step, [], block)

    def whole(p, _):
        place = builder.add(head, p)
        spots = places(place)
        results = compute(place, lambda pointer, v: e.load_vector(pointer, spots[v]))
        for target, values, streamed in zip(targets, results, past, strict=True):
            e.put_vectors(values, target, place, streamed)
        return []

    some(INT(0), head)
    end = builder.add(head, builder.and_(builder.sub(length, head), builder.neg(step)))
    e.loop(builder.sub(end, head), step, [], whole)
    some(end, length)


def before_line(e, pointer, length, past):
    """How many of `length` elements lie before the first place of a vector; 0 unless `past`."""
    address = e.builder.ptrtoint(pointer, INT)
    size = e.builder.and_(e.builder.neg(address), INT(VECTOR_BYTES - 1))
    count = e.smaller(e.builder.udiv(size, INT(e.size(e.real))), length)
    return e.builder.select(past, count, INT(0))


def _aligned(e, pointer):
    rest = e.builder.and_(e.builder.ptrtoint(pointer, INT), INT(VECTOR_BYTES - 1))
    return e.builder.icmp_unsigned("==", rest, INT(0))


@intrinsic
def stream(_, target, target0, source, source0, length):
    """target[target0 : target0 + length] = source[source0 : source0 + length], past the caches."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        target, source, length = e.pointer(0, args[1]), e.pointer(2, args[3]), args[4]
        past = ir.IntType(1)(1)
        head = before_line(e, target, length, past)
        write(e, [target], length, [past], 1, lambda _, load: [[load(source, 0)]], head)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(target, integer, source, integer, integer), emit


@intrinsic
def fetch(_, x, x0, length):
    """Fetch x[x0 : x0 + length] into the second cache."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        e.prefetch(e.pointer(0, args[1]), args[2])
        return context.get_dummy_value()

    return types.void(x, types.int64, types.int64), emit


@njit(inline="always")
def fetch_ahead(x, x0, length):
    """Fetch what comes in some time, where x[x0 : x0 + length] is read now."""
    ahead = x0 + _AHEAD
    fetch(x, ahead, min(length, x.size - ahead))
