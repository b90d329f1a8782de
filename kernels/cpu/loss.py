"""Softmax and cross-entropy on all cores; the definitions stand in kernels.reference.loss.

A task is a group of samples, which are whole: no sum is split over cores. The logits of a sample
are exponentiated in vectors; where they do not lie side by side they are first copied there.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from kernels.cpu.emitter import INT, VECTOR_BYTES, Emitter
from kernels.cpu.planes import flat
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
def _exponentials(_, values, first, length, results):
    """(largest, total): results = exp(values[first + p] - the largest) for p < length, their sum.

    In place where `values` are the results, which are written up to the next whole vector. NaN
    reaches the total.
    """

    def emit(context, builder, signature, args):
        e = Emitter(context, builder, signature, args)
        line, results, step = e.pointer(0, args[1]), e.pointer(3), INT(e.lanes)
        whole = builder.and_(args[2], builder.neg(step))
        inside = e.below(builder.sub(args[2], whole))

        def along(start, body):
            """What body(place, logits, before) makes of one vector after the other."""
            sums = e.loop(
                whole, step, [start],
                lambda place, sums: [body(place, e.load_vector(line, place), sums[0])],
            )  # fmt: skip
            return body(whole, e.load_some(line, whole, inside, -math.inf), sums[0])

        def larger(_, values, best):
            return builder.select(builder.fcmp_ordered(">", values, best), values, best)

        largest = e.largest(along(e.constant(-math.inf), larger))
        every = e.splat(largest)

        def exponentiate(place, values, total):
            powers = _exp(e, builder.fsub(values, every))
            e.store_vector(powers, results, place)
            return builder.fadd(total, powers)

        total = e.total(along(e.constant(0.0), exponentiate))
        return context.make_tuple(builder, signature.return_type, (largest, total))

    integer = types.int64
    return types.UniTuple(values.dtype, 2)(values, integer, integer, results), emit


@njit(inline="always")
def _exponentiate(logits, image, p, line, results):
    """(largest, total) of one sample, and its exponentials; in `line` its logits, if P is not 1."""
    positions, classes = logits.shape[1:]
    if positions == 1:
        return _exponentials(logits, image * classes, classes, results)
    for c in range(classes):
        line[c] = logits[image, p, c]
    return _exponentials(line, 0, classes, results)


@njit(inline="always")
def _centred_total(logits, image, line, largest):
    """The sum of the logits that `_exponentiate` saw, less the largest of them each."""
    positions, classes = logits.shape[1:]
    if positions == 1:
        return wide_total(logits, image * classes, classes, largest)
    return wide_total(line, 0, classes, largest)


@njit(cache=True)
def _losses(logits, target, smoothing, ignore_index, losses, start, stop):
    """Logits and weights (N, P, C), labels and losses (N, P); samples from `start` to `stop`."""
    positions, classes = logits.shape[1:]
    real = logits.dtype.type
    line, weights = np.empty((2, classes + _LANES), logits.dtype)
    for sample in range(start, stop):
        image, p = split(sample, positions)
        largest, total = _exponentiate(logits, image, p, line, weights)
        log_total = math.log(total)
        mass = _mass(target, image, p, ignore_index, weights)
        rest, even = real(1 - smoothing), real(smoothing * mass / classes)
        loss = 0.0
        if target.ndim == 3:
            for c in range(classes):
                weight = rest * weights[c] + even
                term = weight * (log_total - (logits[image, p, c] - largest))
                line[c] = term if weight != 0 else real(0)
            loss = wide_total(line, 0, classes, real(0))
        elif mass:
            if rest != 0:
                loss += rest * (log_total - (logits[image, p, target[image, p]] - largest))
            if even != 0:
                loss += even * (classes * log_total - _centred_total(logits, image, line, largest))
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
        _, total = _exponentiate(logits, image, p, line, line)
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
    shapes = _shapes(logits.shape, logits.dtype, target.shape, target.dtype, _text(reduction))
    rows, places = _samples(logits, *shapes.logits), _samples(target, *shapes.target)
    losses = np.empty(shapes.losses, logits.dtype)
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
    shapes = _shapes(
        logits.shape, logits.dtype, target.shape, target.dtype, _text(reduction), grad.shape,
        grad.dtype,
    )  # fmt: skip
    dlogits = empty(logits.shape, logits.dtype)
    rows, places = _samples(logits, *shapes.logits), _samples(target, *shapes.target)
    wrong = _cross_entropy_backward(
        flat(grad), reduction == "mean", rows, places, float(smoothing), int(ignore_index),
        _samples(dlogits, *shapes.logits),
    )  # fmt: skip
    if wrong >= 0:
        raise wrong_label(places.flat[wrong], rows.shape[2])
    return dlogits


class _Shapes(NamedTuple):
    """What arrays are brought into: shapes, and whether (N, C, P) is then to be (N, P, C)."""

    logits: tuple
    target: tuple  # labels are (N, P)
    losses: tuple  # (N, P), without more


@lru_cache(maxsize=256)
def _shapes(logits, logits_dtype, target, target_dtype, reduction, *grad):
    """The `_Shapes` of a loss, checked once for shapes and dtypes: a small loss takes less time."""
    described = [(logits, logits_dtype), (target, target_dtype), *([grad] if grad else [])]
    arrays = [np.broadcast_to(np.empty((), dtype), shape) for shape, dtype in described]
    check_cross_entropy(*arrays[:2], reduction, *arrays[2:])
    n, classes, positions = *logits[:2], math.prod(logits[2:])
    # Contiguous where P is 1, which makes the code for it fast.
    rows = ((n, 1, classes), False) if positions == 1 else ((n, classes, positions), True)
    losses = n, positions
    return _Shapes(rows, (losses, False) if is_labels(arrays[1]) else rows, losses)


def _text(reduction):
    """Itself, or what a message calls something that is no reduction, and may have no hash."""
    return reduction if isinstance(reduction, str) else repr(reduction)


def _samples(array, shape, turned):
    array = np.ascontiguousarray(array).reshape(shape)
    return array.transpose(0, 2, 1) if turned else array
