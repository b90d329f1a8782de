"""Local response normalisation on all cores; the definitions stand in kernels.reference.lrn.

A task is one image and one stretch of positions, over all channels, and the innermost loops run
along the stretch, which is contiguous. What the window sums of its channels waits in a ring of as
many lines, where a channel takes the place of the one that leaves the window. So every channel is
read once, and all that is read again lies in a first cache.
"""

import math

import numpy as np
from numba import get_thread_id, njit, prange, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, Emitter
from kernels.cpu.moves import copy
from kernels.cpu.streams import fetch, past_caches, stream
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.reference.lrn import check_lrn

_STRETCH = 512
_VECTORS = 4  # summed at a time; they divide a stretch


@intrinsic
def _window_sum(_, ring, sums, length, factor, term):
    """sums[p] = term + factor sum_j ring[j, p] for p < length, and up to the next _VECTORS."""

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        ring, sums = e.pointer(0), e.pointer(1)
        rows, _ = e.shape(0)
        factor, term = e.splat(args[3]), e.splat(args[4])
        places = [INT(v * e.lanes) for v in range(_VECTORS)]

        def block(p, _):
            def add(j, totals):
                line = builder.gep(ring, [builder.add(builder.mul(j, INT(_STRETCH)), p)])
                return [
                    builder.fadd(total, e.load_vector(line, place))
                    for total, place in zip(totals, places, strict=True)
                ]

            totals = e.loop(rows, INT(1), [e.constant(0.0)] * _VECTORS, add)
            target = builder.gep(sums, [p])
            for total, place in zip(totals, places, strict=True):
                e.store_vector(e.fma(total, factor, term), target, place)
            return []

        e.loop(args[2], INT(_VECTORS * e.lanes), [], block)
        return context.get_dummy_value()

    return types.void(ring, sums, types.int64, ring.dtype, ring.dtype), emit


@njit(inline="always")
def _damp(x, scale, y, beta):
    """y = x scale^-beta along one line; the papers' 3/4 by two square roots, which vectorise."""
    one = scale.dtype.type(1)
    if beta == 0.75:
        for p in range(x.size):
            root = math.sqrt(scale[p])
            y[p] = x[p] * (one / (root * math.sqrt(root)))
    else:
        for p in range(x.size):
            y[p] = x[p] * scale[p] ** -beta


@njit(inline="always")
def _damp_backward(dy, x, scale, own, through, beta):
    """own = dy scale^-beta and through = own x / scale, both by products of scale^-1/4."""
    one = scale.dtype.type(1)
    if beta == 0.75:
        for p in range(x.size):
            fourth = one / math.sqrt(math.sqrt(scale[p]))
            half = fourth * fourth
            own[p] = dy[p] * (half * fourth)
            through[p] = own[p] * x[p] * (half * half)
    else:
        for p in range(x.size):
            own[p] = dy[p] * scale[p] ** -beta
            through[p] = own[p] * x[p] / scale[p]


@njit(inline="always")
def _put(target, start, computed, length, past):
    if past:
        stream(target, start, computed, 0, length)
    else:
        copy(target, start, computed, 0, length)


@njit(parallel=True, cache=True, error_model="numpy")
def _lrn(x, y, scale, shape, window, alpha, beta, k, scratch, past):
    """x, y, scale: flat. scratch: for each thread the ring, and lines for scale and y."""
    n, channels, size = shape
    before, after = window
    rows = before + 1 + after
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        length = stop - start
        lines = scratch[get_thread_id()]
        ring, sums, damped = lines[:rows], lines[rows], lines[rows + 1]
        ring[:] = 0
        for c in range(channels + after):
            # Channel c enters the window of channel c - after, which is then whole.
            entering = ring[c % rows, :length]
            if c < channels:
                at = (image * channels + c) * size + start
                if c + 1 < channels:
                    fetch(x, at + size, length)
                line = x[at : at + length]
                for p in range(length):
                    entering[p] = line[p] * line[p]
            else:
                entering[:] = 0
            if c >= after:
                at = (image * channels + c - after) * size + start
                _window_sum(ring, sums, length, alpha, k)
                _damp(x[at : at + length], sums[:length], damped[:length], beta)
                _put(scale, at, sums, length, past)
                _put(y, at, damped, length, past)


@njit(parallel=True, cache=True, error_model="numpy")
def _lrn_backward(dy, x, scale, dx, shape, window, factor, beta, scratch, past):
    """All arrays flat. scratch: for each thread the ring, lines of dy scale^-beta, and one more."""
    n, channels, size = shape
    after, before = window  # mirrored
    rows, zero = before + 1 + after, x.dtype.type(0)
    stretches = (size + _STRETCH - 1) // _STRETCH
    for task in prange(n * stretches):
        image, stretch = split(task, stretches)
        start, stop = chunk_bounds(stretch, _STRETCH, size)
        length = stop - start
        lines = scratch[get_thread_id()]
        ring, waiting, sums = lines[:rows], lines[rows:-1], lines[-1]
        ring[:] = 0
        for c in range(channels + after):
            entering = ring[c % rows, :length]
            if c < channels:
                at = (image * channels + c) * size + start
                own, scales = waiting[c % (after + 1), :length], scale[at : at + length]
                pixels, grad = x[at : at + length], dy[at : at + length]
                _damp_backward(grad, pixels, scales, own, entering, beta)
            else:
                entering[:] = 0
            if c >= after:
                at = (image * channels + c - after) * size + start
                _window_sum(ring, sums, length, factor, zero)
                own, pixels = waiting[(c - after) % (after + 1), :length], x[at : at + length]
                for p in range(length):
                    sums[p] = own[p] - pixels[p] * sums[p]
                _put(dx, at, sums, length, past)


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
    scratch = workspace("lrn", (num_threads(), sum(window) + 3, _STRETCH), x.dtype)
    _lrn(
        _flat(x), y.reshape(-1), scale.reshape(-1), _shape(x), window, *settings, scratch,
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
    lines = sum(window) + 1 + window[0] + 1 + 1
    scratch = workspace("lrn", (num_threads(), lines, _STRETCH), x.dtype)
    _lrn_backward(
        _flat(dy), _flat(x), _flat(scale), dx.reshape(-1), _shape(x), window, *settings, scratch,
        past_caches(dy, x, scale, dx),
    )  # fmt: skip
    return dx
