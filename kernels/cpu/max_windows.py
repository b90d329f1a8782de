"""The piece of max-pooling in vector registers: the windows along a line.

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
                    corner = e.load_vector(corners, u, _INT32)

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
                        e.load_vector(firsts, u, _INT32), number(args[11])
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
