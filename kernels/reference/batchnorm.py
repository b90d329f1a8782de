"""Batch normalisation (Ioffe and Szegedy 2015): each channel to mean 0 and variance 1, then affine.

Over the m = N H W values of a channel,

    mu = mean(x)    var = mean((x - mu)^2)    xh = (x - mu) / sqrt(var + eps)    y = gamma xh + beta

and by the chain rule, mu and var depending on x too (section 3, backward equations),

    dx = gamma / sqrt(var + eps) (dy - mean(dy) - xh mean(dy xh))
    dgamma = sum(dy xh)    dbeta = sum(dy)

The variance is taken in a second pass over x - mu: E[x^2] - E[x]^2 cancels in float32 where the
mean is large. All sums accumulate in float64.
"""

import numpy as np

from kernels.geometry import check_dtypes, check_shape

_AXES = (0, 2, 3)


def _per_channel(values):
    return values[:, None, None]


def _sum(array):
    return array.sum(axis=_AXES, dtype=np.float64)


def check_batchnorm(x, **channel_arrays):
    """TypeError or ValueError unless x is (N, C, H, W) and every other array (C,) of its dtype."""
    check_dtypes(x=x, **channel_arrays)
    if x.ndim != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {x.shape}")
    for name, array in channel_arrays.items():
        check_shape(name, array.shape, x.shape[1:2])


def check_training(x):
    """ValueError where a channel holds too few values to have a variance."""
    if x.size // max(x.shape[1], 1) <= 1:
        raise ValueError(
            f"x must hold more than one value a channel to train batch-norm, got shape {x.shape}"
        )


def batchnorm_train(x, gamma, beta, eps):
    """(y, mean, var, inv_std): x (N, C, H, W) normalised by its own statistics.

    gamma, beta, and the statistics returned are (C,), all of x's dtype; var is the biased variance
    and inv_std is 1 / sqrt(var + eps). Raises ValueError where a channel has only one value.
    """
    check_batchnorm(x, gamma=gamma, beta=beta)
    check_training(x)
    count = x.size // x.shape[1]
    mean = (_sum(x) / count).astype(x.dtype)
    centred = x - _per_channel(mean)
    var = (_sum(centred * centred) / count).astype(x.dtype)
    inv_std = 1 / np.sqrt(var + x.dtype.type(eps))
    y = centred * _per_channel(gamma * inv_std) + _per_channel(beta)
    return np.ascontiguousarray(y), mean, var, inv_std


def batchnorm_eval(x, gamma, beta, mean, var, eps):
    """y by given statistics: x (N, C, H, W), all others (C,)."""
    check_batchnorm(x, gamma=gamma, beta=beta, mean=mean, var=var)
    inv_std = 1 / np.sqrt(var + x.dtype.type(eps))
    y = (x - _per_channel(mean)) * _per_channel(gamma * inv_std) + _per_channel(beta)
    return np.ascontiguousarray(y)


def batchnorm_backward(dy, x, gamma, mean, inv_std):
    """(dx, dgamma, dbeta) of `batchnorm_train`, from what it returned."""
    check_batchnorm(x, gamma=gamma, mean=mean, inv_std=inv_std)
    check_shape("dy", dy.shape, x.shape)
    count = x.size // x.shape[1]
    normal = (x - _per_channel(mean)) * _per_channel(inv_std)
    dgamma = _sum(dy * normal).astype(x.dtype)
    dbeta = _sum(dy).astype(x.dtype)
    spread = dy - _per_channel(dbeta / count) - normal * _per_channel(dgamma / count)
    return np.ascontiguousarray(spread * _per_channel(gamma * inv_std)), dgamma, dbeta


def batchnorm_eval_backward(dy, x, gamma, mean, inv_std):
    """(dx, dgamma, dbeta) of `batchnorm_eval`, whose statistics are constants."""
    check_batchnorm(x, gamma=gamma, mean=mean, inv_std=inv_std)
    check_shape("dy", dy.shape, x.shape)
    normal = (x - _per_channel(mean)) * _per_channel(inv_std)
    dx = np.ascontiguousarray(dy * _per_channel(gamma * inv_std))
    return dx, _sum(dy * normal).astype(x.dtype), _sum(dy).astype(x.dtype)
