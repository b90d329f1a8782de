"""Tiles of products (see kernels.cpu.simd) whose operands lie anywhere in memory."""

from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, ROWS, VECTORS, Emitter


def _gather_tile(vectors):
    """y += a x, with the elements of `a` and the rows of x anywhere in memory."""

    @intrinsic
    def tile(_, a, a0, rows, first_row, places, first, depth, x, x0, y, y0):
        """See `gather_tiles`."""

        def emit(context, builder, signature, args):
            e = Emitter(context, builder, signature, args)
            source, columns, result = (
                e.pointer(array, args[start]) for array, start in ((0, 1), (7, 8), (9, 10))
            )
            ends, pairs = (
                e.pointer(array, builder.mul(args[start], INT(2)))
                for array, start in ((2, 3), (4, 5))
            )
            starts = [INT(v * e.lanes) for v in range(vectors)]
            weights = [builder.gep(source, [e.load(ends, INT(2 * r))]) for r in range(ROWS)]

            def body(k, sums):
                pair = builder.gep(pairs, [builder.mul(k, INT(2))])
                step, column = e.load(pair, INT(0)), builder.gep(columns, [e.load(pair, INT(1))])
                loaded = [e.load_vector(column, start) for start in starts]
                results = []
                for r in range(ROWS):
                    e.barrier()
                    weight = e.splat(e.load(weights[r], step))
                    for v in range(vectors):
                        results.append(e.fma(weight, loaded[v], sums[r * vectors + v]))
                return results

            zero = e.constant(0.0)
            sums = e.loop(args[6], INT(1), [zero] * (ROWS * vectors), body)
            for r in range(ROWS):
                line = builder.gep(result, [e.load(ends, INT(2 * r + 1))])
                for v, start in enumerate(starts):
                    total = builder.fadd(e.load_vector(line, start), sums[r * vectors + v])
                    e.store_vector(total, line, start)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(a, integer, rows, integer, places, integer, integer, x, integer, y,
                          integer), emit  # fmt: skip

    return tile


_gather_1, _gather_2, _gather_3 = (_gather_tile(vectors) for vectors in (1, 2, VECTORS))


@njit(cache=True)
def gather_tiles(a, a0, rows, first_row, places, first, depth, x, x0, y, y0, vectors):
    """y[y0 + t[r] + p] += sum_k a[a0 + s[r] + i[k]] x[x0 + j[k] + p].

    With the pairs (s, t)[r] = rows[first_row + r] and (i, j)[k] = places[first + k], flat. For
    r < ROWS, k < depth, and p in `vectors` vectors, at most VECTORS.
    """
    if vectors == 1:
        _gather_1(a, a0, rows, first_row, places, first, depth, x, x0, y, y0)
    elif vectors == 2:
        _gather_2(a, a0, rows, first_row, places, first, depth, x, x0, y, y0)
    else:
        _gather_3(a, a0, rows, first_row, places, first, depth, x, x0, y, y0)
