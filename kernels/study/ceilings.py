"""What the machine can do at most: the rate of a large product, and the bandwidth of memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from kernels.cpu.blas import gemm
from kernels.cpu.tasks import chunk_bounds
from kernels.cpu.threads import num_threads
from kernels.study.timing import interleaved

_SIDE = 2048
# Three arrays of this many float32 values are far larger than any cache.
_VALUES = 1 << 25


@dataclass(frozen=True)
class Ceilings:
    """float32 operations a second and bytes a second, on all threads."""

    flops: float
    bandwidth: float

    def floor(self, flops: int, traffic: int) -> float:
        """Seconds that work of `flops` operations and `traffic` bytes takes at the very least."""
        return max(flops / self.flops, traffic / self.bandwidth)

    def bound(self, flops: int, traffic: int) -> str:
        """Which of the two ceilings sets the floor: "arithmetic" or "traffic"."""
        slower = flops / self.flops >= traffic / self.bandwidth
        return "arithmetic" if slower else "traffic"

    def sentence(self) -> str:
        """Both, in one line."""
        return (
            f"Measured ceilings: {self.flops / 1e9:.0f} GFLOP/s of a large product, "
            f"{self.bandwidth / 1e9:.1f} GB/s of memory."
        )

    def highest(self, other: "Ceilings") -> "Ceilings":
        """The higher of two measurements: other programs can only lower them."""
        return Ceilings(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))


@njit(parallel=True, cache=True)
def _copy(source, target):
    for i in prange(source.size):
        target[i] = source[i]


@njit(parallel=True, cache=True)
def _triad(a, b, factor, target):
    for i in prange(a.size):
        target[i] = a[i] + factor * b[i]


@njit(parallel=True, cache=True)
def _product(a, b, y, shares):
    """y = a @ b, each thread one share of the rows, so that BLAS packs b as seldom as can be."""
    for share in prange(shares):
        start, stop = chunk_bounds(share, -(-len(a) // shares), len(a))
        gemm(a[start:stop], b, y[start:stop], False)


def measure_ceilings(rounds: int) -> Ceilings:
    """The best of `rounds` runs of a product, a copy and a triad, on the threads of the kernels.

    As in McCalpin's STREAM, a copy moves two arrays and a triad three: what the caches read before
    they write is not counted.
    """
    return timed_under_ceilings({}, rounds)[1]


def timed_under_ceilings(
    candidates: dict[str, Callable], rounds: int
) -> tuple[dict[str, list[float]], Ceilings]:
    """(what `interleaved` gives for the candidates, the ceilings): they take their turns together.

    So a load of the machine that comes or goes meanwhile concerns both.
    """
    draw = np.random.default_rng(0)
    a, b = draw.random((2, _SIDE, _SIDE), np.float32)
    result, shares = np.empty_like(a), num_threads()
    x, y, z = (np.ones(_VALUES, np.float32) for _ in range(3))
    factor = np.float32(3)
    ceilings = {
        "product": lambda: _product(a, b, result, shares),
        "copy": lambda: _copy(x, z),
        "triad": lambda: _triad(x, y, factor, z),
    }
    runs = {("ceiling", name): run for name, run in ceilings.items()}
    runs |= {("candidate", name): run for name, run in candidates.items()}
    times = interleaved(runs, rounds)
    fastest = {name: min(times["ceiling", name]) for name in ceilings}
    bandwidth = max(2 * x.nbytes / fastest["copy"], 3 * x.nbytes / fastest["triad"])
    flops = 2 * _SIDE**3 / fastest["product"]
    return {name: times["candidate", name] for name in candidates}, Ceilings(flops, bandwidth)
