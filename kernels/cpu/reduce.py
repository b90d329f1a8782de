"""Sums by channel on all cores; the definition stands in kernels.reference.reduce.

A task sums one plane (image, channel) into one cell of a table, which is added up in a fixed order:
the cores share the work however few channels there are, and the result does not depend on their
number. Stretches are summed in the array's own type, for speed, and added up in float64.
"""

import math

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import split
from kernels.geometry import check_channels

_STRETCH = 1024


@njit(parallel=True, cache=True, fastmath={"reassoc", "nsz"})
def _plane_sums(x, sums):
    n, channels, size = x.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        total = 0.0
        for start in range(0, size, _STRETCH):
            part = x.dtype.type(0)
            stretch = x[image, c, start : min(size, start + _STRETCH)]
            for p in range(stretch.size):
                part += stretch[p]
            total += part
        sums[image, c] = total


def channel_sums(x):
    """See kernels.reference.channel_sums."""
    check_channels(x)
    sums = np.empty(x.shape[:2])
    planes = np.ascontiguousarray(x).reshape(*x.shape[:2], math.prod(x.shape[2:]))
    _plane_sums(planes, sums)
    return sums.sum(axis=0).astype(x.dtype)
