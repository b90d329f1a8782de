"""Inner loops in vector registers, which no compiler finds by itself.

A **tile** is a block of results that stay in registers while their sums run: all of them are
advanced by one step from few loads, so that the arithmetic, not the memory, sets the pace. Numba's
loops cannot be told to keep them there, so the tiles are written out as LLVM instructions, once for
each kind, by `intrinsic`s whose size follows the processor's registers. They take flat arrays with
the index of the first element: no bounds are checked, the callers' arithmetic answers for them.

    product_tiles   y[r, :] += sum_k a[k, r] x[offset[k] : ]
    transpose_tile  a square of elements turned over
    max_tile        the largest element of each window, and where it lies
    store_run       a run of results, rectified
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
_WIDE = _FEATURES.get("avx512f", False)
# Bytes of a vector register; and 32 of those (AVX-512, 64-bit ARM) or 16.
VECTOR_BYTES = 64 if _WIDE else 32 if _FEATURES.get("avx2", False) else 16
_MANY = _WIDE or "aarch64" in llvm.get_default_triple()
# A product tile has ROWS x (VECTORS vectors) sums.
ROWS, VECTORS = 8 if _MANY else 4, 3

_INT = ir.IntType(64)


def lanes(dtype) -> int:
    """Elements of a vector."""
    return VECTOR_BYTES // dtype.itemsize


class _Emitter:
    """Writes the instructions of a tile for arguments that are arrays or ints."""

    def __init__(self, context, builder, signature, args):
        self.builder = builder
        self._context = context
        self._types = signature.args
        self._args = args
        self.real = context.get_value_type(signature.args[0].dtype)
        self.lanes = VECTOR_BYTES // (4 if self.real == ir.FloatType() else 8)
        self.vector = ir.VectorType(self.real, self.lanes)

    def pointer(self, array, start=None):
        """The address of element number `start` of argument number `array`."""
        struct = cgutils.create_struct_proxy(self._types[array])
        data = struct(self._context, self.builder, value=self._args[array]).data
        return data if start is None else self.builder.gep(data, [start])

    def load(self, pointer, index):
        """One element."""
        return self.builder.load(self.builder.gep(pointer, [index]))

    def load_vector(self, pointer, index, element=None):
        """A vector of elements from number `index` on, which need not be aligned."""
        vector = self.vector if element is None else ir.VectorType(element, self.lanes)
        address = self.builder.bitcast(self.builder.gep(pointer, [index]), vector.as_pointer())
        return self.builder.load(address, align=self._size(vector.element))

    def store_vector(self, value, pointer, index):
        address = self.builder.gep(pointer, [index])
        address = self.builder.bitcast(address, value.type.as_pointer())
        self.builder.store(value, address, align=self._size(value.type.element))

    def splat(self, value):
        """A vector whose elements are all `value`."""
        nothing = ir.Constant(ir.VectorType(value.type, self.lanes), ir.Undefined)
        vector = self.builder.insert_element(nothing, value, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(vector, nothing, mask)

    def fma(self, a, b, c):
        """a b + c, rounded once."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fma.v{self.lanes}f{8 * self._size(self.real)}",
        )
        return self.builder.call(function, [a, b, c])

    def loop(self, stop, step, values, body):
        """values = body(index, values) for index in range(0, stop, step); the final values."""
        builder = self.builder
        before = builder.block
        head = builder.append_basic_block("head")
        inside = builder.append_basic_block("inside")
        after = builder.append_basic_block("after")
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(_INT)
        running = [builder.phi(value.type) for value in values]
        builder.cbranch(builder.icmp_signed("<", index, stop), inside, after)
        builder.position_at_end(inside)
        results = body(index, running)
        following = builder.add(index, _INT(step))
        last = builder.block
        builder.branch(head)
        index.add_incoming(_INT(0), before)
        index.add_incoming(following, last)
        for phi, value, result in zip(running, values, results, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(result, last)
        builder.position_at_end(after)
        return running

    @staticmethod
    def _size(element):
        return 8 if element == ir.DoubleType() else 4


def _product_tile(vectors):
    @intrinsic
    def tile(_, a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch):
        """See `product_tiles`."""

        def emit(context, builder, signature, args):
            e = _Emitter(context, builder, signature, args)
            weights, pixels, steps, result = (
                e.pointer(array, args[start]) for array, start in ((0, 1), (3, 4), (5, 6), (8, 9))
            )
            starts = [_INT(v * e.lanes) for v in range(vectors)]
            lines = [builder.gep(result, [builder.mul(args[10], _INT(r))]) for r in range(ROWS)]

            def body(k, sums):
                source = builder.gep(pixels, [e.load(steps, k)])
                loaded = [e.load_vector(source, start) for start in starts]
                column = builder.gep(weights, [builder.mul(k, args[2])])
                results = []
                for r in range(ROWS):
                    weight = e.splat(e.load(column, _INT(r)))
                    for v in range(vectors):
                        results.append(e.fma(weight, loaded[v], sums[r * vectors + v]))
                return results

            before = [e.load_vector(line, start) for line in lines for start in starts]
            sums = e.loop(args[7], 1, before, body)
            for r, line in enumerate(lines):
                for v, start in enumerate(starts):
                    e.store_vector(sums[r * vectors + v], line, start)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(a, integer, integer, x, integer, offsets, integer, integer, y, integer,
                          integer), emit  # fmt: skip

    return tile


_product_1, _product_2, _product_3 = (_product_tile(vectors) for vectors in (1, 2, VECTORS))


@njit(inline="always")
def product_tiles(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch, vectors):
    """y[y0 + r y_pitch + p] += sum_k a[a0 + k a_pitch + r] x[x0 + offsets[first + k] + p].

    For r < ROWS, k < depth, and p in `vectors` vectors, at most VECTORS.
    """
    if vectors == 1:
        _product_1(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
    elif vectors == 2:
        _product_2(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)
    else:
        _product_3(a, a0, a_pitch, x, x0, offsets, first, depth, y, y0, y_pitch)


@intrinsic
def store_run(_, source, source0, length, target, target0, floor):
    """target[target0 + p] = max(source[source0 + p], floor) for p < length <= VECTORS vectors.

    NaN stays NaN. The source may be read beyond the length, the target is not written there.
    """

    def emit(context, builder, signature, args):
        e = _Emitter(context, builder, signature, args)
        values, result = e.pointer(0, args[1]), e.pointer(3, args[4])
        integer = ir.IntType(32)
        numbers = ir.VectorType(integer, e.lanes)
        count = e.splat(builder.trunc(args[2], integer))
        floor = e.splat(args[5])
        bits, flags = 8 * e._size(e.real), ir.VectorType(ir.IntType(1), e.lanes)
        store = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [e.vector, e.vector.as_pointer(), integer, flags]),
            f"llvm.masked.store.v{e.lanes}f{bits}.p0v{e.lanes}f{bits}",
        )
        for v in range(VECTORS):
            start = v * e.lanes
            value = e.load_vector(values, _INT(start))
            value = builder.select(builder.fcmp_ordered("<", value, floor), floor, value)
            lane = ir.Constant(numbers, list(range(start, start + e.lanes)))
            address = builder.gep(result, [_INT(start)])
            address = builder.bitcast(address, e.vector.as_pointer())
            inside = builder.icmp_signed("<", lane, count)
            builder.call(store, [value, address, integer(e._size(e.real)), inside])
        return context.get_dummy_value()

    return types.void(source, types.int64, types.int64, target, types.int64, source.dtype), emit


@intrinsic
def transpose_tile(_, source, source0, source_pitch, target, target0, target_pitch):
    """target[target0 + c target_pitch + r] = source[source0 + r source_pitch + c].

    For r and c below the lanes: by exchanging ever smaller halves of pairs of rows.
    """

    def emit(context, builder, signature, args):
        e = _Emitter(context, builder, signature, args)
        source, target = e.pointer(0, args[1]), e.pointer(3, args[4])
        rows = [
            e.load_vector(source, builder.mul(args[2], _INT(r))) for r in range(e.lanes)
        ]
        half = e.lanes // 2
        while half:
            keep = [i if i & half == 0 else e.lanes + i - half for i in range(e.lanes)]
            move = [i + half if i & half == 0 else e.lanes + i for i in range(e.lanes)]
            masks = [
                ir.Constant(ir.VectorType(ir.IntType(32), e.lanes), mask) for mask in (keep, move)
            ]
            for r in range(e.lanes):
                if r & half == 0:
                    pair = rows[r], rows[r + half]
                    rows[r], rows[r + half] = (
                        builder.shuffle_vector(*pair, mask) for mask in masks
                    )
            half //= 2
        for r, row in enumerate(rows):
            e.store_vector(row, target, builder.mul(args[5], _INT(r)))
        return context.get_dummy_value()

    integer = types.int64
    return types.void(source, integer, integer, target, integer, integer), emit


@intrinsic
def max_tile(_, x, x0, offsets, steps, taps, corners, first, start, y, winners):
    """For p in the vectors from `start` on: y[p] = max over t of x[x0 + offsets[t] + p].

    winners[p] = corners[p] + steps[t] of the first t that has it, or first[p] where all are
    -infinity. NaN is larger than any number, and the first NaN wins.
    """

    def emit(context, builder, signature, args):
        e = _Emitter(context, builder, signature, args)
        at = args[7]
        pixels = e.pointer(0, builder.add(args[1], at))
        moves, numbers = e.pointer(2), e.pointer(3)
        integer = ir.IntType(32)
        corner = e.load_vector(e.pointer(5), at, integer)

        def body(t, values):
            best, winner = values
            value = e.load_vector(builder.gep(pixels, [e.load(moves, t)]), _INT(0))
            # Unordered or greater lets a NaN win; an ordered best keeps the first NaN.
            wins = builder.and_(
                builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("==", best, best)
            )
            number = builder.add(corner, e.splat(e.load(numbers, t)))
            return builder.select(wins, value, best), builder.select(wins, number, winner)

        lowest = ir.Constant(e.vector, [float("-inf")] * e.lanes)
        initial = [lowest, e.load_vector(e.pointer(6), at, integer)]
        best, winner = e.loop(args[4], 1, initial, body)
        e.store_vector(best, e.pointer(8), at)
        e.store_vector(winner, e.pointer(9), at)
        return context.get_dummy_value()

    return types.void(x, types.int64, offsets, steps, types.int64, corners, first, types.int64, y,
                      winners), emit  # fmt: skip


@intrinsic
def copy(_, target, target0, source, source0, length):
    """target[target0 : target0 + length] = source[source0 : source0 + length], of one dtype."""

    def emit(context, builder, signature, args):
        e = _Emitter(context, builder, signature, args)
        size = builder.mul(args[4], _INT(e._size(e.real)))
        cgutils.raw_memcpy(
            builder, e.pointer(0, args[1]), e.pointer(2, args[3]), size, 1, align=1
        )
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), emit
