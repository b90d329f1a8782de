"""Softmax and cross-entropy on all cores; the definitions stand in kernels.reference.loss.

A task is a group of samples, which are whole: no sum is split over cores. The logits of a sample
are copied side by side first, wherever they lie, so that they are exponentiated in vectors.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, VECTOR_BYTES, Emitter
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.workspace import empty
from kernels.reference.loss import check_cross_entropy

# Logits a task; the other threads are not woken for a single one.
_CHUNK = 1 << 14
_LANES = VECTOR_BYTES // 4  # at most
_SUM_FLAGS = {"reassoc", "nsz", "contract"}


def _exp(e, x):
    """exp of a vector of numbers up to 0; what comes to less than any normal number becomes 0.

    With x = n ln 2 + r and |r| at most ln 2 / 2, it is 2^n exp(r), an exponent and a Taylor
    polynomial. n is rounded by adding a number so large that its last bit counts as one: that bit
    and those above it then hold n. A NaN stays NaN.
    """
    builder = e.builder
    bits, mantissa, lowest, degree = (
        (64, 52, -708.0, 13) if e.real == ir.DoubleType() else (32, 23, -87.0, 7)
    )
    integers = ir.VectorType(ir.IntType(bits), e.lanes)
    rounding = e.constant(1.5 * 2.0**mantissa)
    shifted = e.fma(x, e.constant(math.log2(math.e)), rounding)
    n = builder.fsub(shifted, rounding)
    # ln 2 in two parts, the first of so few bits that its product with n is exact.
    high = round(math.log(2) * 2**13) / 2**13
    r = e.fma(n, e.constant(-high), x)
    r = e.fma(n, e.constant(high - math.log(2)), r)
    power = e.constant(1 / math.factorial(degree))
    for k in reversed(range(degree)):
        power = e.fma(power, r, e.constant(1 / math.factorial(k)))
    exponent = builder.shl(
        builder.bitcast(shifted, integers), ir.Constant(integers, [mantissa] * e.lanes)
    )
    one = builder.bitcast(e.constant(1.0), integers)
    scale = builder.bitcast(builder.add(exponent, one), e.vector)
    too_small = builder.fcmp_ordered("<", x, e.constant(lowest))
    return builder.select(too_small, e.constant(0.0), builder.fmul(power, scale))


@intrinsic
def _exponentials(_, line, length):
    """(largest, total): line = exp(line - its largest) in place, and its sum in float64.

    Reads and writes `line` up to the next whole vector. NaN reaches the total.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        line, length, step = e.pointer(0), args[1], INT(e.lanes)
        wide = ir.VectorType(ir.DoubleType(), e.lanes)
        lowest = e.constant(float("-inf"))

        def inside(place, values, otherwise):
            return builder.select(e.below(builder.sub(length, place)), values, otherwise)

        def larger(place, best):
            values = inside(place, e.load_vector(line, place), lowest)
            return [builder.select(builder.fcmp_ordered(">", values, best[0]), values, best[0])]

        (best,) = e.loop(length, step, [lowest], larger)
        largest = e.largest(best)
        every = e.splat(largest)

        def exponentiate(place, totals):
            values = _exp(e, builder.fsub(e.load_vector(line, place), every))
            values = inside(place, values, e.constant(0.0))
            e.store_vector(values, line, place)
            values = values if e.vector == wide else builder.fpext(values, wide)
            return [builder.fadd(totals[0], values)]

        zero = ir.Constant(wide, [0.0] * e.lanes)
        (totals,) = e.loop(length, step, [zero], exponentiate)
        results = largest, e.total(totals)
        return context.make_tuple(builder, signature.return_type, results)

    return types.Tuple((line.dtype, types.float64))(line, types.int64), emit


@njit(inline="always")
def _exponentiate(logits, line):
    """(largest, total) of one sample, and in `line` the exponentials of its logits."""
    for c in range(logits.size):
        line[c] = logits[c]
    return _exponentials(line, logits.size)


@njit(cache=True, fastmath=_SUM_FLAGS)
def _losses(logits, target, losses, start, stop):
    """Arrays (N, P, C) and (N, P); samples from `start` to `stop`."""
    positions, classes = logits.shape[1:]
    line = np.empty(classes + _LANES, logits.dtype)
    for sample in range(start, stop):
        image, p = split(sample, positions)
        row, weights = logits[image, p], target[image, p]
        largest, total = _exponentiate(row, line)
        log_total = math.log(total)
        loss = 0.0
        for c in range(classes):
            term = weights[c] * (log_total - (row[c] - largest))
            loss += term if weights[c] != 0 else 0.0
        losses[image, p] = loss


@njit(cache=True, fastmath=_SUM_FLAGS)
def _gradients(grad, logits, target, dlogits, start, stop):
    """As `_losses`."""
    positions, classes = logits.shape[1:]
    line = np.empty(classes + _LANES, logits.dtype)
    for sample in range(start, stop):
        image, p = split(sample, positions)
        weights, result, factor = target[image, p], dlogits[image, p], grad[image, p]
        _, total = _exponentiate(logits[image, p], line)
        mass = 0.0
        for c in range(classes):
            mass += weights[c]
        share = logits.dtype.type(mass / total)
        for c in range(classes):
            result[c] = factor * (line[c] * share - weights[c])


@njit(parallel=True, cache=True)
def _cross_entropy(logits, target, losses, chunk):
    for task in prange((losses.size + chunk - 1) // chunk):
        start, stop = chunk_bounds(task, chunk, losses.size)
        _losses(logits, target, losses, start, stop)


@njit(parallel=True, cache=True)
def _cross_entropy_backward(grad, logits, target, dlogits, chunk):
    for task in prange((grad.size + chunk - 1) // chunk):
        start, stop = chunk_bounds(task, chunk, grad.size)
        _gradients(grad, logits, target, dlogits, start, stop)


def _samples(array):
    """(N, C, ...) as (N, P, C): contiguous where P is 1, which makes the code for it fast."""
    n, classes, *positions = array.shape
    if math.prod(positions) == 1:
        return np.ascontiguousarray(array).reshape(n, 1, classes)
    return np.ascontiguousarray(array).reshape(n, classes, math.prod(positions)).transpose(0, 2, 1)


def softmax_cross_entropy(logits, target):
    """See kernels.reference.softmax_cross_entropy."""
    check_cross_entropy(logits, target)
    losses = empty((logits.shape[0], *logits.shape[2:]), logits.dtype)
    rows, weights = _samples(logits), _samples(target)
    results = losses.reshape(rows.shape[:2])
    if logits.size <= _CHUNK:
        _losses(rows, weights, results, 0, losses.size)
    else:
        _cross_entropy(rows, weights, results, max(1, _CHUNK // logits.shape[1]))
    return losses


def softmax_cross_entropy_backward(grad, logits, target):
    """See kernels.reference.softmax_cross_entropy_backward."""
    check_cross_entropy(logits, target, grad)
    dlogits = empty(logits.shape, logits.dtype)
    rows, weights, results = (_samples(array) for array in (logits, target, dlogits))
    factors = np.ascontiguousarray(grad).reshape(rows.shape[:2])
    if logits.size <= _CHUNK:
        _gradients(factors, rows, weights, results, 0, grad.size)
    else:
        _cross_entropy_backward(factors, rows, weights, results, max(1, _CHUNK // logits.shape[1]))
    return dlogits
