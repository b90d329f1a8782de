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
from kernels.cpu.sums import wide_total
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.workspace import empty
from kernels.reference.loss import check_cross_entropy, is_labels, wrong_label

# Logits a task; the other threads are not woken for a single one.
_CHUNK = 1 << 14
_LANES = VECTOR_BYTES // 4  # at most


def _exp(e, x):
    """exp of a vector of numbers up to 0; what comes to less than any normal number becomes 0.

    With x = (n + r) ln 2 and |r| at most 1/2, it is 2^n exp(r ln 2), an exponent and a Taylor
    polynomial. n is rounded by adding a number so large that its last bit counts as one: that bit
    and those above it then hold n. A NaN stays NaN.
    """
    builder = e.builder
    bits, mantissa, lowest, degree = (
        (64, 52, -708.0, 13) if e.real == ir.DoubleType() else (32, 23, -87.0, 7)
    )
    integers = ir.VectorType(ir.IntType(bits), e.lanes)
    rounding = e.constant(1.5 * 2.0**mantissa)
    binary = e.constant(math.log2(math.e))
    shifted = e.fma(x, binary, rounding)
    # The product is not rounded before n is taken from it; its factor is off by less than x is.
    r = e.fma(x, binary, builder.fsub(rounding, shifted))
    power = e.constant(math.log(2) ** degree / math.factorial(degree))
    for k in reversed(range(degree)):
        power = e.fma(power, r, e.constant(math.log(2) ** k / math.factorial(k)))
    exponent = builder.shl(
        builder.bitcast(shifted, integers), ir.Constant(integers, [mantissa] * e.lanes)
    )
    one = builder.bitcast(e.constant(1.0), integers)
    scale = builder.bitcast(builder.add(exponent, one), e.vector)
    too_small = builder.fcmp_ordered("<", x, e.constant(lowest))
    return builder.select(too_small, e.constant(0.0), builder.fmul(power, scale))


@intrinsic
def _exponentials(_, line, length, results):
    """(largest, total): results = exp(line - its largest), perhaps in place, and its sum.

    Reads `line` and writes `results` up to the next whole vector, where `line` must be -inf. NaN
    reaches the total.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        line, length, results, step = e.pointer(0), args[1], e.pointer(2), INT(e.lanes)

        def larger(place, best):
            values = e.load_vector(line, place)
            return [builder.select(builder.fcmp_ordered(">", values, best[0]), values, best[0])]

        (best,) = e.loop(length, step, [e.constant(float("-inf"))], larger)
        largest = e.largest(best)
        every = e.splat(largest)

        def exponentiate(place, totals):
            values = _exp(e, builder.fsub(e.load_vector(line, place), every))
            e.store_vector(values, results, place)
            return [builder.fadd(totals[0], values)]

        (totals,) = e.loop(length, step, [e.constant(0.0)], exponentiate)
        return context.make_tuple(builder, signature.return_type, (largest, e.total(totals)))

    return types.UniTuple(line.dtype, 2)(line, types.int64, results), emit


@njit(inline="always")
def _exponentiate(logits, line, results):
    """(largest, total) of one sample; in `line` its logits, in `results` their exponentials."""
    for c in range(logits.size):
        line[c] = logits[c]
    line[logits.size : logits.size + _LANES] = -np.inf
    return _exponentials(line, logits.size, results)


@njit(cache=True)
def _losses(logits, target, smoothing, ignore_index, losses, start, stop):
    """Logits and weights (N, P, C), labels and losses (N, P); samples from `start` to `stop`."""
    positions, classes = logits.shape[1:]
    real = logits.dtype.type
    line, weights = np.empty((2, classes + _LANES), logits.dtype)
    for sample in range(start, stop):
        image, p = split(sample, positions)
        largest, total = _exponentiate(logits[image, p], line, weights)
        log_total = math.log(total)
        mass = _mass(target, image, p, ignore_index, weights)
        rest, even = real(1 - smoothing), real(smoothing * mass / classes)
        loss = 0.0
        if target.ndim == 3:
            for c in range(classes):
                weight = rest * weights[c] + even
                term = weight * (log_total - (line[c] - largest))
                line[c] = term if weight != 0 else real(0)
            loss = wide_total(line, 0, classes, real(0))
        elif mass:
            if rest != 0:
                loss += rest * (log_total - (line[target[image, p]] - largest))
            if even != 0:
                loss += even * (classes * log_total - wide_total(line, 0, classes, largest))
        losses[image, p] = loss


@njit(cache=True)
def _gradients(grad, factor, logits, target, smoothing, ignore_index, dlogits, start, stop):
    """As `_losses`; `grad` of one element, or of one a sample."""
    positions, classes = logits.shape[1:]
    real = logits.dtype.type
    line, weights = np.empty((2, classes + _LANES), logits.dtype)
    for sample in range(start, stop):
        image, p = split(sample, positions)
        result = dlogits[image, p]
        slope = grad[sample if grad.size > 1 else 0] * real(factor)
        _, total = _exponentiate(logits[image, p], line, line)
        mass = _mass(target, image, p, ignore_index, weights)
        share, rest = real(mass / total), real(1 - smoothing)
        even = real(smoothing * mass / classes)
        if target.ndim == 3:
            for c in range(classes):
                result[c] = slope * (line[c] * share - (rest * weights[c] + even))
        else:
            for c in range(classes):
                result[c] = slope * (line[c] * share - even)
            if mass:
                label = target[image, p]
                result[label] = slope * (line[label] * share - (rest + even))


@njit(cache=True)
def _mass(target, image, p, ignore_index, weights):
    """What a sample's classes weigh together; given what each weighs, that goes to `weights`."""
    if target.ndim == 3:
        given = target[image, p]
        for c in range(given.size):
            weights[c] = given[c]
        mass = wide_total(weights, 0, given.size, given.dtype.type(0))
    else:
        mass = 0.0 if target[image, p] == ignore_index else 1.0
    return mass


@njit(cache=True)
def _count(target, classes, ignore_index):
    """(how many samples count, the place of the first label that is no class, or -1)."""
    counted = 0
    if target.ndim == 3:
        counted = target.shape[0] * target.shape[1]
    else:
        for place, label in enumerate(target.flat):
            if label != ignore_index:
                if label < 0 or label >= classes:
                    return counted, place
                counted += 1
    return counted, -1


@njit(parallel=True, cache=True)
def _cross_entropy(logits, target, smoothing, ignore_index, losses):
    """(sum of all losses, how many samples count, the place of a label that is no class or -1)."""
    counted, wrong = _count(target, logits.shape[2], ignore_index)
    total = 0.0
    if wrong >= 0:
        return total, counted, wrong
    if logits.size <= _CHUNK:
        _losses(logits, target, smoothing, ignore_index, losses, 0, losses.size)
    else:
        chunk = max(1, _CHUNK // logits.shape[2])
        for task in prange((losses.size + chunk - 1) // chunk):
            start, stop = chunk_bounds(task, chunk, losses.size)
            _losses(logits, target, smoothing, ignore_index, losses, start, stop)
    for loss in losses.flat:
        total += loss
    return total, counted, wrong


@njit(parallel=True, cache=True)
def _cross_entropy_backward(grad, mean, logits, target, smoothing, ignore_index, dlogits):
    """The place of a label that is no class, or -1."""
    counted, wrong = _count(target, logits.shape[2], ignore_index)
    if wrong >= 0:
        return wrong
    factor = 1.0
    if mean:
        factor = 1 / counted if counted else math.nan
    samples = target.shape[0] * target.shape[1]
    if logits.size <= _CHUNK:
        _gradients(grad, factor, logits, target, smoothing, ignore_index, dlogits, 0, samples)
    else:
        chunk = max(1, _CHUNK // logits.shape[2])
        for task in prange((samples + chunk - 1) // chunk):
            start, stop = chunk_bounds(task, chunk, samples)
            _gradients(
                grad, factor, logits, target, smoothing, ignore_index, dlogits, start, stop
            )
    return wrong


def softmax_cross_entropy(logits, target, reduction="none", smoothing=0.0, ignore_index=-100):
    """See kernels.reference.softmax_cross_entropy."""
    check_cross_entropy(logits, target, reduction)
    rows = _samples(logits)
    places = _places(target, rows)
    losses = np.empty(rows.shape[:2], logits.dtype)
    settings = float(smoothing), int(ignore_index)  # Numba compiles for each kind anew
    total, counted, wrong = _cross_entropy(rows, places, *settings, losses)
    if wrong >= 0:
        raise wrong_label(places.flat[wrong], rows.shape[2])
    if reduction == "none":
        return losses.reshape(logits.shape[0], *logits.shape[2:])
    if reduction == "mean":
        total = total / counted if counted else math.nan
    return np.array(total, logits.dtype)


def softmax_cross_entropy_backward(
    grad, logits, target, reduction="none", smoothing=0.0, ignore_index=-100
):
    """See kernels.reference.softmax_cross_entropy_backward."""
    check_cross_entropy(logits, target, reduction, grad)
    dlogits = empty(logits.shape, logits.dtype)
    rows = _samples(logits)
    places = _places(target, rows)
    wrong = _cross_entropy_backward(
        np.ascontiguousarray(grad).reshape(-1), reduction == "mean", rows, places,
        float(smoothing), int(ignore_index), _samples(dlogits),
    )  # fmt: skip
    if wrong >= 0:
        raise wrong_label(places.flat[wrong], rows.shape[2])
    return dlogits


def _samples(array):
    """(N, C, ...) as (N, P, C): contiguous where P is 1, which makes the code for it fast."""
    array, shape = np.ascontiguousarray(array), array.shape
    positions = math.prod(shape[2:])
    if positions == 1:
        return array.reshape(shape[0], 1, shape[1])
    return array.reshape(*shape[:2], positions).transpose(0, 2, 1)


def _places(target, rows):
    """Labels as (N, P), or weights as (N, P, C), for logits of that shape."""
    if is_labels(target):
        return np.ascontiguousarray(target).reshape(rows.shape[:2])
    return _samples(target)
