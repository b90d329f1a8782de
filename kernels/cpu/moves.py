"""Copies of stretches of memory, and fetches, for kernels of flat arrays.

Written as the tiles of kernels.cpu.simd are, and like them without a check of bounds.
"""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, Emitter


@intrinsic
def prefetch(_, x, x0, offsets, first, stop, length):
    """Fetch x[x0 + offsets[k] : ][: length] into the second cache, for first <= k < stop."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        pixels, steps = e.pointer(0, args[1]), e.pointer(2, args[3])

        def row(k, _):
            e.prefetch(builder.gep(pixels, [e.load(steps, k)]), args[5])
            return []

        e.loop(builder.sub(args[4], args[3]), INT(1), [], row)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(x, integer, offsets, integer, integer, integer), emit


@intrinsic
def copy(_, target, target0, source, source0, length):
    """target[target0 : target0 + length] = source[source0 : source0 + length], of one dtype."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        size = builder.mul(args[4], INT(e.size(e.real)))
        cgutils.raw_memcpy(
            builder, e.pointer(0, args[1]), e.pointer(2, args[3]), size, 1, align=1
        )
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), emit


@intrinsic
def copy_halved(_, target, target0, source, source0, length):
    """target[target0 + i] = source[source0 + 2 i] for i < length; nothing else is touched."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        result, values, length = e.pointer(0, args[1]), e.pointer(2, args[3]), args[4]
        evens = list(range(0, 2 * e.lanes, 2))

        def body(i, _):
            rest = builder.sub(length, i)
            reach = builder.sub(builder.mul(rest, INT(2)), INT(1))
            start = builder.mul(i, INT(2))
            low = e.load_some(values, start, e.below(reach))
            high = e.load_some(values, builder.add(start, INT(e.lanes)), e.below(reach, e.lanes))
            e.store_some(e.shuffled(low, high, evens), result, i, e.below(rest))
            return []

        e.loop(length, INT(e.lanes), [], body)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), emit


@intrinsic
def copy_rows(_, target, target0, target_pitch, source, source0, source_pitch, rows, length):
    """target[target0 + r target_pitch + p] = source[source0 + r source_pitch + p].

    For r < rows and p < length; nothing else is read or written. Short rows, for which a call of
    `copy` takes longer than the copy, go by vectors.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        target, source = e.pointer(0, args[1]), e.pointer(3, args[4])
        whole = builder.and_(args[7], INT(-e.lanes))
        inside = e.below(builder.sub(args[7], whole))

        def row(r, _):
            to = builder.gep(target, [builder.mul(r, args[2])])
            of = builder.gep(source, [builder.mul(r, args[5])])

            def vector(p, _):
                e.store_vector(e.load_vector(of, p), to, p)
                return []

            e.loop(whole, INT(e.lanes), [], vector)
            e.store_some(e.load_some(of, whole, inside), to, whole, inside)
            return []

        e.loop(args[6], INT(1), [], row)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(
        target, integer, integer, source, integer, integer, integer, integer
    ), emit
