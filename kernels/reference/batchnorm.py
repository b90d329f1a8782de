"""Batch normalisation over (N, H, W), channel by channel, and its gradients.

With m = N H W values x a channel, mean mu and biased variance var = sum (x - mu)^2 / m,

    xh = (x - mu) / sqrt(var + eps)        y = gamma xh + beta

and, since mu and var depend on every x of their channel,

    dgamma = sum dy xh     dbeta = sum dy
    dx = gamma / sqrt(var + eps) (dy - mean(dy) - xh mean(dy xh))

In evaluation mu and var are constants (running averages), and dx = gamma / sqrt(var + eps) dy.

The variance takes two passes over the data, for E[x^2] - E[x]^2 cancels where the mean is large.
All arithmetic is in float64; results are rounded once, to the dtype of x.

Source: Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing
internal covariate shift" (2015), algorithms 1 and 2 and the equations of section 3.
"""

import numpy as np

from kernels.geometry import check_dtypes, check_shape

_AXES = (0, 2, 3)


def batchnorm_train(x, gamma, beta, eps, others=None, rectify=False, running=None):
    """(y, mean, var, inv_std): x (N, C, H, W) normalised by its own statistics.

    gamma, beta (C,). mean, the biased var and inv_std = 1 / sqrt(var + eps) are (C,), in x's dtype.
    `others`, of x's shape, are added to y, and with `rectify` y is at least 0 (a NaN stays NaN):
    what a shortcut and ReLU do next, saving their passes. running: (mean, var, momentum), averages
    (C,) which move towards this batch's in place, see `move_running`. Raises ValueError for a shape
    that does not fit or a single value a channel, TypeError for mixed dtypes or other than float32
    and float64.
    """
    check_batchnorm_train(x, gamma, beta, others, running)
    mean, var = batchnorm_statistics(x)
    inv_std = 1 / np.sqrt(var + eps)
    y = (x - _per_channel(mean)) * _per_channel(inv_std * gamma) + _per_channel(beta)
    if others is not None:
        y += others
    if rectify:
        y = np.maximum(y, 0)
    y, mean, var, inv_std = (result.astype(x.dtype) for result in (y, mean, var, inv_std))
    if running is not None:
        move_running(running, mean, var, x.size // x.shape[1])
    return y, mean, var, inv_std


def move_running(running, mean, var, count) -> None:
    """running = (1 - momentum) running + momentum batch, in place, for the mean and the variance.

    running: (mean, var, momentum); mean and var: of a batch of `count` values a channel, with the
    biased variance. The running one is unbiased.
    """
    running_mean, running_var, momentum = running
    unbiased = var * var.dtype.type(count / (count - 1))
    for average, batch in ((running_mean, mean), (running_var, unbiased)):
        average *= 1 - momentum
        average += momentum * batch


def batchnorm_statistics(x):
    """(mean, var): float64 (C,), the mean and biased variance of every channel of x (N, C, H, W).

    What several processes need to normalise by the statistics of all their images. Raises
    ValueError for another shape or no value a channel, TypeError as `batchnorm_train`.
    """
    check_batchnorm(x)
    if x.size == 0:
        raise ValueError(f"x must have a value a channel, got shape {x.shape}")
    wide = x.astype(np.float64)
    mean = wide.mean(_AXES)
    centred = wide - _per_channel(mean)
    return mean, np.mean(centred * centred, _AXES)


def batchnorm_eval(x, gamma, beta, mean, var, eps):
    """y: x (N, C, H, W) normalised by the given mean and var (C,). Raises as `batchnorm_train`."""
    check_batchnorm(x, gamma=gamma, beta=beta, mean=mean, var=var)
    scale = gamma / np.sqrt(var.astype(np.float64) + eps)
    y = (x - _per_channel(mean.astype(np.float64))) * _per_channel(scale) + _per_channel(beta)
    return y.astype(x.dtype)


def batchnorm_affine(gamma, beta, mean, var, eps):
    """(scale, shift) (C,), with which `batchnorm_eval` is x scale + shift.

    Ioffe and Szegedy 2015, algorithm 2, step 11. gamma, beta, mean, var (C,). Raises ValueError for
    shapes that do not fit, TypeError for dtypes other than one float.
    """
    check_affine(gamma, beta, mean, var)
    scale = gamma / np.sqrt(var.astype(np.float64) + eps)
    return scale.astype(gamma.dtype), (beta - mean * scale).astype(gamma.dtype)


def batchnorm_backward(dy, x, gamma, mean, inv_std, y=None, out=None):
    """(dx, dgamma, dbeta) of `batchnorm_train`, from its x and the mean and inv_std it returned.

    `y`: the result, where it was rectified: dy counts where y > 0. dx is written to `out`, which
    may be dy itself, if one is given. Raises as `batchnorm_train`.
    """
    check_batchnorm(x, dy, training=True, y=y, out=out, gamma=gamma, mean=mean, inv_std=inv_std)
    if y is not None:
        dy = dy * (y > 0)
    centred = x - _per_channel(mean.astype(np.float64))
    centred -= centred.mean(_AXES, keepdims=True)  # what rounding the mean to x's dtype took away
    normal = centred * _per_channel(inv_std)
    wide = dy.astype(np.float64)
    product = wide * normal
    direct = wide - wide.mean(_AXES, keepdims=True)
    through_var = normal * product.mean(_AXES, keepdims=True)
    dx = np.empty(x.shape, x.dtype) if out is None else out
    dx[...] = _per_channel(inv_std.astype(np.float64) * gamma) * (direct - through_var)
    return dx, *(g.astype(x.dtype) for g in (product.sum(_AXES), wide.sum(_AXES)))


def batchnorm_eval_backward(dy, x, gamma, mean, inv_std):
    """(dx, dgamma, dbeta) of `batchnorm_eval`, inv_std being 1 / sqrt(var + eps).

    Raises as `batchnorm_train`.
    """
    check_batchnorm(x, dy, gamma=gamma, mean=mean, inv_std=inv_std)
    wide = dy.astype(np.float64)
    normal = (x - _per_channel(mean.astype(np.float64))) * _per_channel(inv_std)
    dx = wide * _per_channel(inv_std.astype(np.float64) * gamma)
    return tuple(g.astype(x.dtype) for g in (dx, (wide * normal).sum(_AXES), wide.sum(_AXES)))


def check_affine(gamma, beta, mean, var) -> None:
    """Check the arguments of a `batchnorm_affine`."""
    check_dtypes(gamma=gamma, beta=beta, mean=mean, var=var)
    if gamma.ndim != 1:
        raise ValueError(f"gamma must have shape (C,), got {gamma.shape}")
    for name, array in {"beta": beta, "mean": mean, "var": var}.items():
        check_shape(name, array.shape, gamma.shape)


def check_batchnorm_train(x, gamma, beta, others, running) -> None:
    """`check_batchnorm` of the arguments of a `batchnorm_train`."""
    names = "running_mean", "running_var"
    averages = {} if running is None else dict(zip(names, running, strict=False))
    check_batchnorm(x, training=True, others=others, gamma=gamma, beta=beta, **averages)


def check_batchnorm(
    x, dy=None, training=False, others=None, y=None, out=None, **per_channel
) -> None:
    """Check the arguments of a batch normalisation: dtypes, shapes, and m > 1 in training."""
    check_dtypes(x=x, dy=dy, others=others, y=y, out=out, **per_channel)
    if x.ndim != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {x.shape}")
    for name, array in (("dy", dy), ("others", others), ("y", y), ("out", out)):
        if array is not None:
            check_shape(name, array.shape, x.shape)
    n, channels, h, w = x.shape
    for name, array in per_channel.items():
        check_shape(name, array.shape, (channels,))
    if training and n * h * w <= 1:
        raise ValueError(
            f"x must have more than one value a channel in training, got shape {x.shape}"
        )


def _per_channel(values):
    return values[:, None, None]
