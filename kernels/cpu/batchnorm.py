"""Batch normalisation on all cores; the definitions stand in kernels.reference.batchnorm.

A task is one plane (image, channel): what its H W values come to goes to one cell of an (N, C)
table in float64, and the table is put together in a fixed order. So the cores share the work
however few channels there are, and the result does not depend on their number.

What a channel comes to must be known before the first of its values can be normalised: two walks
over the data, forward and backward. They go over a group of channels that fits the last cache, then
over the next, so that the second walk finds in the cache what the first has read from memory.
"""

import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic

from kernels.cpu.emitter import Emitter
from kernels.cpu.streams import before_line, past_caches, write
from kernels.cpu.sums import (
    gradient_totals,
    rectified_gradient_totals,
    square_total,
    wide_total,
)
from kernels.cpu.tasks import split
from kernels.cpu.workspace import empty
from kernels.reference.batchnorm import (
    check_affine,
    check_batchnorm,
    check_batchnorm_train,
    move_running,
)

# Operands of the channels of a group: a part of a last cache, which others use, too.
_GROUP_BYTES = 16 << 20
# Elements that a first cache holds until they are walked over again.
_PIECE = 1 << 12
_VECTORS = 4  # side by side


@njit(inline="always")
def _piece_moments(x, start, size):
    """The mean and the sum of squares about it, of what fits a first cache for the second walk.

    E[x^2] - E[x]^2, which needs one walk only, would cancel where the mean is large.
    """
    mean = wide_total(x, start, size, x.dtype.type(0)) / size
    # In the dtype of x the loop is twice as wide; the squares are then off by the same for all.
    near = x.dtype.type(mean)
    return mean, square_total(x, start, size, near) - size * (mean - near) ** 2


@njit(parallel=True, cache=True)
def _plane_moments(x, first, stop, means, squares):
    """The mean of every plane of channels `first` to `stop`, and the sum of its squares about it.

    Those of its pieces, joined as they come (Chan et al. 1979).
    """
    n, channels, size = x.shape
    for task in prange(n * (stop - first)):
        image, c = split(task, stop - first)
        c += first
        at = (image * channels + c) * size
        mean, square = _piece_moments(x, at, min(_PIECE, size))
        for before in range(_PIECE, size, _PIECE):
            count = min(_PIECE, size - before)
            near, part = _piece_moments(x, at + before, count)
            apart, share = near - mean, count / (before + count)
            mean += apart * share
            square += part + apart * apart * share * before
        means[image, c] = mean
        squares[image, c] = square


def _normalised(onto):
    """The intrinsic that normalises a plane, alone or `onto` what others hold."""

    @intrinsic
    def normalised(_, x, at, length, mean, scale, shift, others, floor, y, past):
        """y = max((x - mean) scale + shift + others, floor), of `length` elements from `at` on.

        A NaN stays NaN.
        """

        def emit(context, builder, signature, args):
            e = Emitter(context, builder, signature, args)
            source, target = e.pointer(0, args[1]), e.pointer(8, args[1])
            length, past = args[2], args[9]
            mean, scale, shift, floor = (e.splat(args[i]) for i in (3, 4, 5, 7))

            def compute(_, load):
                values = []
                for v in range(_VECTORS):
                    value = builder.fmul(builder.fsub(load(source, v), mean), scale)
                    value = builder.fadd(value, shift)
                    if onto:
                        value = builder.fadd(value, load(e.pointer(6, args[1]), v))
                    values.append(e.at_least(value, floor))
                return [values]

            head = before_line(e, target, length, past)
            write(e, [target], length, [past], _VECTORS, compute, head)
            return context.get_dummy_value()

        integer, real = types.int64, x.dtype
        return types.void(x, integer, integer, real, real, real, others, real, y,
                          types.boolean), emit  # fmt: skip

    return normalised


_normalised_alone, _normalised_onto = _normalised(False), _normalised(True)


@njit(parallel=True, cache=True)
def _scale_shift(x, first, stop, mean, scale, shift, others, floor, y, past):
    """y = max((x - mean) scale + shift + others, floor); others may be empty, a NaN stays NaN."""
    n, channels, size = x.shape
    for task in prange(n * (stop - first)):
        image, c = split(task, stop - first)
        c += first
        at, terms = (image * channels + c) * size, (mean[c], scale[c], shift[c])
        if others.size:
            _normalised_onto(x, at, size, *terms, others, floor, y, past)
        else:
            _normalised_alone(x, at, size, *terms, others, floor, y, past)


@njit(parallel=True, cache=True)
def _gradient_sums(dy, x, y, first, stop, mean, inv_std, sums):
    """`y`, unless empty: dy counts where it is positive."""
    n, channels, size = x.shape
    for task in prange(n * (stop - first)):
        image, c = split(task, stop - first)
        c += first
        at = (image * channels + c) * size
        if y.size:
            plain, weighted = rectified_gradient_totals(dy, x, y, at, size, mean[c])
        else:
            plain, weighted = gradient_totals(dy, x, y, at, size, mean[c])
        sums[0, image, c] = weighted * inv_std[c]
        sums[1, image, c] = plain


def _spread(rectified):
    """The intrinsic for dx of a plane; `rectified`: dy counts where y is positive."""

    @intrinsic
    def spread(_, dy, x, y, at, length, mean, inv_std, scale, mean_weighted, mean_plain, dx, past):
        """dx = scale (dy - mean_plain - (x - mean) inv_std mean_weighted), from `at` on."""

        def emit(context, builder, signature, args):
            e = Emitter(context, builder, signature, args)
            grads, values, target = (e.pointer(i, args[3]) for i in (0, 1, 10))
            length, past, zero = args[4], args[11], e.constant(0.0)
            mean, inv_std, scale, mean_weighted, mean_plain = (e.splat(a) for a in args[5:10])

            def compute(_, load):
                results = []
                for v in range(_VECTORS):
                    grad = load(grads, v)
                    if rectified:
                        passes = builder.fcmp_ordered(">", load(e.pointer(2, args[3]), v), zero)
                        grad = builder.select(passes, grad, zero)
                    normal = builder.fmul(builder.fsub(load(values, v), mean), inv_std)
                    rest = builder.fsub(grad, mean_plain)
                    rest = builder.fsub(rest, builder.fmul(normal, mean_weighted))
                    results.append(builder.fmul(scale, rest))
                return [results]

            head = before_line(e, target, length, past)
            write(e, [target], length, [past], _VECTORS, compute, head)
            return context.get_dummy_value()

        integer, real = types.int64, x.dtype
        return types.void(dy, x, y, integer, integer, real, real, real, real, real, dx,
                          types.boolean), emit  # fmt: skip

    return spread


_spread_all, _spread_rectified = _spread(False), _spread(True)


@njit(parallel=True, cache=True)
def _input_grad(dy, x, y, first, stop, mean, inv_std, scale, mean_weighted, mean_plain, dx, past):
    """`y`: as in _gradient_sums."""
    n, channels, size = x.shape
    for task in prange(n * (stop - first)):
        image, c = split(task, stop - first)
        c += first
        at = (image * channels + c) * size
        terms = mean[c], inv_std[c], scale[c], mean_weighted[c], mean_plain[c]
        if y.size:
            _spread_rectified(dy, x, y, at, size, *terms, dx, past)
        else:
            _spread_all(dy, x, y, at, size, *terms, dx, past)


def _groups(*operands):
    """(first, stop) of groups of channels whose values of all operands, (N, C, P), fit a cache."""
    channels = operands[0].shape[1]
    nbytes = sum(operand.nbytes for operand in operands)
    size = max(1, _GROUP_BYTES * channels // max(1, nbytes))
    return [(first, min(channels, first + size)) for first in range(0, channels, size)]


def _planes(x):
    return np.ascontiguousarray(x).reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def _optional(x, dtype):
    """Planes of x, or none; read-only either way, since Numba compiles for each kind anew."""
    planes = np.empty((0, 0, 0), dtype) if x is None else _planes(x).view()
    planes.flags.writeable = False
    return planes


def _floor(dtype, rectify=False):
    return dtype.type(0 if rectify else -np.inf)


def batchnorm_train(x, gamma, beta, eps, others=None, rectify=False, running=None):
    """See kernels.reference.batchnorm_train."""
    check_batchnorm_train(x, gamma, beta, others, running)
    planes, beta, added = _planes(x), np.ascontiguousarray(beta), _optional(others, x.dtype)
    mean, var, inv_std, scale = np.empty((4, x.shape[1]), x.dtype)
    y = empty(planes.shape, planes.dtype)
    floor, past = _floor(x.dtype, rectify), past_caches(planes, added, y)
    for first, stop in _groups(planes, added):
        group = slice(first, stop)
        mean[group], var[group] = _moments(planes, first, stop)
        inv_std[group] = 1 / np.sqrt(var[group] + x.dtype.type(eps))
        scale[group] = gamma[group] * inv_std[group]
        _scale_shift(planes, first, stop, mean, scale, beta, added, floor, y, past)
    if running is not None:
        move_running(running, mean, var, x.size // x.shape[1])
    return y.reshape(x.shape), mean, var, inv_std


def _moments(planes, first, stop):
    """Mean and biased variance of some channels, from those of their planes (Chan et al. 1979)."""
    n, channels, size = planes.shape
    means, squares = np.empty((2, n, channels))
    _plane_moments(planes, first, stop, means, squares)
    means, squares = means[:, first:stop], squares[:, first:stop]
    mean = means.mean(axis=0)
    return mean, squares.sum(axis=0) / (n * size) + ((means - mean) ** 2).mean(axis=0)


def batchnorm_statistics(x):
    """See kernels.reference.batchnorm_statistics."""
    check_batchnorm(x)
    if x.size == 0:
        raise ValueError(f"x must have a value a channel, got shape {x.shape}")
    return _moments(_planes(x), 0, x.shape[1])


def batchnorm_eval(x, gamma, beta, mean, var, eps):
    """See kernels.reference.batchnorm_eval."""
    check_batchnorm(x, gamma=gamma, beta=beta, mean=mean, var=var)
    scale = gamma / np.sqrt(var + x.dtype.type(eps))
    return _affine(x, np.ascontiguousarray(mean), scale, np.ascontiguousarray(beta))


def batchnorm_affine(gamma, beta, mean, var, eps):
    """See kernels.reference.batchnorm_affine."""
    check_affine(gamma, beta, mean, var)
    scale = gamma / np.sqrt(var + var.dtype.type(eps))
    return scale, beta - mean * scale


def _affine(x, mean, scale, shift):
    planes = _planes(x)
    y = empty(planes.shape, planes.dtype)
    none, floor = _optional(None, x.dtype), _floor(x.dtype)
    past = past_caches(planes, y)
    _scale_shift(planes, 0, x.shape[1], mean, scale, shift, none, floor, y, past)
    return y.reshape(x.shape)


def _sums(dy, x, y, first, stop, mean, inv_std):
    """(dgamma, dbeta) of some channels, in the dtype of x."""
    sums = np.empty((2, *x.shape[:2]))
    _gradient_sums(dy, x, y, first, stop, mean, inv_std, sums)
    return sums[:, :, first:stop].sum(axis=1).astype(x.dtype)


def batchnorm_backward(dy, x, gamma, mean, inv_std, y=None, out=None):
    """See kernels.reference.batchnorm_backward."""
    check_batchnorm(x, dy, y=y, out=out, gamma=gamma, mean=mean, inv_std=inv_std)
    if not (out is None or out.flags.c_contiguous):
        out[...], *sums = batchnorm_backward(dy, x, gamma, mean, inv_std, y)
        return out, *sums
    grads, planes, results = _planes(dy), _planes(x), _optional(y, x.dtype)
    mean, inv_std = np.ascontiguousarray(mean), np.ascontiguousarray(inv_std)
    scale, count = gamma * inv_std, x.dtype.type(x.size // x.shape[1])
    sums = np.empty((2, x.shape[1]), x.dtype)
    means = np.empty_like(sums)
    result = empty(x.shape, x.dtype) if out is None else out
    dx = _planes(result)
    # Over dy it is written where the caches have just read.
    past = out is not dy and past_caches(grads, planes, results, dx)
    for first, stop in _groups(grads, planes, results):
        group = slice(first, stop)
        sums[:, group] = _sums(grads, planes, results, first, stop, mean, inv_std)
        means[:, group] = sums[:, group] / count
        _input_grad(grads, planes, results, first, stop, mean, inv_std, scale, *means, dx, past)
    return result, *sums


def batchnorm_eval_backward(dy, x, gamma, mean, inv_std):
    """See kernels.reference.batchnorm_eval_backward."""
    check_batchnorm(x, dy, gamma=gamma, mean=mean, inv_std=inv_std)
    mean, inv_std = np.ascontiguousarray(mean), np.ascontiguousarray(inv_std)
    operands = _planes(dy), _planes(x), _optional(None, x.dtype)
    dgamma, dbeta = _sums(*operands, 0, x.shape[1], mean, inv_std)
    zero = np.zeros_like(mean)
    return _affine(dy, zero, gamma * inv_std, zero), dgamma, dbeta
