"""Pieces of average pooling in vector registers: sums of rows, and sums along a line.

Written as the tiles of kernels.cpu.simd are, and like them without a check of bounds.

    row_sums      the sum of some rows
    window_means  the sum of each window along a line, divided by a count
    quotients     a line, divided by counts
    line_spread   the transpose of the sums along a line
    run_total     the sum of a run
"""

from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT
from kernels.cpu.lines import STRIDES, LineEmitter

_ACCUMULATORS = 4


@intrinsic
def row_sums(_, x, x0, pitch, rows, y, y0, count):
    """y[y0 + c] = sum over i < rows of x[x0 + i pitch + c] for c < count."""

    def emit(context, builder, signature, args):
        e = LineEmitter(context, builder, signature, args)
        source, target = e.pointer(0, args[1]), e.pointer(4, args[5])

        def sums(rows):
            def vector(c, inside):
                total = e.sum(
                    rows, lambda i: e.get(source, builder.add(builder.mul(i, args[2]), c), inside)
                )
                e.put(total, target, c, inside)

            e.along(args[6], vector)

        e.cases(args[3], sums)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(x, integer, integer, integer, y, integer, integer), emit


def _window_means(stride):
    @intrinsic
    def piece(_, x, x0, taps, factor, counts, y, y0, count):
        """See `window_means`."""

        def emit(context, builder, signature, args):
            e = LineEmitter(context, builder, signature, args)
            line, target = e.pointer(0, args[1]), e.pointer(5, args[6])
            factor = e.splat(args[3])

            def means(taps):
                def vector(u, inside):
                    pixels = builder.gep(line, [builder.mul(u, INT(stride))])
                    total = e.sum(taps, lambda t: e.strided(pixels, t, stride))
                    number = builder.fmul(factor, e.load_vector(e.pointer(4), u))
                    e.put(builder.fdiv(total, number), target, u, inside)

                e.along(args[7], vector)

            e.cases(args[2], means)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, integer, integer, x.dtype, counts, y, integer, integer), emit

    return piece


_means_1, _means_2, _means_3, _means_4 = (_window_means(s) for s in STRIDES)


@njit(cache=True, error_model="numpy")
def window_means(x, x0, stride, taps, factor, counts, y, y0, count):
    """y[y0 + u] = (sum over t < taps of x[x0 + u stride + t]) / (factor counts[u]) for u < count.

    x and counts are read up to whole vectors.
    """
    if stride == 1:
        _means_1(x, x0, taps, factor, counts, y, y0, count)
    elif stride == 2:
        _means_2(x, x0, taps, factor, counts, y, y0, count)
    elif stride == 3:
        _means_3(x, x0, taps, factor, counts, y, y0, count)
    elif stride == 4:
        _means_4(x, x0, taps, factor, counts, y, y0, count)
    else:
        for u in range(count):
            y[y0 + u] = run_total(x, x0 + u * stride, taps) / (factor * counts[u])


@intrinsic
def quotients(_, x, x0, factor, counts, y, y0, count):
    """y[y0 + u] = x[x0 + u] / (factor counts[u]) for u < count."""

    def emit(context, builder, signature, args):
        e = LineEmitter(context, builder, signature, args)
        source, counts, target = e.pointer(0, args[1]), e.pointer(3), e.pointer(4, args[5])
        factor = e.splat(args[2])

        def vector(u, inside):
            number = builder.fmul(factor, e.load_vector(counts, u))
            e.put(builder.fdiv(e.get(source, u, inside), number), target, u, inside)

        e.along(args[6], vector)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(x, integer, x.dtype, counts, y, integer, integer), emit


def _line_spread(stride):
    @intrinsic
    def piece(_, x, x0, taps, y, y0, count):
        """See `line_spread`."""

        def emit(context, builder, signature, args):
            e = LineEmitter(context, builder, signature, args)
            source, target = e.pointer(0, args[1]), e.pointer(3, args[4])

            def spread(taps):
                def phase(q, b):
                    if isinstance(taps, int):
                        terms = -(-max(0, taps - b) // stride)
                    else:
                        terms = e.quotient(taps, stride, stride - 1 - b)
                    return e.sum(terms, lambda m: e.load_vector(source, builder.sub(q, m)))

                def vector(q, _):
                    phases = [phase(q, b) for b in range(stride)]
                    e.store_vector(e.interleaved(phases), target, builder.mul(q, INT(stride)))
                    return []

                e.loop(args[5], INT(e.lanes), [], vector)

            e.cases(args[2], spread)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, integer, integer, y, integer, integer), emit

    return piece


_spread_1, _spread_2, _spread_3, _spread_4 = (_line_spread(s) for s in STRIDES)


@njit(cache=True)
def line_spread(x, x0, stride, taps, y, y0, count):
    """y[y0 + q stride + b] = sum over m with b + m stride < taps of x[x0 + q - m].

    For q < count, rounded up to whole vectors, and b < stride.
    """
    if stride == 1:
        _spread_1(x, x0, taps, y, y0, count)
    elif stride == 2:
        _spread_2(x, x0, taps, y, y0, count)
    elif stride == 3:
        _spread_3(x, x0, taps, y, y0, count)
    elif stride == 4:
        _spread_4(x, x0, taps, y, y0, count)
    else:
        for b in range(stride):
            terms = (max(0, taps - b) + stride - 1) // stride
            for q in range(count):
                total = x.dtype.type(0)
                for m in range(terms):
                    total += x[x0 + q - m]
                y[y0 + q * stride + b] = total


@intrinsic
def run_total(_, x, x0, count):
    """The sum of x[x0 : x0 + count]."""

    def emit(context, builder, signature, args):
        e = LineEmitter(context, builder, signature, args)
        source, step = e.pointer(0, args[1]), e.lanes * _ACCUMULATORS
        whole = builder.and_(args[2], INT(-step))

        def vectors(index, sums):
            return [
                builder.fadd(total, e.load_vector(source, builder.add(index, INT(a * e.lanes))))
                for a, total in enumerate(sums)
            ]

        sums = e.loop(whole, INT(step), [e.constant(0.0)] * _ACCUMULATORS, vectors)
        for a in range(_ACCUMULATORS):
            inside = e.below(builder.sub(args[2], whole), a * e.lanes)
            at = builder.add(whole, INT(a * e.lanes))
            sums[a] = builder.fadd(sums[a], e.load_some(source, at, inside))
        while len(sums) > 1:
            sums = [builder.fadd(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]
        return e.total(sums[0])

    return x.dtype(x, types.int64, types.int64), emit
