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
def _exponentiate(logits, image, p, line):
    """(largest, total) of one sample, and in `line` the exponentials of its logits."""
    classes = logits.shape[1]
    for c in range(classes):
        line[c] = logits[image, c, p]
    return _exponentials(line, classes)


@njit(cache=True, fastmath=_SUM_FLAGS)
def _losses(logits, target, losses, start, stop):
    classes, positions = logits.shape[1:]
    line = np.empty(classes + _LANES, logits.dtype)
    for row in range(start, stop):
        image, p = split(row, positions)
        largest, total = _exponentiate(logits, image, p, line)
        log_total = math.log(total)
        loss = 0.0
        for c in range(classes):
            weight = target[image, c, p]
            term = weight * (log_total - (logits[image, c, p] - largest))
            loss += term if weight != 0 else 0.0
        losses[image, p] = loss


@njit(cache=True, fastmath=_SUM_FLAGS)
def _gradients(grad, logits, target, dlogits, start, stop):
    classes, positions = logits.shape[1:]
    line = np.empty(classes + _LANES, logits.dtype)
    for row in range(start, stop):
        image, p = split(row, positions)
        _, total = _exponentiate(logits, image, p, line)
        mass = 0.0
        for c in range(classes):
            mass += target[image, c, p]
        share = logits.dtype.type(mass / total)
        for c in range(classes):
            dlogits[image, c, p] = grad[image, p] * (line[c] * share - target[image, c, p])


@njit(parallel=True, cache=True)
def _cross_entropy(logits, target, losses, chunk):
    rows = losses.size
    for task in prange((rows + chunk - 1) // chunk):
        start, stop = chunk_bounds(task, chunk, rows)
        _losses(logits, target, losses, start, stop)


@njit(parallel=True, cache=True)
def _cross_entropy_backward(grad, logits, target, dlogits, chunk):
    rows = grad.size
    for task in prange((rows + chunk - 1) // chunk):
        start, stop = chunk_bounds(task, chunk, rows)
        _gradients(grad, logits, target, dlogits, start, stop)


def _planes(array):
    """(N, C, ...) as a contiguous (N, C, P)."""
    return np.ascontiguousarray(array).reshape(*array.shape[:2], math.prod(array.shape[2:]))


def softmax_cross_entropy(logits, target):
    """See kernels.reference.softmax_cross_entropy."""
    check_cross_entropy(logits, target)
    planes = _planes(logits)
    losses = empty((planes.shape[0], planes.shape[2]), logits.dtype)
    arrays = planes, _planes(target), losses
    if logits.size <= _CHUNK:
        _losses(*arrays, 0, losses.size)
    else:
        _cross_entropy(*arrays, max(1, _CHUNK // logits.shape[1]))
    return losses.reshape(logits.shape[0], *logits.shape[2:])


def softmax_cross_entropy_backward(grad, logits, target):
    """See kernels.reference.softmax_cross_entropy_backward."""
    check_cross_entropy(logits, target, grad)
    planes = _planes(logits)
    dlogits = empty(planes.shape, logits.dtype)
    flat = np.ascontiguousarray(grad).reshape(planes.shape[0], planes.shape[2])
    arrays = flat, planes, _planes(target), dlogits
    if logits.size <= _CHUNK:
        _gradients(*arrays, 0, flat.size)
    else:
        _cross_entropy_backward(*arrays, max(1, _CHUNK // logits.shape[1]))
    return dlogits.reshape(logits.shape)
