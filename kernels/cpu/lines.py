"""Writing vector instructions along lines of pixels: what the pieces of pooling share.

Where neighbouring windows lie a stride apart, a vector of them reads every stride-th pixel: as many
vectors as the stride has pixels, of which shuffles make one. For that the stride is a constant of
the code; beyond STRIDES, pixels are taken one by one.
"""

from functools import lru_cache, reduce

import numpy as np
from llvmlite import ir

from kernels.cpu.emitter import INT, Emitter

# Strides that are constants of the code.
STRIDES = 1, 2, 3, 4
# Rows and taps of windows with code of their own, without a loop.
COMMON = (2, 2), (2, 3), (3, 3)
# Terms that are added one by one; longer sums are made of such parts, which round less.
PART = 16


def is_tall(kernel_size, stride) -> bool:
    """Whether windows overlap so much that pooling along rows, then along columns, is less."""
    return kernel_size[0] >= 4 * stride[0] and kernel_size[1] > 1


@lru_cache
def row_windows(height, windows, size, stride, before):
    """For each row of an image: the first window that has it, and how many have it."""
    row = np.arange(height) + before
    first = np.maximum(0, (row - size) // stride + 1)
    return first, np.maximum(0, np.minimum(windows, row // stride + 1) - first)


class LineEmitter(Emitter):
    """What the pieces share."""

    def get(self, pointer, index, inside):
        if inside is None:
            return self.load_vector(pointer, index)
        return self.load_some(pointer, index, inside)

    def put(self, value, pointer, index, inside):
        if inside is None:
            self.store_vector(value, pointer, index)
        else:
            self.store_some(value, pointer, index, inside)

    def along_windows(self, windows, stride, left, width, reach, outside, body):
        """body(u, pixels, inside) for vector after vector of `windows` windows.

        The first window begins `left` pixels before a line of `width`, the others `stride` apart;
        all reach `reach` pixels further, and the one after the last would reach beyond the line.
        pixels(lines, offset): those `offset` <= reach after the beginnings of the windows from u
        on, the sum of all lines'; `outside` where a line has none. `inside`
        flags the windows of a vector that is not full; else it is None.
        """
        builder, known = self.builder, isinstance(stride, int)
        take = self._grouped if known else self._single

        def vector(u, _):
            first = builder.sub(builder.mul(u, self.int(stride)), left)

            def pixels(width):
                return lambda lines, offset: take(lines, first, offset, stride, width, outside)

            def at_an_end():
                body(u, pixels(width), self.below(builder.sub(windows, u)))

            if not known:
                at_an_end()
                return []
            group, _ = self._group(reach, stride)
            stop = builder.add(builder.add(first, group), INT(self.lanes * stride))
            within = builder.and_(
                builder.icmp_signed(">=", first, INT(0)), builder.icmp_signed("<=", stop, width)
            )
            with builder.if_else(within) as (whole, partial):
                with whole:
                    body(u, pixels(None), None)
                with partial:
                    at_an_end()
            return []

        self.loop(windows, INT(self.lanes), [], vector)

    def along_groups(self, width, stride, left, windows, last, body):
        """body(q, whole) for group after group of pixels, a vector of each of `stride` phases.

        Lane p of phase b is the pixel c = (q + p) stride - left + b of a line of `width`, which
        begins `left` pixels after the first of `windows` windows. `whole`: all lie in the line,
        and windows q + p - m are there for all m <= last.
        """
        builder = self.builder

        def group(q, _):
            first = builder.sub(builder.mul(q, INT(stride)), left)
            after = builder.add(first, INT(self.lanes * stride))
            flags = [
                builder.icmp_signed(">=", q, last),
                builder.icmp_signed("<=", builder.add(q, INT(self.lanes)), windows),
                builder.icmp_signed(">=", first, INT(0)),
                builder.icmp_signed("<=", after, width),
            ]
            with builder.if_else(reduce(builder.and_, flags)) as (whole, partial):
                with whole:
                    body(q, True)
                with partial:
                    body(q, False)
            return []

        groups = self.quotient(builder.add(width, left), stride, stride - 1)
        self.loop(groups, INT(self.lanes), [], group)

    def put_group(self, phases, pointer, c, width):
        """Store a group of pixels from c on, or those that lie in a line of this `width`."""
        wide = self.interleaved(phases)
        for j in range(len(phases)):
            part = self.shuffled(wide, wide, [*range(j * self.lanes, (j + 1) * self.lanes)])
            at = self.builder.add(c, INT(j * self.lanes))
            self.put(part, pointer, at, None if width is None else self.within(at, width))

    @staticmethod
    def int(number):
        """A number that may be known as an instruction's operand."""
        return INT(number) if isinstance(number, int) else number

    @staticmethod
    def _group(offset, stride):
        """(where a group of `stride` vectors begins, the first pixel to take of it).

        Offsets that are known share the group of those beside them.
        """
        if isinstance(offset, int):
            return INT(offset - offset % stride), offset % stride
        return offset, 0

    def _grouped(self, lines, first, offset, stride, width, outside):
        """The sum of line[first + offset + p stride] for each lane p; those between are read, too.

        Without `width` all lie in the line.
        """
        if isinstance(offset, int) and offset >= stride > 1:
            # All but the last have been taken before.
            before = self._grouped(lines, first, offset - stride, stride, width, outside)
            at = self.builder.add(first, INT(offset + (self.lanes - 1) * stride))
            pixel = self.splat(self._pixel(lines, at, width, outside))
            return self.shuffled(before, pixel, [*range(1, self.lanes + 1)])
        group, number = self._group(offset, stride)
        start, vectors = self.builder.add(first, group), []
        for j in range(stride):
            at = self.builder.add(start, INT(j * self.lanes))
            if width is None:
                parts = [self.load_vector(line, at) for line in lines]
            else:
                inside = self.within(at, width)
                parts = [self.load_some(line, at, inside, outside) for line in lines]
            vectors.append(reduce(self.builder.fadd, parts))
        wide = self.joined(vectors)
        return self.shuffled(wide, wide, [number + p * stride for p in range(self.lanes)])

    def _single(self, lines, first, offset, stride, width, outside):
        """The same, pixel by pixel."""
        builder, vector = self.builder, self.constant(outside)
        at = builder.add(first, self.int(offset))
        for p in range(self.lanes):
            pixel = self._pixel(lines, at, width, outside)
            vector = builder.insert_element(vector, pixel, ir.IntType(32)(p))
            at = builder.add(at, stride)
        return vector

    def _pixel(self, lines, at, width, outside):
        """The sum of line[at], which lies in the line where there is no `width`."""
        if width is None:
            return reduce(self.builder.fadd, [self.load(line, at) for line in lines])
        inside = self.builder.icmp_unsigned("<", at, width)
        place = self.builder.select(inside, at, INT(0))
        pixel = reduce(self.builder.fadd, [self.load(line, place) for line in lines])
        return self.builder.select(inside, pixel, ir.Constant(self.real, outside))

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

    def cases(self, counts, known, body, when=None):
        """body(*counts), with code of its own for the `known` counts: then they are ints.

        Only `when` that flag is set, if there is one.
        """
        after = self.builder.append_basic_block("after")
        for numbers in known:
            flags = [] if when is None else [when]
            for count, number in zip(counts, numbers, strict=True):
                flags.append(self.builder.icmp_signed("==", count, INT(number)))
            with self.builder.if_then(reduce(self.builder.and_, flags)):
                body(*numbers)
                self.builder.branch(after)
        body(*counts)
        self.builder.branch(after)
        self.builder.position_at_end(after)

    def better(self, candidate, held):
        """The better of two pairs (value, number), `held` if they are equal; NaN is best of all."""
        value, best = candidate[0], held[0]
        # Unordered or greater lets a NaN win; an ordered best keeps the first NaN.
        wins = self.builder.and_(
            self.builder.fcmp_unordered(">", value, best),
            self.builder.fcmp_ordered("==", best, best),
        )
        return [self.builder.select(wins, *pair) for pair in zip(candidate, held, strict=True)]

    def quotient(self, value, divisor, add=0):
        """(value + add) // divisor of ints that are not negative."""
        return self.builder.sdiv(self.builder.add(value, INT(add)), INT(divisor))

    def sum(self, count, term):
        """The sum of term(i) for i < count, in parts."""
        add, zero = self.builder.fadd, self.constant(0.0)
        if isinstance(count, int):
            return reduce(add, [term(i) for i in range(count)]) if count else zero

        return self.in_parts(count, PART, 1, lambda i, sums: [add(sums[0], term(i))])[0]
