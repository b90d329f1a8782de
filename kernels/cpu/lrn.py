"""Local response normalisation on all cores; the definitions stand in kernels.reference.lrn.

A task is one image and one stretch of positions, over all channels, and the innermost loops run
along the stretch, which is contiguous. So every channel comes from memory once, and when the window
meets it again it lies in a first cache. What backward sums is computed once and waits in a ring of
as many lines as the window has, where a channel takes the place of the one that leaves.
"""

from llvmlite import ir
from numba import get_thread_id, njit, prange, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, Emitter
from kernels.cpu.planes import flat
from kernels.cpu.streams import before_line, past_caches, write
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.reference.lrn import check_lrn

# Elements, of which a few lines fill no more than a first cache.
_STRETCH = 768
_VECTORS = 4  # side by side


def _over_window(e, totals, lines, rows, pitch, load, term):
    """Sums of vectors: total = term(vector, total) over `rows` lines, `pitch` apart."""

    def add(j, totals):
        line = e.builder.gep(lines, [e.builder.mul(j, pitch)])
        return [term(load(line, v), total) for v, total in enumerate(totals)]

    return e.loop(rows, INT(1), totals, add)


def _damping(e, scales, beta):
    """scale^-beta; the papers' 3/4 by square roots, of which there are instructions."""
    builder = e.builder
    usual = builder.fcmp_ordered("==", beta, e.real(0.75))
    results = []
    for scale in scales:
        with builder.if_else(usual) as (then, otherwise):
            with then:
                quick, quickly = e.power_of_minus_three_quarters(scale), builder.block
            with otherwise:
                slow, slowly = e.power(scale, e.splat(builder.fneg(beta))), builder.block
        result = builder.phi(e.vector)
        result.add_incoming(quick, quickly)
        result.add_incoming(slow, slowly)
        results.append(result)
    return results


@intrinsic
def _normalise(_, x, first, rows, pitch, y, scale, at, length, alpha, beta, k, past):
    """scale = k + alpha sum_j x_j^2 and y = x scale^-beta, for `length` elements from `at` on.

    x_j are `rows` lines of x, `pitch` apart, of which the first begins at `first`; one more is
    fetched.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        lines, rows, pitch = e.pointer(0, args[1]), args[2], args[3]
        own, y, scale = e.pointer(0, args[6]), e.pointer(4, args[6]), e.pointer(5, args[6])
        length, past = args[7], args[11]
        factor, term = e.splat(args[8]), e.splat(args[10])

        following = builder.gep(lines, [builder.mul(rows, pitch)])

        def compute(place, load):
            e.prefetch(builder.gep(following, [place]), INT(_VECTORS * e.lanes), cache=1)
            zeros = [e.constant(0.0)] * _VECTORS
            totals = _over_window(
                e, zeros, lines, rows, pitch, load, lambda value, total: e.fma(value, value, total)
            )
            scales = [e.fma(total, factor, term) for total in totals]
            damped = [
                builder.fmul(load(own, v), damping)
                for v, damping in enumerate(_damping(e, scales, args[9]))
            ]
            return damped, scales

        head = before_line(e, y, length, past)
        write(e, [y, scale], length, [past, past], _VECTORS, compute, head)
        return context.get_dummy_value()

    integer, real = types.int64, x.dtype
    return types.void(x, integer, integer, integer, y, scale, integer, integer, real, real, real,
                      types.boolean), emit  # fmt: skip


@intrinsic
def _pass_on(_, dy, x, scale, at, enters, ring, rows, through, own, left, left_at, waited, dx,
             length, pitch, factor, beta, past):  # fmt: skip
    """A channel enters the window, and one that waited in it leaves with its gradient.

    Of `length` elements from `at` on own = dy scale^-beta, and through = own x / scale, or 0 where
    nothing `enters`; dx = waited - factor left (the sum of `through` and `rows` lines of the ring).
    `through` may be a line of the ring, and `own` the one that `waited`. The next channel, which
    is fetched, lies at a `pitch`.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        operands = [e.pointer(i, args[3]) for i in range(3)]
        ring, through, own, waited, dx = (e.pointer(i) for i in (5, 7, 8, 11, 12))
        left, length, pitch, past = e.pointer(9, args[10]), args[13], args[14], args[17]
        factor = e.splat(builder.fneg(args[15]))
        at_once = builder.icmp_unsigned("==", own, waited)

        def compute(place, load):
            for operand in operands:
                ahead = builder.gep(operand, [builder.add(place, pitch)])
                e.prefetch(ahead, INT(_VECTORS * e.lanes))
            grads, values, scales = (
                [load(operand, v) for v in range(_VECTORS)] for operand in operands
            )
            weighed = [
                builder.fmul(grad, damping)
                for grad, damping in zip(grads, _damping(e, scales, args[16]), strict=True)
            ]
            terms = [
                builder.select(
                    args[4], builder.fdiv(builder.fmul(weight, value), scale), e.constant(0.0)
                )
                for weight, value, scale in zip(weighed, values, scales, strict=True)
            ]
            totals = _over_window(
                e, terms, ring, args[6], INT(_STRETCH), load,
                lambda value, total: builder.fadd(total, value),
            )  # fmt: skip
            leaving = [
                builder.select(at_once, weight, load(waited, v)) for v, weight in enumerate(weighed)
            ]
            results = [
                e.fma(builder.fmul(factor, load(left, v)), total, leaving[v])
                for v, total in enumerate(totals)
            ]
            return weighed, terms, results

        no = ir.IntType(1)(0)
        head = before_line(e, dx, length, past)
        write(e, [own, through, dx], length, [no, no, past], _VECTORS, compute, head)
        return context.get_dummy_value()

    integer, real, flag = types.int64, x.dtype, types.boolean
    return types.void(
        dy, x, scale, integer, flag, ring, integer, through, own, left, integer, waited, dx,
        integer, integer, real, real, flag,
    ), emit  # fmt: skip


@njit(parallel=True, cache=True)
def _lrn(x, y, scale, shape, window, alpha, beta, k, past):
    """All arrays flat."""
    n, channels, size = shape
    before, after = window
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        length = stop - start
        start += image * channels * size
        for c in range(channels):
            low, high = max(0, c - before), min(channels, c + after + 1)
            _normalise(
                x, start + low * size, high - low, size, y, scale, start + c * size, length,
                alpha, beta, k, past,
            )  # fmt: skip


@njit(parallel=True, cache=True)
def _lrn_backward(dy, x, scale, dx, shape, window, factor, beta, scratch, past):
    """All arrays flat. scratch: for each thread lines of dy scale^-beta that wait, the ring,
    and a line for what nobody wants."""
    n, channels, size = shape
    after, before = window  # mirrored
    rows = before + after
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        length = stop - start
        start += image * channels * size
        lines = scratch[get_thread_id()]
        waiting, ring, spare = lines[: after + 1], lines[after + 1 : -1], lines[-1]
        ring[:] = 0
        for c in range(channels + after):
            # Channel c enters the window of channel c - after, which is then whole.
            left = c - after
            at, left_at = start + min(c, channels - 1) * size, start + max(left, 0) * size
            target = spare[:length] if left < 0 else dx[left_at : left_at + length]
            _pass_on(
                dy, x, scale, at, c < channels, ring, rows, ring[c % max(rows, 1)],
                waiting[c % (after + 1)], x, left_at, waiting[left % (after + 1)], target,
                length, size, factor, beta, past and left >= 0,
            )  # fmt: skip


def _shape(x):
    """(N, C, P)"""
    n, c, h, w = x.shape
    return n, c, h * w


def _reach(size, channels):
    """How many channels a window reaches before and after its own, of those there are."""
    return min(size // 2, channels), min((size - 1) // 2, channels)


def lrn(x, size, alpha, beta, k, size_normalized=False):
    """See kernels.reference.lrn."""
    check_lrn(size, x=x)
    alpha = alpha / size if size_normalized else alpha
    y, scale = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    window, number = _reach(size, x.shape[1]), x.dtype.type
    settings = number(alpha), number(beta), number(k)
    _lrn(
        flat(x), y.reshape(-1), scale.reshape(-1), _shape(x), window, *settings,
        past_caches(x, y, scale),
    )  # fmt: skip
    return y, scale


def lrn_backward(dy, x, scale, size, alpha, beta, k, size_normalized=False):
    """See kernels.reference.lrn_backward."""
    check_lrn(size, x=x, dy=dy, scale=scale)
    alpha = alpha / size if size_normalized else alpha
    dx = empty(x.shape, x.dtype)
    window, number = _reach(size, x.shape[1]), x.dtype.type
    settings = number(2 * alpha * beta), number(beta)
    lines = window[0] + 1 + max(1, sum(window)) + 1
    scratch = workspace("lrn", (num_threads(), lines, _STRETCH), x.dtype)
    _lrn_backward(
        flat(dy), flat(x), flat(scale), dx.reshape(-1), _shape(x), window, *settings, scratch,
        past_caches(dy, x, scale, dx),
    )  # fmt: skip
    return dx
