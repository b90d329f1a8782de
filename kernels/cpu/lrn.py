"""Local response normalisation on all cores; the definitions stand in kernels.reference.lrn.

A task is one image and one stretch of positions, over all channels, and the innermost loops run
along the stretch, which is contiguous. So every channel comes from memory once, and when the window
meets it again it lies in a first cache. What backward sums is computed once and waits in a ring of
as many lines as the window has, where a channel takes the place of the one that leaves.
"""

import numpy as np
from llvmlite import ir
from numba import get_thread_id, njit, prange, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, Emitter
from kernels.cpu.streams import before_line, fetch, past_caches, write
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.reference.lrn import check_lrn

_STRETCH = 512
_VECTORS = 4  # side by side


def _over_window(e, lines, rows, pitch, load, term):
    """Sums of vectors: those of term(vector, total) over `rows` lines, `pitch` apart."""

    def add(j, totals):
        line = e.builder.gep(lines, [e.builder.mul(j, pitch)])
        return [term(load(line, v), total) for v, total in enumerate(totals)]

    return e.loop(rows, INT(1), [e.constant(0.0)] * _VECTORS, add)


def _damping(e, scales, beta):
    """scale^-beta; the papers' 3/4 by square roots, of which there are instructions."""
    builder = e.builder
    usual = builder.fcmp_ordered("==", beta, e.real(0.75))
    results = []
    for scale in scales:
        with builder.if_else(usual) as (then, otherwise):
            with then:
                root = e.inverse_root(scale)
                quick, quickly = builder.fmul(root, e.root(root)), builder.block
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

    x_j are `rows` lines of x, `pitch` apart, of which the first begins at `first`.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        lines, rows, pitch = e.pointer(0, args[1]), args[2], args[3]
        own, y, scale = e.pointer(0, args[6]), e.pointer(4, args[6]), e.pointer(5, args[6])
        length, past = args[7], args[11]
        factor, term = e.splat(args[8]), e.splat(args[10])

        def compute(_, load):
            totals = _over_window(
                e, lines, rows, pitch, load, lambda value, total: e.fma(value, value, total)
            )
            scales = [e.fma(total, factor, term) for total in totals]
            damped = [
                builder.fmul(load(own, v), damping)
                for v, damping in enumerate(_damping(e, scales, args[9]))
            ]
            return damped, scales

        head = before_line(e, y, length, past)
        write(e, [y, scale], length, past, _VECTORS, compute, head)
        return context.get_dummy_value()

    integer, real = types.int64, x.dtype
    return types.void(x, integer, integer, integer, y, scale, integer, integer, real, real, real,
                      types.boolean), emit  # fmt: skip


@intrinsic
def _weigh(_, dy, x, scale, at, length, beta, own, through):
    """own = dy scale^-beta and through = own x / scale, of `length` elements from `at` on."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        dy, x, scale = (e.pointer(i, args[3]) for i in range(3))

        def compute(_, load):
            scales = [load(scale, v) for v in range(_VECTORS)]
            own = [
                builder.fmul(load(dy, v), damping)
                for v, damping in enumerate(_damping(e, scales, args[5]))
            ]
            through = [
                builder.fdiv(builder.fmul(value, load(x, v)), scales[v])
                for v, value in enumerate(own)
            ]
            return own, through

        write(e, [e.pointer(6), e.pointer(7)], args[4], ir.IntType(1)(0), _VECTORS, compute)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(dy, x, scale, integer, integer, x.dtype, own, through), emit


@intrinsic
def _gather(_, ring, own, x, dx, at, length, factor, past):
    """dx = own - factor x (the sum of the ring's lines), for `length` elements from `at` on."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        ring, own, x, dx = e.pointer(0), e.pointer(1), e.pointer(2, args[4]), e.pointer(3, args[4])
        rows, pitch = e.shape(0)
        factor = e.splat(builder.fneg(args[6]))

        def compute(place, load):
            totals = _over_window(
                e, ring, rows, pitch, load, lambda value, total: builder.fadd(total, value)
            )
            return [
                [
                    e.fma(builder.fmul(factor, load(x, v)), total, load(own, v))
                    for v, total in enumerate(totals)
                ]
            ]

        length, past = args[5], args[7]
        write(e, [dx], length, past, _VECTORS, compute, before_line(e, dx, length, past))
        return context.get_dummy_value()

    integer = types.int64
    return types.void(ring, own, x, dx, integer, integer, x.dtype, types.boolean), emit


@njit(parallel=True, cache=True)
def _lrn(x, y, scale, shape, window, alpha, beta, k, past):
    """x, y, scale: flat."""
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
            if high < channels:
                fetch(x, start + high * size, length)
            _normalise(
                x, start + low * size, high - low, size, y, scale, start + c * size, length,
                alpha, beta, k, past,
            )  # fmt: skip


@njit(parallel=True, cache=True)
def _lrn_backward(dy, x, scale, dx, shape, window, factor, beta, scratch, past):
    """All arrays flat. scratch: for each thread the ring, and lines of dy scale^-beta."""
    n, channels, size = shape
    after, before = window  # mirrored
    rows = before + 1 + after
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        length = stop - start
        start += image * channels * size
        lines = scratch[get_thread_id()]
        ring, waiting = lines[:rows], lines[rows:]
        ring[:] = 0
        for c in range(channels + after):
            # Channel c enters the window of channel c - after, which is then whole.
            entering = ring[c % rows]
            if c < channels:
                own = waiting[c % (after + 1)]
                _weigh(dy, x, scale, start + c * size, length, beta, own, entering)
            else:
                entering[:] = 0
            if c >= after:
                own = waiting[(c - after) % (after + 1)]
                _gather(ring, own, x, dx, start + (c - after) * size, length, factor, past)


def _flat(x):
    return np.ascontiguousarray(x).reshape(-1)


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
        _flat(x), y.reshape(-1), scale.reshape(-1), _shape(x), window, *settings,
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
    lines = sum(window) + 1 + window[0] + 1
    scratch = workspace("lrn", (num_threads(), lines, _STRETCH), x.dtype)
    _lrn_backward(
        _flat(dy), _flat(x), _flat(scale), dx.reshape(-1), _shape(x), window, *settings, scratch,
        past_caches(dy, x, scale, dx),
    )  # fmt: skip
    return dx
