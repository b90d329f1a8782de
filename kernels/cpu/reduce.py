"""Sums by channel on all cores; the definition stands in kernels.reference.reduce.

A task sums one plane (image, channel) into one cell of a table, which is added up in a fixed order:
the cores share the work however few channels there are, and the result does not depend on their
number. Stretches are summed in the array's own type, for speed, and added up in float64.
"""

import math

import numpy as np
from numba import njit, prange

from kernels.cpu.planes import flat
from kernels.cpu.sums import run_total
from kernels.cpu.tasks import split
from kernels.geometry import check_channels

# Elements that are summed in the array's own dtype.
STRETCH = 1024


@njit(inline="always")
def total_of(x, start, size):
    """The sum of x[start : start + size], flat, in float64."""
    total = 0.0
    for first in range(0, size, STRETCH):
        total += run_total(x, start + first, min(STRETCH, size - first))
    return total


@njit(parallel=True, cache=True)
def _plane_sums(x, sums, size):
    n, channels = sums.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        sums[image, c] = total_of(x, (image * channels + c) * size, size)


def channel_sums(x):
    """See kernels.reference.channel_sums."""
    check_channels(x)
    sums = np.empty(x.shape[:2])
    _plane_sums(flat(x), sums, math.prod(x.shape[2:]))
    return sums.sum(axis=0).astype(x.dtype)
