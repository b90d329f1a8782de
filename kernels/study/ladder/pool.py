"""Max-pooling, rung by rung: hardly any arithmetic, but branches that cost more than it.

Every rung writes the winners and their indices, the switches that backward needs. Ties go to the
first, NaN wins (kernels.reference.pool).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numba import njit, prange

from kernels import cpu, reference
from kernels.geometry import Padding, Pair
from kernels.reference.pool import check_max_pool2d
from kernels.study.ladder.rungs import Ladder, Rung

UNIT = (1, 1)
# Pixels that the slow version is timed on.
_INTERPRETED = 15_000


@dataclass(frozen=True)
class Pooling:
    """x (N, C, H, W) and the windows over its planes; `y_shape` raises where they do not fit."""

    x: np.ndarray
    kernel_size: Pair
    stride: Pair
    padding: Padding

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        settings = self.kernel_size, self.stride, self.padding, UNIT, False
        return check_max_pool2d(self.x, *settings)

    @property
    def work(self) -> int:
        """Pixels."""
        return self.x.size

    def part(self, work: int) -> "Pooling":
        """The first images; if one is too much, its first planes."""
        n, c, h, w = self.x.shape
        images = max(1, min(n, work // (c * h * w)))
        planes = max(1, min(c, work // (images * h * w)))
        return replace(self, x=self.x[:images, :planes])


def _results(p):
    """Planes of x, and new ones for the winners and the switches."""
    n, c, oh, ow = p.y_shape
    h, w = p.x.shape[2:]
    y, switches = np.empty((n, c, oh, ow), p.x.dtype), np.empty((n, c, oh, ow), np.int32)
    flat = np.ascontiguousarray(p.x).reshape(n * c, h, w)
    return (y, switches), (flat, y.reshape(n * c, oh, ow), switches.reshape(n * c, oh, ow))


def _loops(x, y, switches, kernel_size, stride, padding):
    planes, h, w = x.shape
    for plane in range(planes):
        for v in range(y.shape[1]):
            for u in range(y.shape[2]):
                best, winner = x[plane, 0, 0], -1
                for i in range(kernel_size[0]):
                    for j in range(kernel_size[1]):
                        r, q = v * stride[0] + i - padding[0], u * stride[1] + j - padding[2]
                        if 0 <= r < h and 0 <= q < w:
                            value = x[plane, r, q]
                            if winner < 0 or (not value <= best and best == best):
                                best, winner = value, r * w + q
                y[plane, v, u] = best
                switches[plane, v, u] = winner


_compiled = njit(cache=True)(_loops)


def python_loops(p: Pooling):
    """The definition, a pixel at a time: is it in the image, is it larger than the best so far?
    Python needs hundreds of machine instructions for either question."""
    results, arrays = _results(p)
    _loops(*arrays, p.kernel_size, p.stride, p.padding)
    return results


def numpy_passes(p: Pooling):
    """The reference: for each position of the kernel all windows at once. Nothing is interpreted a
    pixel, but every position is several passes over memory: comparisons, masks of their results,
    copies where the masks are true."""
    return reference.max_pool2d(p.x, p.kernel_size, p.stride, p.padding)


def compiled_loops(p: Pooling):
    """The loops of the first rung compiled. Memory is passed once, and time goes into questions.
    Whether a pixel is inside is asked for every one. Whether it is the largest so far is as good as
    chance, so that the processor, which has gone on by a guess, must often go back."""
    results, arrays = _results(p)
    _compiled(*arrays, p.kernel_size, p.stride, p.padding)
    return results


@njit(inline="always")
def _window(image, v, u, kernel_size, stride, padding):
    """(winner, its index) of one window, which is clipped to the image before it is searched."""
    h, w = image.shape
    top, left = v * stride[0] - padding[0], u * stride[1] - padding[2]
    first_row, first_column = max(0, top), max(0, left)
    best, winner = image[first_row, first_column], first_row * w + first_column
    for r in range(first_row, min(h, top + kernel_size[0])):
        for q in range(first_column, min(w, left + kernel_size[1])):
            value = image[r, q]
            if not value <= best and best == best:
                best, winner = value, r * w + q
    return best, winner


@njit(cache=True)
def _clipped(x, y, switches, kernel_size, stride, padding):
    for plane in range(len(x)):
        for v in range(y.shape[1]):
            for u in range(y.shape[2]):
                best, winner = _window(x[plane], v, u, kernel_size, stride, padding)
                y[plane, v, u] = best
                switches[plane, v, u] = winner


def clipped_windows(p: Pooling):
    """What lies inside is settled once a window: its first and last row and column are clipped to
    the image, and the loops over it ask nothing any more."""
    results, arrays = _results(p)
    _clipped(*arrays, p.kernel_size, p.stride, p.padding)
    return results


@lru_cache
def _kernels(step):
    """The kernels for a horizontal stride: as a constant, it lets them be vector code."""

    @njit(cache=True)
    def plane_rows(image, y, switches, kernel_size, row_step, padding):
        h, w = image.shape
        rows, columns = y.shape
        top, left = padding[0], padding[2]
        # Windows from `first` on and before `last` lie inside of the image from left to right.
        first = min(columns, (left + step - 1) // step)
        last = max(first, min(columns, (w - kernel_size[1] + left) // step + 1))
        for v in range(rows):
            for u in range(columns):
                if u < first or u >= last:
                    stride = row_step, step
                    y[v, u], switches[v, u] = _window(image, v, u, kernel_size, stride, padding)
            best, winner = y[v, first:last], switches[v, first:last]
            start = v * row_step - top
            first_row = max(0, start)
            for r in range(first_row, min(h, start + kernel_size[0])):
                for j in range(kernel_size[1]):
                    column = first * step - left + j
                    line = image[r, column:]
                    index = np.int32(r * w + column)
                    if r == first_row and j == 0:
                        for u in range(last - first):
                            best[u] = line[step * u]
                            winner[u] = index + np.int32(step * u)
                        continue
                    for u in range(last - first):
                        value, held = line[step * u], best[u]
                        wins = (not value <= held) & (held == held)
                        best[u] = value if wins else held
                        winner[u] = index + np.int32(step * u) if wins else winner[u]

    @njit(cache=True)
    def serial(x, y, switches, kernel_size, row_step, padding):
        for plane in range(len(x)):
            plane_rows(x[plane], y[plane], switches[plane], kernel_size, row_step, padding)

    @njit(parallel=True, cache=True)
    def parallel(x, y, switches, kernel_size, row_step, padding):
        for plane in prange(len(x)):
            plane_rows(x[plane], y[plane], switches[plane], kernel_size, row_step, padding)

    return serial, parallel


def selected_rows(p: Pooling):
    """The columns of the result go innermost, and what was a branch becomes a selection: both
    answers are there, and a mask takes one. Windows side by side then share instructions, 8 or 16
    at a time, and nothing is guessed. Only the windows at the left and right edges are clipped."""
    results, arrays = _results(p)
    _kernels(p.stride[1])[0](*arrays, p.kernel_size, p.stride[0], p.padding)
    return results


def parallel_rows(p: Pooling):
    """The same on all cores. A task is one plane, which no other task reads or writes: nothing is
    shared but the bandwidth of memory."""
    results, arrays = _results(p)
    _kernels(p.stride[1])[1](*arrays, p.kernel_size, p.stride[0], p.padding)
    return results


def house_kernel(p: Pooling):
    """kernels.cpu.max_pool2d. The best and its index stay in registers, where the rung before
    stores and loads them for each tap. Shuffles pick what a stride sets apart from whole vectors,
    and flags keep the edges from reading beyond the image. Windows that overlap much go one axis
    after the other, kh + kw taps in place of kh kw; those of 2x2 without padding are written out
    instead."""
    return cpu.max_pool2d(p.x, p.kernel_size, p.stride, p.padding)


_RUNGS = (
    Rung("loops in Python", python_loops, _INTERPRETED),
    Rung("NumPy, tap by tap", numpy_passes, aside=True),
    Rung("loops compiled", compiled_loops),
    Rung("windows clipped", clipped_windows),
    Rung("selections: vectors", selected_rows),
    Rung("all cores", parallel_rows),
    Rung("in registers", house_kernel),
)


def build(shape, kernel_size, stride, padding) -> Ladder:
    """The ladder of a max-pooling, on normal values. ValueError where the shapes do not fit."""
    draw = np.random.default_rng(0)
    p = Pooling(draw.standard_normal(shape, np.float32), kernel_size, stride, padding)
    expected = reference.max_pool2d(p.x, kernel_size, stride, padding)
    taps = kernel_size[0] * kernel_size[1]
    return Ladder(
        title=f"max_pool2d of {'x'.join(map(str, shape))}: {'x'.join(map(str, kernel_size))} "
        f"windows, stride {'x'.join(map(str, stride))}, padding {','.join(map(str, padding))}",
        problem=p,
        expected=expected,
        rungs=_RUNGS,
        flops=expected[0].size * (taps - 1),
        traffic=p.x.nbytes + sum(result.nbytes for result in expected),
        note="kernels.cpu.max_pool2d is the last rung.",
    )
