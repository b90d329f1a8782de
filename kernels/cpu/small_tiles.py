"""Tiles of products for convolutions whose outputs are few.

As those of kernels.cpu.simd they take flat arrays with the index of the first element, and check no
bounds. They come in several shapes, chosen by number when they run.
"""

from itertools import product

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, ROWS, Emitter
from kernels.cpu.streams import write

# Outputs of a `strip_tile` at most, as registers allow with two vectors of pixels.
STRIP = 8 if ROWS == 8 else 6
# Rows and shifts of a `shift_dots` at most.
DOT_ROWS, DOT_SHIFTS = (3 if ROWS == 8 else 2), 5
# Terms that are added in one go.
_PART = 128
_VECTORS = 4  # of a `shifted_sums`, side by side
_DOT_SHAPES = tuple(product(range(1, DOT_ROWS + 1), range(1, DOT_SHIFTS + 1)))


def _strip_tile(onto):
    """The intrinsic of a tile of few outputs, alone or added `onto` what `others` hold."""

    @intrinsic
    def tile(_, w, w0, w_pitch, outputs, x, x0, x1, offsets, first, depth, y, y0, y1, y_pitch,
             inside0, inside1, scale, shift, channel, others, floor):  # fmt: skip
        """y[y0 + o y_pitch + p] = max(sum scale[channel + o] + shift[channel + o], floor), where

        sum = sum_k w[w0 + k w_pitch + o] x[x0 + offsets[first + k] + p]: for k < depth, o <
        `outputs`, at most STRIP, and p < inside0, at most the lanes; and likewise from x1 to y1.
        The image is read up to whole vectors; NaN stays NaN. `others` lie as y does.
        """

        def emit(context, builder, signature, args):
            e = Emitter(context, builder, signature, args)
            weights, moves = e.pointer(0, args[1]), e.pointer(7, args[8])
            images = [e.pointer(4, start) for start in args[5:7]]
            factors, terms = (e.pointer(i, args[18]) for i in (16, 17))
            flags = [e.below(count) for count in args[14:16]]

            def sums(outputs):
                def term(k, sums):
                    move = e.load(moves, k)
                    pixels = [e.load_vector(image, move) for image in images]
                    column = builder.gep(weights, [builder.mul(k, args[2])])
                    results = []
                    for o in range(outputs):
                        weight = e.splat(e.load(column, INT(o)))
                        for v, vector in enumerate(pixels):
                            results.append(e.fma(weight, vector, sums[2 * o + v]))
                    return results

                totals = e.in_parts(args[9], _PART, 2 * outputs, term)
                least = e.splat(args[20])
                for o in range(outputs):
                    factor, term = (e.splat(e.load(values, INT(o))) for values in (factors, terms))
                    place = builder.mul(args[13], INT(o))
                    for v, start in enumerate(args[11:13]):
                        value = e.fma(totals[2 * o + v], factor, term)
                        if onto:
                            other = e.load_some(e.pointer(19, start), place, flags[v])
                            value = builder.fadd(value, other)
                        value = e.at_least(value, least)
                        e.store_some(value, e.pointer(10, start), place, flags[v])

            number = builder.sub(args[3], INT(1))
            e.switch(number, [lambda count=count: sums(count) for count in range(1, STRIP + 1)])
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            w, integer, integer, integer, x, integer, integer, offsets, integer, integer, y,
            integer, integer, integer, integer, integer, scale, shift, integer, others, w.dtype,
        ), emit  # fmt: skip

    return tile


strip_tile, strip_tile_onto = _strip_tile(False), _strip_tile(True)


@intrinsic
def shifted_sums(_, w, w0, x, offsets, depth, y, length):
    """y[p] = sum_k w[w0 + k] x[offsets[k] + p] for k < depth and p < length; w flat."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        weights, image, moves, target = (
            e.pointer(0, args[1]), e.pointer(2), e.pointer(3), e.pointer(5)
        )  # fmt: skip

        def compute(_, load):
            def term(k, sums):
                weight = e.splat(e.load(weights, k))
                line = builder.gep(image, [e.load(moves, k)])
                return [e.fma(weight, load(line, v), total) for v, total in enumerate(sums)]

            return [e.in_parts(args[4], _PART, _VECTORS, term)]

        write(e, [target], args[6], [ir.IntType(1)(0)], _VECTORS, compute)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(w, integer, x, offsets, integer, y, integer), emit


@intrinsic
def shift_dots(_, rows, shifts, a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch):
    """y[y0 + r y_pitch + t lanes + l] += sum_k a[a0 + r a_pitch + k] x[x0 + offsets[first + t] + k]

    for r < rows, t < shifts, and those k < depth that are l modulo the lanes: the sums of a dot
    product stay apart, lane by lane. `a` and x are read up to whole vectors.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        left, image, moves, result = (
            e.pointer(array, args[start]) for array, start in ((2, 3), (5, 6), (7, 8), (10, 11))
        )

        def dots(rows, shifts):
            lines = [builder.gep(left, [builder.mul(args[4], INT(r))]) for r in range(rows)]
            shifted = [builder.gep(image, [e.load(moves, INT(t))]) for t in range(shifts)]

            def body(k, sums):
                vectors = [e.load_vector(source, k) for source in shifted]
                results = []
                for r, line in enumerate(lines):
                    factor = e.load_vector(line, k)
                    for t, vector in enumerate(vectors):
                        results.append(e.fma(factor, vector, sums[r * shifts + t]))
                return results

            zeros = [e.constant(0.0)] * (rows * shifts)
            sums = e.loop(args[9], INT(e.lanes), zeros, body)
            for r in range(rows):
                place = builder.gep(result, [builder.mul(args[12], INT(r))])
                for t in range(shifts):
                    start = INT(t * e.lanes)
                    total = builder.fadd(e.load_vector(place, start), sums[r * shifts + t])
                    e.store_vector(total, place, start)

        row, shift = (builder.sub(number, INT(1)) for number in args[:2])
        number = builder.add(builder.mul(row, INT(DOT_SHIFTS)), shift)
        e.switch(number, [lambda shape=shape: dots(*shape) for shape in _DOT_SHAPES])
        return context.get_dummy_value()

    integer = types.int64
    return types.void(
        integer, integer, a, integer, integer, x, integer, offsets, integer, integer, y, integer,
        integer,
    ), emit  # fmt: skip
