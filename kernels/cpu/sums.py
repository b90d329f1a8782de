"""Sums along runs of elements in vector registers, in an order that is written out.

An order that is left to the compiler may differ between code that is new and the same code from its
cache, and with it the last bit of a sum. Here it depends on nothing but the length of the run and
the width of a vector. As the tiles of kernels.cpu.simd these take the index of the first element of
a run, and check no bounds.

    run_total             the sum of a run, in its own dtype
    wide_total            of what it exceeds a number by, in float64
    square_total          the sum of the squares about a number
    gradient_totals       of a gradient, and of it times what lies beside it, less a number
    rectified_gradient_totals   the same where a result is positive
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, Emitter

_VECTORS = 4  # side by side
# Elements whose sum stays in their dtype, in vectors twice as wide, before it goes to float64.
_PART = 1 << 9


def _same(value):
    return value


class _RunEmitter(Emitter):
    """What the sums share."""

    def along(self, first, count, zeros, add):
        """The sums of some quantities, a vector each, over `count` elements from `first` on.

        sums = add(sums, load, keep) for every vector of elements, which load(pointer) gives. Beyond
        the run it is 0, and keep(value) makes 0 of what is computed there.
        """
        builder, quantities = self.builder, len(zeros)
        whole = builder.and_(count, INT(-_VECTORS * self.lanes))

        def group(index, sums):
            results = []
            for v in range(_VECTORS):
                place = builder.add(first, builder.add(index, INT(v * self.lanes)))
                some = sums[v * quantities : (v + 1) * quantities]
                results += add(some, lambda pointer, p=place: self.load_vector(pointer, p), _same)
            return results

        sums = self.loop(whole, INT(_VECTORS * self.lanes), zeros * _VECTORS, group)
        sums = [self.together(sums[q::quantities]) for q in range(quantities)]
        left = builder.sub(count, whole)

        def rest(index, sums):
            place = builder.add(first, builder.add(whole, index))
            inside = self.below(builder.sub(left, index))
            return add(
                sums,
                lambda pointer: self.load_some(pointer, place, inside),
                lambda value: builder.select(inside, value, self.constant(0.0)),
            )

        return self.loop(left, INT(self.lanes), sums, rest)

    def wide_totals(self, count, quantities, add):
        """The sums of some quantities over `count` elements, in float64; `add` as for `along`."""
        builder = self.builder

        def part(first, totals):
            length = self.smaller(builder.sub(count, first), INT(_PART))
            sums = self.along(first, length, [self.constant(0.0)] * quantities, add)
            return [
                builder.fadd(total, self.widened(some))
                for total, some in zip(totals, sums, strict=True)
            ]

        totals = self.loop(count, INT(_PART), [self.wide_zero()] * quantities, part)
        return [self.total(total) for total in totals]

    def together(self, vectors):
        """The sum of a power of two of vectors, by pairs."""
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.builder.fadd(*pair) for pair in pairs]
        return vectors[0]

    def wide_zero(self):
        return self.widened(self.constant(0.0))

    def widened(self, vector):
        """In float64: a vector as it is, or the sum of its halves."""
        if self.real == ir.DoubleType():
            return vector
        half = self.lanes // 2
        wide = ir.VectorType(ir.DoubleType(), half)
        halves = (
            self.shuffled(vector, vector, [*range(start, start + half)]) for start in (0, half)
        )
        return self.builder.fadd(*(self.builder.fpext(part, wide) for part in halves))


@intrinsic
def run_total(_, x, x0, count):
    """The sum of x[x0 : x0 + count]."""

    def emit(context, builder, signature, args):
        e = _RunEmitter(context, builder, signature, args)
        source = e.pointer(0, args[1])

        def add(sums, load, _):
            return [builder.fadd(sums[0], load(source))]

        (total,) = e.along(INT(0), args[2], [e.constant(0.0)], add)
        return e.total(total)

    return x.dtype(x, types.int64, types.int64), emit


@intrinsic
def wide_total(_, x, x0, count, centre):
    """The sum of x[x0 + p] - centre for p < count, in float64."""

    def emit(context, builder, signature, args):
        e = _RunEmitter(context, builder, signature, args)
        source, centre = e.pointer(0, args[1]), e.splat(args[3])

        def add(sums, load, keep):
            centred = keep(builder.fsub(load(source), centre))
            return [builder.fadd(sums[0], e.widened(centred))]

        (total,) = e.along(INT(0), args[2], [e.wide_zero()], add)
        return e.total(total)

    return types.float64(x, types.int64, types.int64, x.dtype), emit


@intrinsic
def square_total(_, x, x0, count, centre):
    """The sum of (x[x0 + p] - centre)^2 for p < count, in float64."""

    def emit(context, builder, signature, args):
        e = _RunEmitter(context, builder, signature, args)
        source, centre = e.pointer(0, args[1]), e.splat(args[3])

        def add(sums, load, keep):
            centred = keep(builder.fsub(load(source), centre))
            return [e.fma(centred, centred, sums[0])]

        (total,) = e.wide_totals(args[2], 1, add)
        return total

    return types.float64(x, types.int64, types.int64, x.dtype), emit


def _gradient_totals(rectified):
    """The intrinsic for every gradient, or for those where a result is positive."""

    @intrinsic
    def totals(_, dy, x, y, at, count, centre):
        """The sums of dy[at + p] and of dy[at + p] (x[at + p] - centre) for p < count, in float64.

        `rectified`: dy counts where y is positive.
        """

        def emit(context, builder, signature, args):
            e = _RunEmitter(context, builder, signature, args)
            grads, values = e.pointer(0, args[3]), e.pointer(1, args[3])
            centre, zero = e.splat(args[5]), e.constant(0.0)

            def add(sums, load, keep):
                plain, weighted = sums
                grad = load(grads)
                if rectified:
                    passes = builder.fcmp_ordered(">", load(e.pointer(2, args[3])), zero)
                    grad = builder.select(passes, grad, zero)
                centred = keep(builder.fsub(load(values), centre))
                return [builder.fadd(plain, grad), e.fma(grad, centred, weighted)]

            totals = e.wide_totals(args[4], 2, add)
            return context.make_tuple(builder, signature.return_type, totals)

        integer = types.int64
        return types.UniTuple(types.float64, 2)(dy, x, y, integer, integer, x.dtype), emit

    return totals


gradient_totals, rectified_gradient_totals = _gradient_totals(False), _gradient_totals(True)
