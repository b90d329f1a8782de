"""Pieces of average pooling in vector registers: sums of rows, and sums along a line.

Written as the tiles of kernels.cpu.simd are, and like them without a check of bounds.

    window_means  the sum of each window along a line, divided by a count
    window_shares what the pixels of a line get from the windows that they lie in
"""

from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT
from kernels.cpu.lines import COMMON, STRIDES, LineEmitter

# Rows and taps of windows with code of their own: those of most networks, and of GoogLeNet.
_WINDOWS = *COMMON, (5, 5)
# And rows of windows that a line lies in, and their taps.
_SHARED = (1, 2), (1, 3), (2, 3), (3, 3), (1, 5), (2, 5)


def _window_means(stride):
    """For a stride that is a constant of the code, or for any if it is None."""

    @intrinsic
    def piece(_, x, x0, width, rows, left, step, taps, factor, counts, y, y0, windows):
        """See `window_means`."""

        def emit(context, builder, signature, args):
            e = LineEmitter(context, builder, signature, args)
            source, counts, target = e.pointer(0, args[1]), e.pointer(8), e.pointer(9, args[10])
            factor = e.splat(args[7])

            def means(rows, taps):
                def vector(u, pixels, inside):
                    def line(i):
                        return builder.gep(source, [builder.mul(e.int(i), args[2])])

                    if isinstance(rows, int):
                        # The rows first, which takes no shuffles.
                        lines = [line(i) for i in range(rows)]
                        total = e.sum(taps, lambda t: pixels(lines, t))
                    else:
                        total = e.sum(
                            rows, lambda i: e.sum(taps, lambda t, i=i: pixels([line(i)], t))
                        )
                    number = builder.fmul(factor, e.load_vector(counts, u))
                    e.put(builder.fdiv(total, number), target, u, inside)

                reach = taps - 1 if isinstance(taps, int) else builder.sub(taps, INT(1))
                e.along_windows(args[11], stride or args[5], args[4], args[2], reach, 0.0, vector)

            e.cases((args[3], args[6]), _WINDOWS, means)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, *[integer] * 6, x.dtype, counts, y, integer, integer), emit

    return piece


_means_1, _means_2, _means_3, _means_4, _means = (_window_means(s) for s in (*STRIDES, None))


@njit(inline="always")
def window_means(x, x0, width, rows, left, stride, taps, factor, counts, y, y0, windows):
    """y[y0 + u] = (sum over i < rows, t < taps of row i at u stride - left + t) / their count.

    Row i has the pixels x[x0 + i width + c] with 0 <= c < width; u < windows. The count is
    factor counts[u], read in whole vectors.
    """
    windows = factor, counts, y, y0, windows
    if stride == 1:
        _means_1(x, x0, width, rows, left, stride, taps, *windows)
    elif stride == 2:
        _means_2(x, x0, width, rows, left, stride, taps, *windows)
    elif stride == 3:
        _means_3(x, x0, width, rows, left, stride, taps, *windows)
    elif stride == 4:
        _means_4(x, x0, width, rows, left, stride, taps, *windows)
    else:
        _means(x, x0, width, rows, left, stride, taps, *windows)


def _window_shares(stride):
    """For a stride that is a constant of the code."""

    @intrinsic
    def piece(_, x, x0, windows, rows, left, taps, factors, first, columns, y, y0, width):
        """See `window_shares`."""

        def emit(context, builder, signature, args):
            e = LineEmitter(context, builder, signature, args)
            source, target = e.pointer(0, args[1]), e.pointer(9, args[10])
            factors, columns = e.pointer(6, args[7]), e.pointer(8)

            def shares(rows, taps):
                known = isinstance(taps, int)
                full = taps // stride if known else builder.udiv(taps, INT(stride))
                rest = taps % stride if known else builder.urem(taps, INT(stride))

                def vector(q, whole):
                    def share(m):
                        """What a pixel of group q gets from window q - m of each row."""
                        u = builder.sub(q, e.int(m))
                        inside = None if whole else e.within(u, args[2])

                        def row(i):
                            at = builder.add(builder.mul(e.int(i), args[2]), u)
                            factor = e.splat(e.load(factors, e.int(i)))
                            return builder.fmul(e.get(source, at, inside), factor)

                        return builder.fmul(e.sum(rows, row), e.get(columns, u, inside))

                    common = e.sum(full, share)
                    if known:
                        more = builder.fadd(common, share(full)) if rest else common
                        phases = [more if b < rest else common for b in range(stride)]
                    else:
                        more = builder.fadd(common, share(full))
                        phases = [
                            builder.select(builder.icmp_signed("<", INT(b), rest), more, common)
                            for b in range(stride)
                        ]
                    c = builder.sub(builder.mul(q, INT(stride)), args[4])
                    e.put_group(phases, target, c, None if whole else args[11])

                # The first of the windows that a group lies in, counted back.
                last = INT(full if rest else full - 1) if known else full
                e.along_groups(args[11], stride, args[4], args[2], last, vector)

            e.cases((args[3], args[5]), _SHARED, shares)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            x, *[integer] * 5, factors, integer, columns, y, integer, integer
        ), emit

    return piece


_shares_1, _shares_2, _shares_3, _shares_4 = (_window_shares(s) for s in STRIDES)


@njit(inline="always")
def window_shares(
    x, x0, windows, rows, left, stride, taps, factors, first, columns, y, y0, width
):
    """The transpose of the sums of `window_means`: y[y0 + c] for c < width, of all i < rows.

    y[y0 + c] = sum of x[x0 + i windows + u] factors[first + i] columns[u] over the windows u with
    c = u stride - left + t for a t < taps.
    """
    others = factors, first, columns, y, y0, width
    if stride == 1:
        _shares_1(x, x0, windows, rows, left, taps, *others)
    elif stride == 2:
        _shares_2(x, x0, windows, rows, left, taps, *others)
    elif stride == 3:
        _shares_3(x, x0, windows, rows, left, taps, *others)
    elif stride == 4:
        _shares_4(x, x0, windows, rows, left, taps, *others)
    else:
        y[y0 : y0 + width] = 0
        for i in range(rows):
            for u in range(windows):
                share = x[x0 + i * windows + u] * (factors[first + i] * columns[u])
                start = u * stride - left
                for c in range(max(0, start), min(width, start + taps)):
                    y[y0 + c] += share
