"""Inner loops in vector registers, which no compiler finds by itself.

A **tile** is a block of results that stay in registers while their sums run: all of them are
advanced by one step from few loads, so that the arithmetic, not the memory, sets the pace. Numba's
loops cannot be told to keep them there, so the tiles are written out as LLVM instructions, once for
each kind, by `intrinsic`s whose size follows the processor's registers. They take flat arrays with
the index of the first element: no bounds are checked, the callers' arithmetic answers for them.

    product_tiles   y[r, :] += sum_k a[k, r] x[offset[k] : ]
    dot_tile        y[r, c] += sum_k a[r, k] b[c, k]
    transpose_tile  a square of elements turned over, ROWS rows of it: interleave_tile
    transform_tile  a constant matrix on both axes of many small squares
    store_run       a run of results, scaled, shifted, rectified; store_run_onto: added to others
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, ROWS, VECTORS, Emitter

# Rows on either side of a tile of dot products.
DOTS = 4


def _product_tile(vectors, fresh, apart):
    """y = or += a^T x, with the rows of a tile side by side in a, or `apart`: turned over."""

    @intrinsic
    def tile(_, a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch):
        """See `product_tiles`."""

        def emit(context, builder, signature, args):
            e = Emitter(context, builder, signature, args)
            weights, pixels, steps, result = (
                e.pointer(array, args[start]) for array, start in ((0, 1), (3, 4), (5, 6), (8, 9))
            )
            starts = [INT(v * e.lanes) for v in range(vectors)]
            lines = [builder.gep(result, [builder.mul(args[10], INT(r))]) for r in range(ROWS)]

            def body(k, sums):
                source = builder.gep(pixels, [e.load(steps, k)])
                loaded = [e.load_vector(source, start) for start in starts]
                column = builder.gep(weights, [k if apart else builder.mul(k, args[2])])
                results = []
                for r in range(ROWS):
                    place = builder.mul(args[2], INT(r)) if apart else INT(r)
                    weight = e.splat(e.load(column, place))
                    for v in range(vectors):
                        results.append(e.fma(weight, loaded[v], sums[r * vectors + v]))
                return results

            zero = e.constant(0.0)
            sums = e.loop(args[7], INT(1), [zero] * (ROWS * vectors), body)
            for r, line in enumerate(lines):
                for v, start in enumerate(starts):
                    total = sums[r * vectors + v]
                    if not fresh:
                        # Parts that start from zero round less than one long sum.
                        total = builder.fadd(e.load_vector(line, start), total)
                    e.store_vector(total, line, start)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(a, integer, integer, x, integer, offsets, integer, integer, y, integer,
                          integer), emit  # fmt: skip

    return tile


# By (rows apart, fresh) and vectors; Numba wants a name for each.
(
    (_add_1, _add_2, _add_3), (_set_1, _set_2, _set_3),
    (_add_apart_1, _add_apart_2, _add_apart_3), (_set_apart_1, _set_apart_2, _set_apart_3),
) = (
    tuple(_product_tile(vectors, fresh, apart) for vectors in (1, 2, VECTORS))
    for apart in (False, True)
    for fresh in (False, True)
)  # fmt: skip


@njit(cache=True)
def product_tiles(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch, vectors, fresh):
    """y[y0 + r y_pitch + p] += sum_k a[a0 + k a_pitch + r] x[x0 + offsets[first + k] + p].

    For r < ROWS, k < depth, and p in `vectors` vectors, at most VECTORS; = where `fresh`.
    """
    if fresh:
        if vectors == 1:
            _set_1(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
        elif vectors == 2:
            _set_2(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
        else:
            _set_3(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
    elif vectors == 1:
        _add_1(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
    elif vectors == 2:
        _add_2(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
    else:
        _add_3(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)


@njit(cache=True)
def row_tiles(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch, vectors, fresh):
    """As `product_tiles`, of a[a0 + r a_pitch + k]."""
    if fresh:
        if vectors == 1:
            _set_apart_1(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
        elif vectors == 2:
            _set_apart_2(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
        else:
            _set_apart_3(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
    elif vectors == 1:
        _add_apart_1(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
    elif vectors == 2:
        _add_apart_2(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
    else:
        _add_apart_3(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)


@intrinsic
def dot_tile(_, a, a0, a_pitch, b, b0, b_pitch, depth, y, y0, y_pitch):
    """y[y0 + r y_pitch + c] += sum_k a[a0 + r a_pitch + k] b[b0 + c b_pitch + k].

    For r and c < DOTS and k < depth; nothing else is read or written.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        left, right, result = (
            e.pointer(array, args[start]) for array, start in ((0, 1), (3, 4), (7, 8))
        )
        rows = [builder.gep(left, [builder.mul(args[2], INT(r))]) for r in range(DOTS)]
        columns = [builder.gep(right, [builder.mul(args[5], INT(c))]) for c in range(DOTS)]

        def add(load, sums):
            vectors = [load(column) for column in columns]
            results = []
            for r, row in enumerate(rows):
                vector = load(row)
                for c in range(DOTS):
                    results.append(e.fma(vector, vectors[c], sums[r * DOTS + c]))
            return results

        whole = builder.and_(args[6], INT(-e.lanes))
        zero = e.constant(0.0)
        sums = e.loop(
            whole, INT(e.lanes), [zero] * DOTS**2,
            lambda k, sums: add(lambda row: e.load_vector(row, k), sums),
        )  # fmt: skip
        inside = e.below(builder.sub(args[6], whole))
        sums = add(lambda row: e.load_some(row, whole, inside), sums)
        for r in range(DOTS):
            for c in range(DOTS):
                place = builder.gep(result, [builder.add(builder.mul(args[9], INT(r)), INT(c))])
                builder.store(builder.fadd(builder.load(place), e.total(sums[r * DOTS + c])), place)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(a, integer, integer, b, integer, integer, integer, y, integer, integer), emit


def _store_run(onto):
    """The intrinsic that stores a run of results, alone or added `onto` what `others` hold."""

    @intrinsic
    def store(_, source, source0, length, target, target0, scale, shift, channel, others, floor):
        """target[target0 + p] = max(source[source0 + p] scale[channel] + shift[channel], floor).

        For p < length <= VECTORS vectors; NaN stays NaN. The source may be read beyond the length,
        the target is not written there. `others` lie as the target does.
        """

        def emit(context, builder, signature, args):
            e = Emitter(context, builder, signature, args)
            values, result = e.pointer(0, args[1]), e.pointer(3, args[4])
            factor, term = (e.splat(e.load(e.pointer(i), args[7])) for i in (5, 6))
            floor = e.splat(args[9])
            for v in range(VECTORS):
                start = v * e.lanes
                inside = e.below(args[2], start)
                value = e.fma(e.load_vector(values, INT(start)), factor, term)
                if onto:
                    other = e.load_some(e.pointer(8, args[4]), INT(start), inside)
                    value = builder.fadd(value, other)
                e.store_some(e.at_least(value, floor), result, INT(start), inside)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            source, integer, integer, target, integer, scale, shift, integer, others, source.dtype
        ), emit  # fmt: skip

    return store


store_run, store_run_onto = _store_run(False), _store_run(True)


@intrinsic
def interleave_tile(_, source, source0, source_pitch, target, target0):
    """target[target0 + c ROWS + r] = source[source0 + r source_pitch + c].

    For r < ROWS and c below the lanes.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        source, target = e.pointer(0, args[1]), e.pointer(3, args[4])
        # As many rows as make a square at most.
        count = min(ROWS, e.lanes)
        for first in range(0, ROWS, count):
            rows = [
                e.load_vector(source, builder.mul(args[2], INT(first + r))) for r in range(count)
            ]
            step = max(ROWS, e.lanes)
            for i, row in enumerate(e.turned_over(rows)):
                e.store_vector(row, target, INT(i * step + first))
        return context.get_dummy_value()

    integer = types.int64
    return types.void(source, integer, integer, target, integer), emit


@intrinsic
def transpose_tile(_, source, source0, source_pitch, target, target0, target_pitch):
    """target[target0 + c target_pitch + r] = source[source0 + r source_pitch + c].

    For r and c below the lanes.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        source, target = e.pointer(0, args[1]), e.pointer(3, args[4])
        rows = [e.load_vector(source, builder.mul(args[2], INT(r))) for r in range(e.lanes)]
        for r, row in enumerate(e.turned_over(rows)):
            e.store_vector(row, target, builder.mul(args[5], INT(r)))
        return context.get_dummy_value()

    integer = types.int64
    return types.void(source, integer, integer, target, integer, integer), emit


def _transpose_some(onto):
    """The intrinsic that turns over a part of a square of results and finishes them."""

    @intrinsic
    def transpose(_, source, source0, source_pitch, target, target0, target_pitch, rows, columns,
                  scale, shift, first, others, floor):  # fmt: skip
        """target[target0 + r target_pitch + c] = max(source[source0 + c source_pitch + r] a + b,
        floor).

        With a = scale[first + r], b = shift[first + r], for r < rows and c < columns. The source,
        scale and shift may be read beyond those, up to the lanes; NaN stays NaN. `onto`: added to
        `others`, which lie as the target does.
        """

        def emit(context, builder, signature, args):
            e = Emitter(context, builder, signature, args)
            source, target = e.pointer(0, args[1]), e.pointer(3, args[4])
            factors, terms = e.pointer(8, args[10]), e.pointer(9, args[10])
            square = [e.load_vector(source, builder.mul(args[2], INT(c))) for c in range(e.lanes)]
            inside, floor = e.below(args[7]), e.splat(args[12])
            nowhere = ir.Constant(inside.type, None)
            for r, row in enumerate(e.turned_over(square)):
                flags = builder.select(builder.icmp_signed("<", INT(r), args[6]), inside, nowhere)
                place = builder.mul(args[5], INT(r))
                factor, term = (e.splat(e.load(values, INT(r))) for values in (factors, terms))
                row = e.fma(row, factor, term)
                if onto:
                    row = builder.fadd(row, e.load_some(e.pointer(11, args[4]), place, flags))
                e.store_some(e.at_least(row, floor), target, place, flags)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            source, integer, integer, target, integer, integer, integer, integer, scale, shift,
            integer, others, source.dtype,
        ), emit  # fmt: skip

    return transpose


transpose_some, transpose_some_onto = _transpose_some(False), _transpose_some(True)


def transform_tile(matrix):
    """The intrinsic that applies a constant matrix (m, n) to both axes of squares of vectors.

    transform(source, source0, row, column, target, target0, target_row, target_column) sets
    target[target0 + i target_row + j target_column + p] to (matrix d matrix^T)[i, j] where
    d[i, j] = source[source0 + i row + j column + p], for every lane p.
    """
    matrix = [[float(factor) for factor in row] for row in matrix]

    def combine(e, values):
        """matrix times the vectors: sums of the plain terms first, multiples fused onto them."""
        results = []
        for factors in matrix:
            total = None
            terms = [(f, v) for f, v in zip(factors, values, strict=True) if f]
            for factor, value in sorted(terms, key=lambda term: (abs(term[0]) != 1, -term[0])):
                if total is None:
                    total = value if factor == 1 else e.builder.fmul(e.constant(factor), value)
                elif abs(factor) == 1:
                    add = e.builder.fadd if factor == 1 else e.builder.fsub
                    total = add(total, value)
                else:
                    total = e.fma(e.constant(factor), value, total)
            results.append(total)
        return results

    @intrinsic
    def tile(_, source, source0, row, column, target, target0, target_row, target_column):
        def emit(context, builder, signature, args):
            e = Emitter(context, builder, signature, args)
            source, target = e.pointer(0, args[1]), e.pointer(4, args[5])
            size = range(len(matrix[0]))

            def place(i, j, row, column):
                return builder.add(builder.mul(row, INT(i)), builder.mul(column, INT(j)))

            columns = [
                combine(e, [e.load_vector(source, place(i, j, args[2], args[3])) for i in size])
                for j in size
            ]
            for i in range(len(matrix)):
                for j, value in enumerate(combine(e, [column[i] for column in columns])):
                    e.store_vector(value, target, place(i, j, args[6], args[7]))
            return context.get_dummy_value()

        integer = types.int64
        return types.void(
            source, integer, integer, integer, target, integer, integer, integer
        ), emit

    return tile
