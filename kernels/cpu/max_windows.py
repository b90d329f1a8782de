"""Pieces of max-pooling in vector registers: windows along a line, and windows of lines.

Written as the tiles of kernels.cpu.simd are, and like them without a check of bounds. A window is
handled one axis after the other, so that its cost is that of kh + kw pixels, not kh kw.

    split_rows    rows of pixels, sorted by what a stride sets apart
    line_max      the largest pixel of each window along a line, and where it lies
    window_max    the largest of those in each window of lines, and its switch
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT
from kernels.cpu.lines import STRIDES, LineEmitter

_INT32 = ir.IntType(32)


def _split_rows(stride):
    @intrinsic
    def piece(_, x, x0, width, rows, lines, starts, pitch, count):
        """See `split_rows`."""

        def emit(context, builder, signature, args):
            e = LineEmitter(context, builder, signature, args)
            source, target, step = e.pointer(0, args[1]), e.pointer(4), stride * e.lanes
            phases = [
                builder.gep(target, [e.load(e.pointer(5), INT(j))]) for j in range(stride)
            ]
            whole = builder.mul(builder.sdiv(args[7], INT(step)), INT(step))
            rest = builder.sub(args[7], whole)
            flags = [
                (e.below(rest, j * e.lanes), e.below(e.quotient(rest, stride, stride - 1 - j)))
                for j in range(stride)
            ]

            def row(r, _):
                line = builder.gep(source, [builder.mul(r, args[2])])
                start = builder.mul(r, args[6])

                def vectors(c, flags):
                    pixels = e.joined([
                        e.get(line, builder.add(c, INT(j * e.lanes)), inside)
                        for j, (inside, _) in enumerate(flags)
                    ])  # fmt: skip
                    at = builder.add(start, e.quotient(c, stride))
                    for j, (_, inside) in enumerate(flags):
                        order = [j + p * stride for p in range(e.lanes)]
                        e.put(e.shuffled(pixels, pixels, order), phases[j], at, inside)
                    return []

                e.loop(whole, INT(step), [], lambda c, _: vectors(c, [(None, None)] * stride))
                e.loop(rest, INT(step), [], lambda c, _: vectors(builder.add(whole, c), flags))
                return []

            e.loop(args[3], INT(1), [], row)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, integer, integer, integer, lines, starts, integer, integer), emit

    return piece


_split_1, _split_2, _split_3, _split_4 = (_split_rows(s) for s in STRIDES)


@njit(cache=True)
def split_rows(x, x0, width, rows, lines, starts, pitch, count):
    """lines[starts[j] + r pitch + m] = x[x0 + r width + m stride + j] with stride = starts.size.

    For r < rows and j < stride, as far as m stride + j < count.
    """
    stride = starts.size
    if stride == 1:
        _split_1(x, x0, width, rows, lines, starts, pitch, count)
    elif stride == 2:
        _split_2(x, x0, width, rows, lines, starts, pitch, count)
    elif stride == 3:
        _split_3(x, x0, width, rows, lines, starts, pitch, count)
    elif stride == 4:
        _split_4(x, x0, width, rows, lines, starts, pitch, count)
    else:
        for r in range(rows):
            for j in range(stride):
                for m in range((count - j + stride - 1) // stride):
                    lines[starts[j] + r * pitch + m] = x[x0 + r * width + m * stride + j]


@intrinsic
def line_max(_, x, offsets, numbers, taps, first, size, best, winners, target):
    """best[target + f] = max over t < taps of x[offsets[t] + f] for f < size, a full vector last.

    winners[target + f] = numbers[t] of the first t that has it, or first[f] where that is t = 0:
    the first that is a pixel. NaN is larger than any number, and the first NaN wins.
    """

    def emit(context, builder, signature, args):
        e = LineEmitter(context, builder, signature, args)

        def tap(t):
            """Where its pixels begin, and its number."""
            place = builder.gep(e.pointer(0), [e.load(e.pointer(1), t)])
            return place, e.splat(e.load(e.pointer(2), t))

        def lines(taps):
            # Loaded once, where it is known how many.
            known = [tap(INT(t)) for t in range(taps)] if isinstance(taps, int) else None

            def vector(f, _):
                def candidate(t):
                    place, number = known[t] if known else tap(t)
                    return e.load_vector(place, f), number

                start = known[0][0] if known else tap(INT(0))[0]
                initial = e.load_vector(start, f), e.load_vector(e.pointer(4), f, _INT32)
                best, winner = e.best_of(taps, initial, candidate)
                e.store_vector(best, e.pointer(6, args[8]), f)
                e.store_vector(winner, e.pointer(7, args[8]), f)
                return []

            e.loop(args[5], INT(e.lanes), [], vector)

        e.cases(args[3], lines)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(x, offsets, numbers, integer, first, integer, best, winners, integer), emit


@intrinsic
def window_max(_, best, winners, start, pitch, rows, number, step, corners, y, switches, y0, count):
    """y[y0 + u] = max over i < rows of best[start + i pitch + u] for u < count.

    switches[y0 + u] = corners[u] + number + i step + winners[start + i pitch + u] of the first i
    that has it. The source is read up to whole vectors.
    """

    def emit(context, builder, signature, args):
        e = LineEmitter(context, builder, signature, args)
        lines, winners = e.pointer(0, args[2]), e.pointer(1, args[2])

        def window(rows):
            def vector(u, inside):
                def candidate(i):
                    i = INT(i) if isinstance(i, int) else i
                    at = builder.add(builder.mul(i, args[3]), u)
                    number = e.splat(builder.trunc(builder.mul(i, args[6]), _INT32))
                    number = builder.add(e.load_vector(winners, at, _INT32), number)
                    return e.load_vector(lines, at), number

                best, winner = e.best_of(rows, candidate(0), candidate)
                corner = e.load_vector(e.pointer(7), u, _INT32)
                corner = builder.add(corner, e.splat(builder.trunc(args[5], _INT32)))
                e.put(best, e.pointer(8, args[10]), u, inside)
                e.put(builder.add(winner, corner), e.pointer(9, args[10]), u, inside)

            e.along(args[11], vector)

        e.cases(args[4], window)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(
        best, winners, integer, integer, integer, integer, integer, corners, y, switches, integer,
        integer,
    ), emit  # fmt: skip
