"""Pieces of pooling in vector registers: windows along a line, and windows of lines.

Written as the tiles of kernels.cpu.simd are, and like them without a check of bounds. A window is
handled one axis after the other, so that its cost is that of kh + kw pixels, not kh kw.

    pad_rows      rows of pixels, copied with room for margins between them
    line_max      the largest pixel of each window along a line, and where it lies
    window_max    the largest of those in each window of lines, and its switch
    row_sums      the sum of some rows
    window_means  the sum of each window along a line, divided by a count
    line_spread   the transpose of those sums
    run_total     the sum of a run

Where neighbouring windows lie a stride apart, a vector of them reads every stride-th pixel: as many
vectors as the stride has pixels, of which a shuffle makes one. Strides up to three are constants of
the code; beyond, pixels are loaded one by one.
"""

from functools import reduce

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, Emitter

INT32 = ir.IntType(32)
# Terms that are added one by one; longer sums are made of such parts, which round less.
_PART = 16
_ACCUMULATORS = 4
# Strides that are constants of the code.
_STRIDES = 1, 2, 3
# Numbers of taps with code of their own, without a loop.
_COMMON = 1, 2, 3


class _Lines(Emitter):
    """What the pieces share."""

    def along(self, count, body):
        """body(index, inside) for vector after vector of `count` elements.

        `inside` flags the elements of the last vector if it is not full; else it is None.
        """
        whole = self.builder.and_(count, INT(-self.lanes))
        rest = self.builder.sub(count, whole)
        inside = self.below(rest)

        def full(index, _):
            body(index, None)
            return []

        def partial(index, _):
            body(self.builder.add(whole, index), inside)
            return []

        self.loop(whole, INT(self.lanes), [], full)
        self.loop(rest, INT(self.lanes), [], partial)

    def get(self, pointer, index, inside):
        if inside is None:
            return self.load_vector(pointer, index)
        return self.load_some(pointer, index, inside)

    def put(self, value, pointer, index, inside):
        if inside is None:
            self.store_vector(value, pointer, index)
        else:
            self.store_some(value, pointer, index, inside)

    def strided(self, pointer, index, stride):
        """The elements index + p stride for each lane p; those between are read, too."""
        wide = ir.VectorType(self.real, self.lanes * stride)
        address = self.builder.bitcast(self.builder.gep(pointer, [index]), wide.as_pointer())
        pixels = self.builder.load(address, align=self.size(self.real))
        return self.shuffled(pixels, pixels, [p * stride for p in range(self.lanes)])

    def joined(self, vectors):
        """One vector of the elements of all."""
        wide = vectors[0]
        for count, vector in enumerate(vectors[1:], 1):
            # Both operands of a shuffle have one length.
            padded = self.shuffled(vector, vector, [*range(self.lanes)] * count)
            wide = self.shuffled(wide, padded, [*range((count + 1) * self.lanes)])
        return wide

    def interleaved(self, vectors):
        """One vector: the first elements of all, their second ones, ..."""
        wide, count = self.joined(vectors), len(vectors)
        order = [b * self.lanes + p for p in range(self.lanes) for b in range(count)]
        return self.shuffled(wide, wide, order)

    def cases(self, count, body):
        """body(count), with code of its own where count is one of _COMMON: then it is an int."""
        after = self.builder.append_basic_block("after")
        for number in _COMMON:
            with self.builder.if_then(self.builder.icmp_signed("==", count, INT(number))):
                body(number)
                self.builder.branch(after)
        body(count)
        self.builder.branch(after)
        self.builder.position_at_end(after)

    def best_of(self, count, initial, candidate):
        """The first best of `initial` and candidate(i) for 1 <= i < count: pairs (value, number).

        NaN is better than any number.
        """

        def select(i, held):
            value, best = candidate(i), held[0]
            # Unordered or greater lets a NaN win; an ordered best keeps the first NaN.
            wins = self.builder.and_(
                self.builder.fcmp_unordered(">", value[0], best),
                self.builder.fcmp_ordered("==", best, best),
            )
            return [self.builder.select(wins, *pair) for pair in zip(value, held, strict=True)]

        if isinstance(count, int):
            return reduce(lambda held, i: select(i, held), range(1, count), initial)
        others = self.builder.sub(count, INT(1))
        return self.loop(
            others, INT(1), initial, lambda i, held: select(self.builder.add(i, INT(1)), held)
        )

    def quotient(self, value, divisor, add=0):
        """(value + add) // divisor of ints that are not negative."""
        return self.builder.sdiv(self.builder.add(value, INT(add)), INT(divisor))


    def sum(self, count, term):
        """The sum of term(i) for i < count, in parts."""
        add, zero = self.builder.fadd, self.constant(0.0)
        if isinstance(count, int):
            return reduce(add, [term(INT(i)) for i in range(count)]) if count else zero

        def part(first, total):
            left = self.builder.sub(count, first)
            short = self.builder.icmp_signed("<", left, INT(_PART))
            stop = self.builder.select(short, left, INT(_PART))
            terms = self.loop(
                stop, INT(1), [zero],
                lambda i, sums: [add(sums[0], term(self.builder.add(first, i)))],
            )  # fmt: skip
            return [add(total[0], terms[0])]

        return self.loop(count, INT(_PART), [zero], part)[0]


def _split_rows(stride):
    @intrinsic
    def piece(_, x, x0, width, rows, lines, starts, pitch, count):
        """See `split_rows`."""

        def emit(context, builder, signature, args):
            e = _Lines(context, builder, signature, args)
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


_split_1, _split_2, _split_3 = (_split_rows(s) for s in _STRIDES)


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
    else:
        for r in range(rows):
            for j in range(stride):
                for m in range((count - j + stride - 1) // stride):
                    lines[starts[j] + r * pitch + m] = x[x0 + r * width + m * stride + j]


@intrinsic
def line_max(_, x, offsets, numbers, taps, first, size, best, winners, target):
    """best[target + f] = max over t < taps of x[offsets[t] + f] for f < size, a full vector last.

    winners[target + f] = numbers[t] of the first t that has it, or first[f] where that is t = 0: the first
    that is a pixel. NaN is larger than any number, and the first NaN wins.
    """

    def emit(context, builder, signature, args):
        e = _Lines(context, builder, signature, args)

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
                initial = e.load_vector(start, f), e.load_vector(e.pointer(4), f, INT32)
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
def move_down(_, x, source, target, count):
    """x[target : target + count] = x[source : source + count] with target <= source.

    Of what follows, up to a vector may be overwritten.
    """

    def emit(context, builder, signature, args):
        e = _Lines(context, builder, signature, args)

        def vector(i, _):
            e.store_vector(e.load_vector(e.pointer(0, args[1]), i), e.pointer(0, args[2]), i)
            return []

        e.loop(args[3], INT(e.lanes), [], vector)
        return context.get_dummy_value()

    return types.void(x, types.int64, types.int64, types.int64), emit


@intrinsic
def window_max(_, best, winners, start, pitch, rows, number, step, corners, y, switches, y0, count):
    """y[y0 + u] = max over i < rows of best[start + i pitch + u] for u < count.

    switches[y0 + u] = corners[u] + number + i step + winners[start + i pitch + u] of the first i
    that has it. The source is read up to whole vectors.
    """

    def emit(context, builder, signature, args):
        e = _Lines(context, builder, signature, args)
        lines, winners = e.pointer(0, args[2]), e.pointer(1, args[2])

        def window(rows):
            def vector(u, inside):
                def candidate(i):
                    i = INT(i) if isinstance(i, int) else i
                    at = builder.add(builder.mul(i, args[3]), u)
                    number = e.splat(builder.trunc(builder.mul(i, args[6]), INT32))
                    number = builder.add(e.load_vector(winners, at, INT32), number)
                    return e.load_vector(lines, at), number

                best, winner = e.best_of(rows, candidate(0), candidate)
                corner = e.load_vector(e.pointer(7), u, INT32)
                corner = builder.add(corner, e.splat(builder.trunc(args[5], INT32)))
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


@intrinsic
def row_sums(_, x, x0, pitch, rows, y, y0, count):
    """y[y0 + c] = sum over i < rows of x[x0 + i pitch + c] for c < count."""

    def emit(context, builder, signature, args):
        e = _Lines(context, builder, signature, args)
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
            e = _Lines(context, builder, signature, args)
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


_means_1, _means_2, _means_3 = (_window_means(s) for s in _STRIDES)


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
    else:
        for u in range(count):
            start, total = x0 + u * stride, x.dtype.type(0)
            for first in range(start, start + taps, _PART):
                part = x.dtype.type(0)
                for i in range(first, min(first + _PART, start + taps)):
                    part += x[i]
                total += part
            y[y0 + u] = total / (factor * counts[u])


@intrinsic
def quotients(_, x, x0, factor, counts, y, y0, count):
    """y[y0 + u] = x[x0 + u] / (factor counts[u]) for u < count."""

    def emit(context, builder, signature, args):
        e = _Lines(context, builder, signature, args)
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
            e = _Lines(context, builder, signature, args)
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


_spread_1, _spread_2, _spread_3 = (_line_spread(s) for s in _STRIDES)


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
        e = _Lines(context, builder, signature, args)
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
