"""Steps of optimisers in one pass; the definitions stand in kernels.reference.optim.

Written with whole-array operations a step reads and writes its arrays a dozen times, and on a large
layer memory is all it waits for. Here every element is read once and written once.
"""

import math

from numba import njit, prange

from kernels import reference
from kernels.cpu.planes import flat
from kernels.cpu.tasks import chunk_bounds
from kernels.reference.optim import adam_corrections, check_step, several

# Elements a task. A step that is one task alone does not wake other threads, which takes longer.
_CHUNK = 1 << 16


@njit(cache=True)
def _sgd_chunk(values, gradient, velocity, lr, momentum, has_velocity, nesterov, weight_decay):
    real = values.dtype.type
    lr, momentum, weight_decay = real(lr), real(momentum), real(weight_decay)
    for i in range(values.size):
        slope = gradient[i]
        if weight_decay:
            slope += weight_decay * values[i]
        if has_velocity:
            velocity[i] = momentum * velocity[i] + slope
            slope = slope + momentum * velocity[i] if nesterov else velocity[i]
        values[i] -= lr * slope


@njit(parallel=True, cache=True)
def _sgd(values, gradient, velocity, lr, momentum, has_velocity, nesterov, weight_decay):
    for chunk in prange((values.size + _CHUNK - 1) // _CHUNK):
        start, stop = chunk_bounds(chunk, _CHUNK, values.size)
        _sgd_chunk(
            values[start:stop], gradient[start:stop], velocity[start:stop], lr, momentum,
            has_velocity, nesterov, weight_decay,
        )  # fmt: skip


# A division that might raise would keep the loop from becoming vector code.
@njit(cache=True, error_model="numpy")
def _adam_chunk(value, grad, mean, square, betas, rests, rate, correction, eps, decay, shrink):
    for i in range(value.size):
        shrunk = value[i] * shrink
        slope = grad[i] + decay * shrunk
        mean[i] += rests[0] * (slope - mean[i])
        square[i] = square[i] * betas[1] + rests[1] * slope * slope
        value[i] = shrunk - rate * mean[i] / (math.sqrt(square[i]) / correction + eps)


@njit(parallel=True, cache=True)
def _adam(value, grad, mean, square, betas, rests, rate, correction, eps, decay, shrink):
    for chunk in prange((value.size + _CHUNK - 1) // _CHUNK):
        start, stop = chunk_bounds(chunk, _CHUNK, value.size)
        _adam_chunk(
            value[start:stop], grad[start:stop], mean[start:stop], square[start:stop], betas,
            rests, rate, correction, eps, decay, shrink,
        )  # fmt: skip


def _lie_flat(*arrays):
    return all([array.flags.c_contiguous for array in arrays])


def sgd_step(values, gradient, velocity, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """See kernels.reference.sgd_step."""
    check_step(values, gradient=gradient, velocity=velocity)
    settings = lr, momentum, nesterov, weight_decay
    has_velocity = velocity is not None
    if not _lie_flat(values, velocity if has_velocity else values):
        reference.sgd_step(values, gradient, velocity, *settings)
        return
    step = _sgd if values.size > _CHUNK else _sgd_chunk
    step(
        flat(values), flat(gradient), flat(velocity if has_velocity else values), float(lr),
        float(momentum), has_velocity, bool(nesterov), float(weight_decay),
    )  # fmt: skip


def adam_step(
    values, gradient, mean, square, step, lr, betas, eps, weight_decay=0.0, decoupled=False
):
    """See kernels.reference.adam_step."""
    check_step(values, gradient=gradient, mean=mean, square=square)
    if not _lie_flat(values, mean, square):
        settings = step, lr, betas, eps, weight_decay, decoupled
        reference.adam_step(values, gradient, mean, square, *settings)
        return
    number = values.dtype.type
    rate, correction = adam_corrections(step, lr, betas)
    decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    run = _adam if values.size > _CHUNK else _adam_chunk
    run(
        flat(values), flat(gradient), flat(mean), flat(square),
        (number(betas[0]), number(betas[1])),
        (number(1 - betas[0]), number(1 - betas[1])), number(rate), number(correction),
        number(eps), number(decay), number(shrink),
    )  # fmt: skip


sgd_steps = several(sgd_step)
adam_steps = several(adam_step)
