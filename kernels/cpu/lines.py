"""Writing vector instructions along lines of pixels: what the pieces of pooling share.

Where neighbouring windows lie a stride apart, a vector of them reads every stride-th pixel: as many
vectors as the stride has pixels, of which shuffles make one. For that the stride is a constant of
the code; beyond STRIDES, pixels are taken one by one.
"""

from functools import reduce

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, Emitter

# Strides that are constants of the code.
STRIDES = 1, 2, 3, 4
# Numbers of taps with code of their own, without a loop.
_COMMON = 1, 2, 3
# Terms that are added one by one; longer sums are made of such parts, which round less.
PART = 16


class LineEmitter(Emitter):
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

        return self.in_parts(count, PART, 1, lambda i, sums: [add(sums[0], term(i))])[0]


@intrinsic
def move_down(_, x, source, target, count):
    """x[target : target + count] = x[source : source + count] with target <= source.

    Of what follows, up to a vector may be overwritten.
    """

    def emit(context, builder, signature, args):
        e = LineEmitter(context, builder, signature, args)

        def vector(i, _):
            e.store_vector(e.load_vector(e.pointer(0, args[1]), i), e.pointer(0, args[2]), i)
            return []

        e.loop(args[3], INT(e.lanes), [], vector)
        return context.get_dummy_value()

    return types.void(x, types.int64, types.int64, types.int64), emit
