"""Local response normalisation, rung by rung: a kernel that waits for memory, if it is good.

Every rung writes y = x s^-beta and the scale s, which backward needs.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from kernels import cpu, reference
from kernels.reference.lrn import check_lrn
from kernels.study.ladder.rungs import Ladder, Rung, one_thread

# The AlexNet paper's settings.
SIZE, ALPHA, BETA, K = 5, 1e-4, 0.75, 2.0
_SETTINGS = SIZE, ALPHA, BETA, K
_BEFORE, _AFTER = SIZE // 2, (SIZE - 1) // 2
# Values that the slow version is timed on.
_INTERPRETED = 10_000


@dataclass(frozen=True)
class Normalisation:
    """x (N, C, H, W), normalised over the paper's window of 5 channels."""

    x: np.ndarray

    @property
    def work(self) -> int:
        """Values."""
        return self.x.size

    def part(self, work: int) -> "Normalisation":
        """The first images; if one is too much, its first rows."""
        n, c, h, w = self.x.shape
        images = max(1, min(n, work // (c * h * w)))
        rows = max(1, min(h, work // (images * c * w)))
        return Normalisation(np.ascontiguousarray(self.x[:images, :, :rows]))


def _loops(x, y, scale, alpha, beta, k):
    images, channels, rows, columns = x.shape
    for n in range(images):
        for c in range(channels):
            for r in range(rows):
                for q in range(columns):
                    total = x.dtype.type(0)
                    for j in range(max(0, c - _BEFORE), min(channels, c + _AFTER + 1)):
                        total += x[n, j, r, q] * x[n, j, r, q]
                    scale[n, c, r, q] = k + alpha * total
                    y[n, c, r, q] = x[n, c, r, q] * scale[n, c, r, q] ** -beta


_compiled = njit(cache=True)(_loops)


def _on_new_arrays(function, x):
    """(y, scale) of a function that writes them; the settings are given in the dtype of x."""
    y, scale = np.empty_like(x), np.empty_like(x)
    function(x, y, scale, *(x.dtype.type(value) for value in (ALPHA, BETA, K)))
    return y, scale


def _on_planes(function, x):
    """The same of a function of planes (N, C, H W)."""
    n, c, h, w = x.shape
    y, scale = _on_new_arrays(function, x.reshape(n, c, h * w))
    return y.reshape(x.shape), scale.reshape(x.shape)


def python_loops(p: Normalisation):
    """The definition, a value at a time: the squares of up to five channels, their sum, a power.
    Python needs hundreds of machine instructions for each of the dozen operations."""
    return _on_new_arrays(_loops, p.x)


def numpy_passes(p: Normalisation):
    """The reference: whole arrays at a time. Every operation runs as fast as compiled code can, but
    is a pass over the whole of memory: squares, a sum for each of the five channels of the window,
    scale, power, product, most of them into intermediate arrays that the next one reads."""
    return reference.lrn(p.x, *_SETTINGS)


def compiled_loops(p: Normalisation):
    """The loops of the first rung compiled: one pass, and nothing is interpreted. But neighbours in
    the window lie a whole plane apart, so that nothing can be loaded as a vector, and every value
    costs a call of the power function, some fifty instructions."""
    return _on_new_arrays(_compiled, p.x)


@njit(cache=True)
def _planes(x, y, scale, alpha, beta, k):
    images, channels, size = x.shape
    one = x.dtype.type(1)
    for n in range(images):
        for c in range(channels):
            total = scale[n, c]
            total[:] = 0
            for j in range(max(0, c - _BEFORE), min(channels, c + _AFTER + 1)):
                for p in range(size):
                    total[p] += x[n, j, p] * x[n, j, p]
            for p in range(size):
                s = k + alpha * total[p]
                total[p] = s
                root = math.sqrt(s)
                y[n, c, p] = x[n, c, p] * (one / (root * math.sqrt(root)))
    return y


def plane_loops(p: Normalisation):
    """The positions of a plane go innermost: they lie side by side and do not depend on each other,
    so 8 or 16 of them share an instruction. And s^(-3/4) is 1 / (sqrt(s) sqrt(sqrt(s))): two square
    roots and a division, which exist as vector instructions, instead of a function for every
    exponent there is."""
    return _on_planes(_planes, p.x)


@njit(cache=True)
def _running(x, y, scale, alpha, beta, k):
    images, channels, size = x.shape
    one = x.dtype.type(1)
    total = np.empty(size, x.dtype)
    for n in range(images):
        total[:] = 0
        for c in range(min(_AFTER, channels)):
            for p in range(size):
                total[p] += x[n, c, p] * x[n, c, p]
        for c in range(channels):
            if c + _AFTER < channels:
                for p in range(size):
                    total[p] += x[n, c + _AFTER, p] * x[n, c + _AFTER, p]
            if c - _BEFORE > 0:
                for p in range(size):
                    total[p] -= x[n, c - _BEFORE - 1, p] * x[n, c - _BEFORE - 1, p]
            for p in range(size):
                s = k + alpha * total[p]
                scale[n, c, p] = s
                root = math.sqrt(s)
                y[n, c, p] = x[n, c, p] * (one / (root * math.sqrt(root)))
    return y


def running_sum(p: Normalisation):
    """The window's sum is carried on from channel to channel: the channel that enters is added, the
    one that leaves subtracted, two operations instead of five. It is no rung of the house: what
    rounding took from a large value stays in the sum after the value has left, and a NaN or an
    infinity never leaves at all."""
    return _on_planes(_running, p.x)


def stretches(p: Normalisation):
    """kernels.cpu.lrn on one thread. It goes through all channels for 768 positions, then for the
    next 768, so that the window finds its five channels in the L1 cache: memory is read once and
    written twice, which is the least there can be. The power is two estimates of an inverse root
    and a few products, where the processor has such estimates."""
    with one_thread():
        return cpu.lrn(p.x, *_SETTINGS)


def parallel_stretches(p: Normalisation):
    """The same on all cores: each takes stretches of its own, and nothing is shared but the
    bandwidth of memory, which the cores together exhaust sooner than their arithmetic."""
    return cpu.lrn(p.x, *_SETTINGS)


_RUNGS = (
    Rung("loops in Python", python_loops, _INTERPRETED),
    Rung("NumPy, array at a time", numpy_passes, aside=True),
    Rung("loops compiled", compiled_loops),
    Rung("positions innermost: vectors", plane_loops),
    Rung("running sum", running_sum, aside=True),
    Rung("stretches in the cache", stretches),
    Rung("all cores", parallel_stretches),
)


def build(shape) -> Ladder:
    """The ladder of an LRN with the AlexNet paper's settings. ValueError for another rank."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    check_lrn(SIZE, x=x)
    return Ladder(
        title=f"lrn of {'x'.join(map(str, shape))}: size {SIZE}, alpha {ALPHA:g}, beta {BETA}, "
        f"k {K:g}",
        problem=Normalisation(x),
        expected=reference.lrn(x.astype(np.float64), *_SETTINGS),
        rungs=_RUNGS,
        flops=(2 * SIZE + 3) * x.size,
        traffic=3 * x.nbytes,
        note="kernels.cpu.lrn is the last rung.",
    )
