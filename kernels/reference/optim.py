"""Steps of optimisers. Unlike other kernels they write to their arguments: that is their purpose.

Written with operators alone, so that they serve any array library.
"""

import math

from kernels.geometry import check_dtypes, check_shape


def check_step(values, **others):
    """TypeError or ValueError unless all arrays (None is skipped) have the dtype and shape of
    `values`."""
    check_dtypes(values=values, **others)
    for name, array in others.items():
        if array is not None:
            check_shape(name, array.shape, values.shape)


def sgd_step(values, gradient, velocity, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """v = momentum v + g, values -= lr v, where g = gradient + weight_decay values.

    `velocity` (v, updated) is None where there is no momentum: v = g. Nesterov's form steps by
    g + momentum v. Raises TypeError or ValueError where dtypes or shapes differ.
    """
    check_step(values, gradient=gradient, velocity=velocity)
    if weight_decay:
        gradient = gradient + weight_decay * values
    if velocity is not None:
        velocity *= momentum
        velocity += gradient
        gradient = gradient + momentum * velocity if nesterov else velocity
    values -= lr * gradient


def adam_step(
    values, gradient, mean, square, step, lr, betas, eps, weight_decay=0.0, decoupled=False
):
    """Step number `step`, from 1 on, of Kingma and Ba 2015, algorithm 1; mean, square: its moments.

    `weight_decay` is added to the gradient as an L2 penalty, or, `decoupled`, shrinks the values
    themselves (Loshchilov and Hutter 2019, algorithm 2). Raises as `sgd_step`.
    """
    check_step(values, gradient=gradient, mean=mean, square=square)
    beta1, beta2 = betas
    if decoupled:
        values *= 1 - lr * weight_decay
    elif weight_decay:
        gradient = gradient + weight_decay * values
    mean += (1 - beta1) * (gradient - mean)
    square *= beta2
    square += (1 - beta2) * gradient * gradient
    rate, correction = adam_corrections(step, lr, betas)
    values -= rate * mean / (square**0.5 / correction + eps)


def adam_corrections(step, lr, betas):
    """(rate, divisor of the root): what the two bias corrections come to at this step."""
    return lr / (1 - betas[0] ** step), math.sqrt(1 - betas[1] ** step)


def several(step):
    """`step` of several parameters: of their arrays a list of tuples, and settings for all."""

    def steps(parameters, *settings):
        for arrays in parameters:
            step(*arrays, *settings)

    return steps


sgd_steps = several(sgd_step)
adam_steps = several(adam_step)
