"""Writing vector instructions: the tool with which kernels.cpu.simd writes its tiles."""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

_FEATURES = llvm.get_host_cpu_features()
_WIDE = _FEATURES.get("avx512f", False)
# Bytes of a vector register; and 32 of those (AVX-512, 64-bit ARM) or 16.
VECTOR_BYTES = 64 if _WIDE else 32 if _FEATURES.get("avx2", False) else 16
_MANY = _WIDE or "aarch64" in llvm.get_default_triple()
# A product tile has ROWS x (VECTORS vectors) sums.
ROWS, VECTORS = 8 if _MANY else 4, 3

CACHE_LINE = 64  # bytes

INT = ir.IntType(64)


def lanes(dtype) -> int:
    """Elements of a vector."""
    return VECTOR_BYTES // dtype.itemsize


class Emitter:
    """Writes the instructions of a tile for arguments that are arrays or ints."""

    def __init__(self, context, builder, signature, args):
        self.builder = builder
        self._context = context
        self._types = signature.args
        self._args = args
        array = next(argument for argument in signature.args if hasattr(argument, "dtype"))
        self.real = context.get_value_type(array.dtype)
        self.lanes = VECTOR_BYTES // self.size(self.real)
        self.vector = ir.VectorType(self.real, self.lanes)

    def pointer(self, array, start=None):
        """The address of element number `start` of argument number `array`."""
        struct = cgutils.create_struct_proxy(self._types[array])
        data = struct(self._context, self.builder, value=self._args[array]).data
        return data if start is None else self.builder.gep(data, [start])

    def shape(self, array):
        """The lengths of the axes of argument number `array`."""
        struct = cgutils.create_struct_proxy(self._types[array])
        shape = struct(self._context, self.builder, value=self._args[array]).shape
        return cgutils.unpack_tuple(self.builder, shape)

    def load(self, pointer, index):
        """One element."""
        return self.builder.load(self.builder.gep(pointer, [index]))

    def load_vector(self, pointer, index):
        """A vector of elements from number `index` on, which need not be aligned."""
        vector = ir.VectorType(pointer.type.pointee, self.lanes)
        address = self.builder.bitcast(self.builder.gep(pointer, [index]), vector.as_pointer())
        return self.builder.load(address, align=self.size(vector.element))

    def store_vector(self, value, pointer, index):
        address = self.builder.gep(pointer, [index])
        address = self.builder.bitcast(address, value.type.as_pointer())
        self.builder.store(value, address, align=self.size(value.type.element))

    def stream_vector(self, value, pointer, index):
        """Store a vector past the caches, to an address that is a multiple of its size."""
        address = self.builder.gep(pointer, [index])
        address = self.builder.bitcast(address, value.type.as_pointer())
        store = self.builder.store(value, address, align=VECTOR_BYTES)
        store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.IntType(32)(1)]))

    def put_vectors(self, values, pointer, index, past):
        """Store vectors side by side; where the flag `past` is set, past the caches."""
        stores = self.stream_vector, self.store_vector
        with self.builder.if_else(past) as branches:
            for branch, store in zip(branches, stores, strict=True):
                with branch:
                    for v, value in enumerate(values):
                        store(value, pointer, self.builder.add(index, INT(v * self.lanes)))

    def prefetch(self, pointer, count, cache=2):
        """Fetch the lines of so many elements into the first or the second cache."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [pointer.type, *[ir.IntType(32)] * 3]),
            f"llvm.prefetch.p0{self._name(pointer.type.pointee)}",
        )
        read, level, data = (ir.IntType(32)(value) for value in (0, 4 - cache, 1))

        def line(place, _):
            self.builder.call(function, [self.builder.gep(pointer, [place]), read, level, data])
            return []

        self.loop(count, INT(CACHE_LINE // self.size(pointer.type.pointee)), [], line)

    def smaller(self, a, b):
        """min(a, b) of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def splat(self, value, count=None):
        """A vector whose elements are all `value`: `count` of them, or as many as have lanes."""
        count = count or self.lanes
        nothing = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
        vector = self.builder.insert_element(nothing, value, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
        return self.builder.shuffle_vector(vector, nothing, mask)

    def constant(self, value):
        """A vector of one number."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def fma(self, a, b, c):
        """a b + c, rounded once."""
        return self._call("fma", a, b, c)

    def root(self, value):
        """The square roots of a vector."""
        return self._call("sqrt", value)

    def power(self, base, exponent):
        """base^exponent of vectors, which takes a function call for every element."""
        return self._call("pow", base, exponent)

    def _call(self, name, *vectors):
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.vector, [self.vector] * len(vectors)),
            f"llvm.{name}.v{self.lanes}f{8 * self.size(self.real)}",
        )
        return self.builder.call(function, vectors)

    def power_of_minus_three_quarters(self, value):
        """value^(-3/4), to about a bit.

        Two roots and a quotient take as long as thirty products. Where there are estimates of
        inverse roots, of 14 bits, two of them give f, near value^(-1/4). With r = 1 - value f^4

            value^(-3/4) = f^3 (1 - r)^(-3/4) = f^3 (1 + 3/4 r + 21/32 r^2 + ...).
        """
        builder, one = self.builder, self.constant(1.0)
        if not (_WIDE and self.real == ir.FloatType()):
            root = self.root(value)
            return builder.fdiv(one, builder.fmul(root, self.root(root)))
        inverse_root = self._inverse_root_estimate(value)
        fourth = self._inverse_root_estimate(builder.fmul(value, inverse_root))
        square = builder.fmul(fourth, fourth)
        rest = self.fma(builder.fneg(builder.fmul(value, square)), square, one)
        cube = builder.fmul(square, fourth)
        series = builder.fmul(rest, self.fma(rest, self.constant(21 / 32), self.constant(3 / 4)))
        # Of 0 and of infinity the first estimate is exact, and the result as well; the rest is NaN.
        known = builder.fcmp_ordered("ord", rest, rest)
        return builder.select(known, self.fma(cube, series, cube), inverse_root)

    def _inverse_root_estimate(self, value):
        flags = ir.IntType(self.lanes)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.vector, [self.vector, self.vector, flags]),
            "llvm.x86.avx512.rsqrt14.ps.512",
        )
        return self.builder.call(function, [value, self.constant(0.0), flags(-1)])

    def store_some(self, value, pointer, index, inside):
        """Store the elements of a vector whose flags (a vector of bits) are set."""
        flags = ir.VectorType(ir.IntType(1), self.lanes)
        size, name = self.size(value.type.element), self._name(value.type)
        store = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(
                ir.VoidType(), [value.type, value.type.as_pointer(), ir.IntType(32), flags]
            ),
            f"llvm.masked.store.{name}.p0{name}",
        )
        address = self.builder.bitcast(self.builder.gep(pointer, [index]), value.type.as_pointer())
        self.builder.call(store, [value, address, ir.IntType(32)(size), inside])

    def _name(self, kind):
        """Of a number or a vector, as intrinsics are named."""
        if isinstance(kind, ir.VectorType):
            return f"v{kind.count}{self._name(kind.element)}"
        return f"{'i' if isinstance(kind, ir.IntType) else 'f'}{8 * self.size(kind)}"

    def below(self, count, start=0):
        """Flags of the lanes whose number, counted from `start`, is below `count` (64 bits)."""
        integer = ir.IntType(32)
        numbers = ir.VectorType(integer, self.lanes)
        lane = ir.Constant(numbers, list(range(start, start + self.lanes)))
        return self.builder.icmp_signed("<", lane, self.splat(self.builder.trunc(count, integer)))

    def within(self, first, stop):
        """Flags of the lanes p with 0 <= first + p < stop."""
        integer = ir.IntType(32)
        lane = ir.Constant(ir.VectorType(integer, self.lanes), list(range(self.lanes)))
        number = self.builder.add(lane, self.splat(self.builder.trunc(first, integer)))
        stop = self.splat(self.builder.trunc(stop, integer))
        return self.builder.icmp_unsigned("<", number, stop)

    def load_some(self, pointer, index, inside, others=0):
        """The elements of a vector whose flags are set, and `others`; nothing else is read."""
        vector = ir.VectorType(pointer.type.pointee, self.lanes)
        name = self._name(vector)
        flags = ir.VectorType(ir.IntType(1), self.lanes)
        load = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(vector, [vector.as_pointer(), ir.IntType(32), flags, vector]),
            f"llvm.masked.load.{name}.p0{name}",
        )
        address = self.builder.bitcast(self.builder.gep(pointer, [index]), vector.as_pointer())
        size = ir.IntType(32)(self.size(vector.element))
        others = ir.Constant(vector, [others] * self.lanes)
        return self.builder.call(load, [address, size, inside, others])

    def shuffled(self, a, b, order):
        """The elements of a and b, one after the other, in another order: as many as that lists."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
        return self.builder.shuffle_vector(a, b, mask)

    def turned_over(self, rows):
        """The columns of at most a square of vectors, a power of two, one after the other.

        With r rows, they are r vectors, each of lanes / r columns. Halves, quarters, ... of pairs
        of rows change places until they hold the right columns, in the end in the right order.
        """
        rows, count, lanes = list(rows), len(rows), self.lanes
        half, apart = lanes // 2, count // 2
        while apart:
            keep = [i if i & half == 0 else lanes + i - half for i in range(lanes)]
            move = [i + half if i & half == 0 else lanes + i for i in range(lanes)]
            for r in range(count):
                if r & apart == 0:
                    pair = rows[r], rows[r + apart]
                    rows[r], rows[r + apart] = (
                        self.shuffled(*pair, keep), self.shuffled(*pair, move)
                    )  # fmt: skip
            half, apart = half // 2, apart // 2
        if count == lanes:
            return rows
        columns = lanes // count
        order = [r * columns + c for c in range(columns) for r in range(count)]
        return [self.shuffled(row, row, order) for row in rows]

    def total(self, vector):
        """The sum of a vector's elements, by halves."""
        return self._folded(vector, self.builder.fadd)

    def largest(self, vector):
        """The largest of a vector's elements, by halves, none of which is NaN."""
        return self._folded(vector, self.at_least)

    def _folded(self, vector, combine):
        lanes = vector.type.count
        half = lanes // 2
        while half:
            order = [(i + half) % lanes for i in range(lanes)]
            vector = combine(vector, self.shuffled(vector, vector, order))
            half //= 2
        return self.builder.extract_element(vector, ir.IntType(32)(0))

    def at_least(self, value, floor):
        """max(value, floor); NaN stays NaN."""
        return self.builder.select(self.builder.fcmp_ordered("<", value, floor), floor, value)

    def barrier(self):
        """No load is moved across: where many come early, they take the registers of the sums."""
        nothing = ir.FunctionType(ir.VoidType(), [])
        self.builder.asm(nothing, "", "~{memory}", [], True)

    def loop(self, stop, step, values, body):
        """values = body(index, values) for index in range(0, stop, step); the final values."""
        builder = self.builder
        before = builder.block
        head = builder.append_basic_block("head")
        inside = builder.append_basic_block("inside")
        after = builder.append_basic_block("after")
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(INT)
        running = [builder.phi(value.type) for value in values]
        builder.cbranch(builder.icmp_signed("<", index, stop), inside, after)
        builder.position_at_end(inside)
        results = body(index, running)
        following = builder.add(index, step)
        last = builder.block
        builder.branch(head)
        index.add_incoming(INT(0), before)
        index.add_incoming(following, last)
        for phi, value, result in zip(running, values, results, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(result, last)
        builder.position_at_end(after)
        return running

    def in_parts(self, depth, length, count, term):
        """`count` vectors of sums: sums = term(k, sums) for k < depth, `length` terms in one go.

        Parts that start from zero round less than one long sum.
        """
        zeros = [self.constant(0.0)] * count

        def part(first, totals):
            terms = self.smaller(self.builder.sub(depth, first), INT(length))
            sums = self.loop(
                terms, INT(1), zeros, lambda k, sums: term(self.builder.add(first, k), sums)
            )
            return [self.builder.fadd(*pair) for pair in zip(totals, sums, strict=True)]

        return self.loop(depth, INT(length), zeros, part)

    def switch(self, number, bodies):
        """Run bodies[number], which write instructions when called."""
        builder = self.builder
        after = builder.append_basic_block("after")
        choice = builder.switch(number, after)
        for i, body in enumerate(bodies):
            case = builder.append_basic_block("case")
            choice.add_case(INT(i), case)
            builder.position_at_end(case)
            body()
            builder.branch(after)
        builder.position_at_end(after)

    @staticmethod
    def size(element):
        return 8 if element in (ir.DoubleType(), INT) else 4
