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

from numba import get_thread_id, njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, VECTOR_BYTES, Emitter
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

# Elements of a piece that is streamed: reading, computing and writing take turns often enough to
# overlap. And of one that is not: enough to hide its start, few enough to share out a small layer.
PIECE, _LONG_PIECE = 1 << 10, 1 << 14
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
    shape = (num_threads(), PIECE) if past_caches(result, *operands) else (0, _LONG_PIECE)
    return workspace("landings", shape, result.dtype)


@njit(inline="always")
def landing(y, start, stop, scratch):
    """Where y[start:stop], a piece at most, is to be computed; `scratch`: `landings`."""
    return scratch[get_thread_id(), : stop - start] if scratch.size else y[start:stop]


@njit(inline="always")
def settle(y, start, computed, scratch):
    """Bring what was computed in a `landing` to y[start:]."""
    if scratch.size:
        stream(y, start, computed, 0, computed.size)


@intrinsic
def stream(_, target, target0, source, source0, length):
    """target[target0 : target0 + length] = source[source0 : source0 + length], past the caches."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        target, source, length = e.pointer(0, args[1]), e.pointer(2, args[3]), args[4]
        size = INT(e.size(e.real))

        def copy(first, count):
            """Single elements, which share their vector with what lies beside the target."""

            def element(i, _):
                place = builder.add(first, i)
                builder.store(e.load(source, place), builder.gep(target, [place]))
                return []

            e.loop(count, INT(1), [], element)

        address = builder.ptrtoint(target, INT)
        before = builder.and_(builder.neg(address), INT(VECTOR_BYTES - 1))
        before = e.smaller(builder.udiv(before, size), length)
        copy(INT(0), before)
        rest = builder.sub(length, before)
        whole = builder.and_(rest, INT(-e.lanes))
        aligned, values = builder.gep(target, [before]), builder.gep(source, [before])

        def vector(i, _):
            e.stream_vector(e.load_vector(values, i), aligned, i)
            return []

        e.loop(whole, INT(e.lanes), [], vector)
        copy(builder.add(before, whole), builder.sub(rest, whole))
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
