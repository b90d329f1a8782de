"""The pieces of max-pooling in vector registers, along a line.

    window_max     the largest of each window, and which pixel it is
    switched_sums  what the pixels of a line get from the windows that they are the largest of

Written as the tiles of kernels.cpu.simd are, and like them without a check of bounds.
"""

import math
from functools import reduce

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT
from kernels.cpu.lines import COMMON, STRIDES, LineEmitter

_INT32 = ir.IntType(32)


def _window_max(stride):
    """For a stride that is a constant of the code, or for any if it is None."""

    @intrinsic
    def piece(
        _, x, x0, width, rows, pitch, left, step, taps, dilation, first, corners, number, y,
        switches, y0, windows,
    ):  # fmt: skip
        """See `window_max`."""

        def emit(context, builder, signature, args):
            e = LineEmitter(context, builder, signature, args)
            source, firsts, corners = e.pointer(0, args[1]), e.pointer(9), e.pointer(10)

            def number(value):
                return e.splat(builder.trunc(value, _INT32))

            def window(rows, taps):
                known = isinstance(taps, int)

                def offset(t):
                    return t if known else builder.mul(t, args[8])

                def vector(u, pixels, inside):
                    corner = e.load_vector(corners, u)

                    def row(i, held):
                        place = builder.mul(e.int(i), args[4])
                        line = builder.gep(source, [place])
                        start = builder.add(corner, number(builder.add(args[11], place)))

                        def tap(t, held):
                            winner = builder.add(start, number(e.int(offset(t))))
                            candidate = pixels([line], offset(t)), winner
                            return candidate if held is None else e.better(candidate, held)

                        if not known:
                            return e.loop(taps, INT(1), held, tap)
                        # Not all in one chain, which the processor would wait for.
                        best = None
                        for t in range(taps):
                            best = tap(t, best)
                        return e.better(best, held)

                    none = e.constant(-math.inf), builder.add(
                        e.load_vector(firsts, u), number(args[11])
                    )
                    if known:
                        best, winner = reduce(lambda held, i: row(i, held), range(rows), none)
                    else:
                        best, winner = e.loop(rows, INT(1), none, row)
                    e.put(best, e.pointer(12, args[14]), u, inside)
                    e.put(winner, e.pointer(13, args[14]), u, inside)

                reach = offset(taps - 1 if known else builder.sub(taps, INT(1)))
                e.along_windows(
                    args[15], stride or args[6], args[5], args[2], reach, -math.inf, vector
                )

            near = builder.icmp_signed("==", args[8], INT(1))
            e.cases((args[3], args[7]), COMMON, window, near)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            x, *[integer] * 8, first, corners, integer, y, switches, integer, integer
        ), emit

    return piece


_max_1, _max_2, _max_3, _max_4, _max = (_window_max(s) for s in (*STRIDES, None))


@njit(inline="always")
def window_max(
    x, x0, width, rows, pitch, left, stride, taps, dilation, first, corners, number, y, switches,
    y0, windows,
):  # fmt: skip
    """y[y0 + u] = max over i < rows and t < taps of row i at c = u stride - left + t dilation.

    Row i has the pixels x[x0 + i pitch + c] with 0 <= c < width; u < windows. In `switches`
    number + i pitch + c of the first that is the largest. With corners[u] = u stride - left and
    first[u] the first c that is a pixel, both in whole vectors. NaN is larger than any number, and
    the first NaN wins.
    """
    windows = first, corners, number, y, switches, y0, windows
    if stride == 1:
        _max_1(x, x0, width, rows, pitch, left, stride, taps, dilation, *windows)
    elif stride == 2:
        _max_2(x, x0, width, rows, pitch, left, stride, taps, dilation, *windows)
    elif stride == 3:
        _max_3(x, x0, width, rows, pitch, left, stride, taps, dilation, *windows)
    elif stride == 4:
        _max_4(x, x0, width, rows, pitch, left, stride, taps, dilation, *windows)
    else:
        _max(x, x0, width, rows, pitch, left, stride, taps, dilation, *windows)


# Pixels between neighbouring windows of `switched_sums`, and with code of their own: rows of
# windows that a line lies in, and their taps.
_STRIDE, _SHARED = 2, ((1, 2), (1, 3), (2, 3))


@intrinsic
def switched_sums(_, dy, switches, y0, windows, rows, left, taps, number, dx, x0, width):
    """dx[x0 + c] = sum of dy[y0 + i windows + u] whose switch is number + c, for c < width.

    Over i < rows and the windows u that have pixel c: c = 2 u - left + t for a t < taps.
    """

    def emit(context, builder, signature, args):
        e = LineEmitter(context, builder, signature, args)
        grads, winners = e.pointer(0, args[2]), e.pointer(1, args[2])
        target = e.pointer(8, args[9])

        def sums(rows, taps):
            known = isinstance(taps, int)
            # How many windows of a row have the first pixel of a group.
            count = -(-taps // _STRIDE) if known else e.quotient(taps, _STRIDE, _STRIDE - 1)

            def vector(q, whole):
                c = builder.sub(builder.mul(q, INT(_STRIDE)), args[5])
                first = e.splat(builder.trunc(builder.add(args[7], c), _INT32))
                phases = (range(b, _STRIDE * e.lanes, _STRIDE) for b in range(_STRIDE))
                pixels = [
                    builder.add(first, ir.Constant(first.type, [*lanes])) for lanes in phases
                ]

                def share(i, m, totals):
                    """With what the pixels get from window q - m of row i."""
                    u = builder.sub(q, e.int(m))
                    inside = None if whole else e.within(u, args[3])
                    at = builder.add(builder.mul(e.int(i), args[3]), u)
                    grad = e.get(grads, at, inside)
                    winner = e.get(winners, at, inside)
                    results = []
                    for b, total in enumerate(totals):
                        if not known or m * _STRIDE + b < taps:
                            wins = builder.icmp_signed("==", winner, pixels[b])
                            total = builder.select(wins, builder.fadd(total, grad), total)
                        results.append(total)
                    return results

                # Window after window, as the definition adds.
                totals = [e.constant(0.0)] * _STRIDE
                if known:
                    for i in range(rows):
                        for m in reversed(range(count)):
                            totals = share(i, m, totals)
                else:
                    totals = e.loop(
                        rows, INT(1), totals,
                        lambda i, totals: e.loop(
                            count, INT(1), totals,
                            lambda u, totals: share(i, builder.sub(last, u), totals),
                        ),
                    )  # fmt: skip
                e.put_group(totals, target, c, None if whole else args[10])

            last = builder.sub(e.int(count), INT(1))
            e.along_groups(args[10], _STRIDE, args[5], args[3], last, vector)

        e.cases((args[4], args[6]), _SHARED, sums)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(dy, switches, *[integer] * 6, dx, integer, integer), emit
