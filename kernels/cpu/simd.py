"""Inner loops in vector registers, which no compiler finds by itself.

A **tile** is a block of results that stay in registers while their sums run: all of them are
advanced by one step from few loads, so that the arithmetic, not the memory, sets the pace. Numba's
loops cannot be told to keep them there, so the tiles are written out as LLVM instructions, once for
each kind, by `intrinsic`s whose size follows the processor's registers. They take flat arrays with
the index of the first element: no bounds are checked, the callers' arithmetic answers for them.

    product_tile    y[r, :] = sum_k a[k, r] x[offset[k] : ]          rows of a convolution
    dot_tile        y[r, s] += sum_p a[r, p] x[offset[s] + p]        its gradient by the weight
    max_tile        the largest element of each window, and where it lies
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
_WIDE = _FEATURES.get("avx512f", False)
# Bytes of a vector register; and 32 of those (AVX-512, 64-bit ARM) or 16.
VECTOR_BYTES = 64 if _WIDE else 32 if _FEATURES.get("avx2", False) else 16
_MANY = _WIDE or "aarch64" in llvm.get_default_triple()
# A product tile has ROWS x (VECTORS vectors), a dot tile DOT_ROWS x DOT_TAPS sums.
ROWS, VECTORS = 8 if _MANY else 4, 3
DOT_ROWS, DOT_TAPS = 4, 6 if _MANY else 3

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

    def total(self, vector):
        """The sum of a vector's elements, in halves."""
        builder, width = self.builder, self.lanes
        while width > 1:
            width //= 2
            nothing = ir.Constant(vector.type, ir.Undefined)
            low, high = (
                builder.shuffle_vector(
                    vector, nothing, ir.Constant(ir.VectorType(ir.IntType(32), width), half)
                )
                for half in (list(range(width)), list(range(width, 2 * width)))
            )
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.IntType(32)(0))

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
    def tile(_, a, a0, x, x0, offsets, depth, y, y0, pitch):
        """y[y0 + r pitch + p] = sum_k a[a0 + k ROWS + r] x[x0 + offsets[k] + p], r < ROWS."""

        def emit(context, builder, signature, args):
            e = _Emitter(context, builder, signature, args)
            weights, pixels, result = (e.pointer(i, args[i + 1]) for i in (0, 2, 6))
            steps, row_pitch = e.pointer(4), args[8]
            starts = [_INT(v * e.lanes) for v in range(vectors)]

            def body(k, sums):
                source = builder.gep(pixels, [e.load(steps, k)])
                loaded = [e.load_vector(source, start) for start in starts]
                first = builder.mul(k, _INT(ROWS))
                results = []
                for r in range(ROWS):
                    weight = e.splat(e.load(weights, builder.add(first, _INT(r))))
                    for v in range(vectors):
                        results.append(e.fma(weight, loaded[v], sums[r * vectors + v]))
                return results

            zero = ir.Constant(e.vector, [0.0] * e.lanes)
            sums = e.loop(args[5], 1, [zero] * (ROWS * vectors), body)
            for r in range(ROWS):
                line = builder.gep(result, [builder.mul(row_pitch, _INT(r))])
                for v in range(vectors):
                    e.store_vector(sums[r * vectors + v], line, starts[v])
            return context.get_dummy_value()

        return types.void(a, types.int64, x, types.int64, offsets, types.int64, y, types.int64,
                          types.int64), emit  # fmt: skip

    return tile


product_tile, product_tile_1 = _product_tile(VECTORS), _product_tile(1)


@intrinsic
def dot_tile(_, a, a0, a_pitch, x, x0, offsets, first, length, y, y0, y_pitch):
    """y[y0 + r y_pitch + s] += sum_p a[a0 + r a_pitch + p] x[x0 + offsets[first + s] + p].

    For r < DOT_ROWS, s < DOT_TAPS and p < length, a multiple of the lanes.
    """

    def emit(context, builder, signature, args):
        e = _Emitter(context, builder, signature, args)
        weights, pixels, result = (e.pointer(i, args[j]) for i, j in ((0, 1), (3, 4), (8, 9)))
        steps = e.pointer(5, args[6])
        lines = [
            builder.gep(weights, [builder.mul(args[2], _INT(r))]) for r in range(DOT_ROWS)
        ]
        taps = [builder.gep(pixels, [e.load(steps, _INT(s))]) for s in range(DOT_TAPS)]

        def body(p, sums):
            left = [e.load_vector(line, p) for line in lines]
            results = list(sums)
            for s, tap in enumerate(taps):
                right = e.load_vector(tap, p)
                for r in range(DOT_ROWS):
                    at = r * DOT_TAPS + s
                    results[at] = e.fma(left[r], right, sums[at])
            return results

        zero = ir.Constant(e.vector, [0.0] * e.lanes)
        sums = e.loop(args[7], e.lanes, [zero] * (DOT_ROWS * DOT_TAPS), body)
        for r in range(DOT_ROWS):
            line = builder.gep(result, [builder.mul(args[10], _INT(r))])
            for s in range(DOT_TAPS):
                address = builder.gep(line, [_INT(s)])
                total = e.total(sums[r * DOT_TAPS + s])
                builder.store(builder.fadd(builder.load(address), total), address)
        return context.get_dummy_value()

    return types.void(a, types.int64, types.int64, x, types.int64, offsets, types.int64,
                      types.int64, y, types.int64, types.int64), emit  # fmt: skip


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
