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

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, Emitter

INT32 = ir.IntType(32)
# Terms that are added one by one; longer sums are made of such parts, which round less.
_PART = 16
_ACCUMULATORS = 4


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
        """The elements index + p stride for each lane p; what lies between may be read, too."""
        if isinstance(stride, int):
            wide = ir.VectorType(self.real, self.lanes * stride)
            address = self.builder.bitcast(self.builder.gep(pointer, [index]), wide.as_pointer())
            pixels = self.builder.load(address, align=self.size(self.real))
            order = [p * stride for p in range(self.lanes)]
            return self.shuffled(pixels, ir.Constant(wide, ir.Undefined), order)
        vector = ir.Constant(self.vector, ir.Undefined)
        for p in range(self.lanes):
            at = self.builder.add(index, self.builder.mul(stride, INT(p)))
            vector = self.builder.insert_element(vector, self.load(pointer, at), INT32(p))
        return vector

    def interleaved(self, vectors):
        """One vector: the first elements of all, their second ones, ..."""
        joined, count = vectors[0], len(vectors)
        for b in range(1, count):
            # Both operands of a shuffle have one length.
            padded = self.shuffled(vectors[b], vectors[b], [*range(self.lanes)] * b)
            joined = self.shuffled(joined, padded, [*range((b + 1) * self.lanes)])
        order = [b * self.lanes + p for p in range(self.lanes) for b in range(count)]
        return self.shuffled(joined, joined, order)

    def sum(self, count, term):
        """The sum of term(i) for i < count, in parts."""
        add, zero = self.builder.fadd, self.constant(0.0)

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

    def beats(self, value, best):
        """Flags: does value win over best? NaN wins over numbers, the first of several stays."""
        # Unordered or greater lets a NaN win; an ordered best keeps the first NaN.
        return self.builder.and_(
            self.builder.fcmp_unordered(">", value, best),
            self.builder.fcmp_ordered("==", best, best),
        )


@intrinsic
def pad_rows(_, x, x0, width, rows, lines, lines0, pitch, count):
    """lines[lines0 + r pitch + c] = x[x0 + r width + c] for r < rows and c < count."""

    def emit(context, builder, signature, args):
        e = _Lines(context, builder, signature, args)
        source, target = e.pointer(0, args[1]), e.pointer(4, args[5])

        def row(r, _):
            line, place = (
                builder.gep(pointer, [builder.mul(r, step)])
                for pointer, step in ((source, args[2]), (target, args[6]))
            )
            e.along(args[7], lambda c, inside: e.put(e.get(line, c, inside), place, c, inside))
            return []

        e.loop(args[3], INT(1), [], row)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(x, integer, integer, integer, lines, integer, integer, integer), emit


def _line_max(constant):
    @intrinsic
    def piece(_, x, x0, stride, taps, step, first, size, best, winners):
        """See `line_max`."""

        def emit(context, builder, signature, args):
            e = _Lines(context, builder, signature, args)
            line, numbers = e.pointer(0, args[1]), e.pointer(5)
            others = builder.sub(args[3], INT(1))

            def vector(f, _):
                pixels = builder.gep(line, [builder.mul(f, args[2])])

                def tap(t, values):
                    best, winner = values
                    number = builder.mul(builder.add(t, INT(1)), args[4])
                    value = e.strided(pixels, number, constant or args[2])
                    wins = e.beats(value, best)
                    number = e.splat(builder.trunc(number, INT32))
                    return builder.select(wins, value, best), builder.select(wins, number, winner)

                initial = [
                    e.strided(pixels, INT(0), constant or args[2]),
                    e.load_vector(numbers, f, INT32),
                ]
                best, winner = e.loop(others, INT(1), initial, tap)
                e.store_vector(best, e.pointer(7), f)
                e.store_vector(winner, e.pointer(8), f)
                return []

            e.loop(args[6], INT(e.lanes), [], vector)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, integer, integer, integer, integer, first, integer, best, winners), emit

    return piece


_line_max_1, _line_max_2, _line_max_3, _line_max_any = (_line_max(s) for s in (1, 2, 3, None))


@njit(cache=True)
def line_max(x, x0, stride, taps, step, first, size, best, winners):
    """best[f] = max over t < taps of x[x0 + f stride + t step] for f < size, a full vector last.

    winners[f] = t step of the first t that has it, or first[f] where that is t = 0: the first
    that is a pixel. NaN is larger than any number, and the first NaN wins.
    """
    if stride == 1:
        _line_max_1(x, x0, stride, taps, step, first, size, best, winners)
    elif stride == 2:
        _line_max_2(x, x0, stride, taps, step, first, size, best, winners)
    elif stride == 3:
        _line_max_3(x, x0, stride, taps, step, first, size, best, winners)
    else:
        _line_max_any(x, x0, stride, taps, step, first, size, best, winners)


@intrinsic
def window_max(_, best, winners, start, pitch, rows, number, step, corners, y, switches, y0, count):
    """y[y0 + u] = max over i < rows of best[start + i pitch + u] for u < count.

    switches[y0 + u] = corners[u] + number + i step + winners[start + i pitch + u] of the first i
    that has it. The source is read up to whole vectors.
    """

    def emit(context, builder, signature, args):
        e = _Lines(context, builder, signature, args)
        lines, winners = e.pointer(0, args[2]), e.pointer(1, args[2])
        others = builder.sub(args[4], INT(1))

        def vector(u, inside):
            def load(i):
                at = builder.add(builder.mul(i, args[3]), u)
                number = e.splat(builder.trunc(builder.mul(i, args[6]), INT32))
                number = builder.add(e.load_vector(winners, at, INT32), number)
                return e.load_vector(lines, at), number

            def row(i, values):
                value, number = load(builder.add(i, INT(1)))
                wins = e.beats(value, values[0])
                return [builder.select(wins, *pair) for pair in zip((value, number), values)]

            best, winner = e.loop(others, INT(1), load(INT(0)), row)
            corner = e.load_vector(e.pointer(7), u, INT32)
            corner = builder.add(corner, e.splat(builder.trunc(args[5], INT32)))
            e.put(best, e.pointer(8, args[10]), u, inside)
            e.put(builder.add(winner, corner), e.pointer(9, args[10]), u, inside)

        e.along(args[11], vector)
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

        def vector(c, inside):
            total = e.sum(
                args[3], lambda i: e.get(source, builder.add(builder.mul(i, args[2]), c), inside)
            )
            e.put(total, target, c, inside)

        e.along(args[6], vector)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(x, integer, integer, integer, y, integer, integer), emit


def _window_means(constant):
    @intrinsic
    def piece(_, x, x0, stride, taps, factor, counts, y, y0, count):
        """See `window_means`."""

        def emit(context, builder, signature, args):
            e = _Lines(context, builder, signature, args)
            line, target = e.pointer(0, args[1]), e.pointer(6, args[7])
            factor = e.splat(args[4])

            def vector(u, inside):
                pixels = builder.gep(line, [builder.mul(u, args[2])])
                total = e.sum(args[3], lambda t: e.strided(pixels, t, constant or args[2]))
                number = builder.fmul(factor, e.load_vector(e.pointer(5), u))
                e.put(builder.fdiv(total, number), target, u, inside)

            e.along(args[8], vector)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            x, integer, integer, integer, x.dtype, counts, y, integer, integer
        ), emit

    return piece


_means_1, _means_2, _means_3, _means_any = (_window_means(s) for s in (1, 2, 3, None))


@njit(cache=True)
def window_means(x, x0, stride, taps, factor, counts, y, y0, count):
    """y[y0 + u] = (sum over t < taps of x[x0 + u stride + t]) / (factor counts[u]) for u < count.

    x and counts are read up to whole vectors.
    """
    if stride == 1:
        _means_1(x, x0, stride, taps, factor, counts, y, y0, count)
    elif stride == 2:
        _means_2(x, x0, stride, taps, factor, counts, y, y0, count)
    elif stride == 3:
        _means_3(x, x0, stride, taps, factor, counts, y, y0, count)
    else:
        _means_any(x, x0, stride, taps, factor, counts, y, y0, count)


def _line_spread(stride):
    @intrinsic
    def piece(_, x, x0, taps, y, y0, count):
        """See `line_spread`."""

        def emit(context, builder, signature, args):
            e = _Lines(context, builder, signature, args)
            source, target = e.pointer(0, args[1]), e.pointer(3, args[4])

            def vector(q, _):
                phases = []
                for b in range(stride):
                    terms = builder.sdiv(builder.add(args[2], INT(stride - 1 - b)), INT(stride))
                    phases.append(
                        e.sum(terms, lambda m: e.load_vector(source, builder.sub(q, m)))
                    )
                e.store_vector(e.interleaved(phases), target, builder.mul(q, INT(stride)))
                return []

            e.loop(args[5], INT(e.lanes), [], vector)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, integer, integer, y, integer, integer), emit

    return piece


_spread_1, _spread_2, _spread_3 = (_line_spread(s) for s in (1, 2, 3))


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
        for q in range(count):
            for b in range(stride):
                total = x.dtype.type(0)
                for m in range((taps - b + stride - 1) // stride):
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
