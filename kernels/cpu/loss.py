"""Softmax and cross-entropy on all cores; the definitions stand in kernels.reference.loss.

A task is a group of samples, which are whole: no sum is split over cores.
"""

import math

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.workspace import empty
from kernels.reference.loss import check_cross_entropy

# Logits a task: enough to hide its start.
_CHUNK = 1 << 10


@njit(inline="always")
def _largest_and_total(logits, image, p):
    """max z and sum exp(z - max z) of one sample, the sum in float64."""
    largest = logits[image, 0, p]
    for c in range(1, logits.shape[1]):
        largest = max(largest, logits[image, c, p])
    total = 0.0
    for c in range(logits.shape[1]):
        total += math.exp(logits[image, c, p] - largest)
    return largest, total


@njit(parallel=True, cache=True)
def _cross_entropy(logits, target, losses, chunk):
    n, classes, positions = logits.shape
    rows = n * positions
    for task in prange((rows + chunk - 1) // chunk):
        start, stop = chunk_bounds(task, chunk, rows)
        for row in range(start, stop):
            image, p = split(row, positions)
            largest, total = _largest_and_total(logits, image, p)
            log_total = math.log(total)
            loss = 0.0
            for c in range(classes):
                weight = target[image, c, p]
                if weight != 0:
                    loss += weight * (log_total - (logits[image, c, p] - largest))
            losses[image, p] = loss


@njit(parallel=True, cache=True)
def _cross_entropy_backward(grad, logits, target, dlogits, chunk):
    n, classes, positions = logits.shape
    rows = n * positions
    for task in prange((rows + chunk - 1) // chunk):
        start, stop = chunk_bounds(task, chunk, rows)
        for row in range(start, stop):
            image, p = split(row, positions)
            largest, total = _largest_and_total(logits, image, p)
            mass = 0.0
            for c in range(classes):
                mass += target[image, c, p]
            for c in range(classes):
                share = math.exp(logits[image, c, p] - largest) / total * mass
                dlogits[image, c, p] = grad[image, p] * (share - target[image, c, p])


def _planes(array):
    """(N, C, ...) as a contiguous (N, C, P)."""
    return np.ascontiguousarray(array).reshape(*array.shape[:2], math.prod(array.shape[2:]))


def softmax_cross_entropy(logits, target):
    """See kernels.reference.softmax_cross_entropy."""
    check_cross_entropy(logits, target)
    planes = _planes(logits)
    losses = empty((planes.shape[0], planes.shape[2]), logits.dtype)
    chunk = max(1, _CHUNK // planes.shape[1])
    _cross_entropy(planes, _planes(target), losses, chunk)
    return losses.reshape(logits.shape[0], *logits.shape[2:])


def softmax_cross_entropy_backward(grad, logits, target):
    """See kernels.reference.softmax_cross_entropy_backward."""
    check_cross_entropy(logits, target, grad)
    planes = _planes(logits)
    dlogits = empty(planes.shape, logits.dtype)
    flat = np.ascontiguousarray(grad).reshape(planes.shape[0], planes.shape[2])
    chunk = max(1, _CHUNK // planes.shape[1])
    _cross_entropy_backward(flat, planes, _planes(target), dlogits, chunk)
    return dlogits.reshape(logits.shape)
