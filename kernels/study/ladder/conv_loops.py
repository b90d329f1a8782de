"""Convolution by loops: from the definition in Python to tiles of sums in registers.

Bias, dilation and groups are left out: they change nothing that a rung is about. These rungs
read a padded copy of the images, which each makes for itself, in its own time.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import split
from kernels.geometry import Padding, Pair, check_conv2d

UNIT = (1, 1)
# A product and a sum may become one instruction.
_FUSED = {"contract"}


@dataclass(frozen=True)
class Convolution:
    """x (N, C, H, W), weight (O, C, kh, kw), and how the kernel moves over x.

    `y_shape`, and with it all else, raises ValueError where they do not fit.
    """

    x: np.ndarray
    weight: np.ndarray
    stride: Pair
    padding: Padding

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return check_conv2d(self.x, self.weight, None, self.stride, self.padding, UNIT, 1)

    @property
    def work(self) -> int:
        """Multiply-adds."""
        return math.prod(self.y_shape) * self.weight[0].size

    def part(self, work: int) -> "Convolution":
        """The first images; if one is too much, its first outputs; of one, its first rows."""
        n, o, oh, ow = self.y_shape
        line = self.weight[0].size * ow
        images = _between(1, work // (line * oh * o), n)
        outputs = _between(1, work // (line * oh * images), o)
        rows = _between(1, work // (line * outputs * images), oh)
        part = replace(self, x=self.x[:images], weight=self.weight[:outputs])
        top, bottom, left, right = self.padding
        seen = (rows - 1) * self.stride[0] + self.weight.shape[2] - top
        if rows == oh or seen < 1:
            return part
        lines = part.x[:, :, :seen]
        return replace(part, x=lines, padding=(top, seen - lines.shape[2], left, right))


def _between(low, value, high):
    return max(low, min(value, high))


def padded(p: Convolution):
    """x with its zeros around it: (N, C, HP, WP)."""
    n, c, h, w = p.x.shape
    top, bottom, left, right = p.padding
    image = np.zeros((n, c, h + top + bottom, w + left + right), p.x.dtype)
    image[:, :, top : top + h, left : left + w] = p.x
    return image


def padded_apart(p: Convolution):
    """`padded`, with pixels that a kernel position meets one after the other side by side.

    Column s of every `stride` columns makes a plane of its own: pixel (r, q) lies at
    [r, q % stride, q // stride] of (N, C, HP, stride, WP / stride). At stride 1 nothing moves.
    """
    image = padded(p)
    step = p.stride[1]
    spare = -image.shape[3] % step
    image = np.pad(image, ((0, 0), (0, 0), (0, 0), (0, spare))) if spare else image
    apart = image.reshape(*image.shape[:3], image.shape[3] // step, step)
    return np.ascontiguousarray(apart.swapaxes(3, 4))


# -- loops -----------------------------------------------------------------------------------------


def python_loops(p: Convolution):
    """The definition, word for word: loops over the output maps, rows and columns (for each image),
    and inside of them over the channels, rows and columns of the kernel. A multiply-add costs
    Python hundreds of machine instructions: it makes objects of the indices, looks up what types
    they have, wraps each product into an object and throws it away again."""
    return _loops(padded(p), p.weight, np.zeros(p.y_shape, p.x.dtype), *p.stride)


def _loops(x, weight, y, row_step, column_step):
    images, outputs, rows, columns = y.shape
    channels, kernel_rows, kernel_columns = weight.shape[1:]
    for n in range(images):
        for o in range(outputs):
            for v in range(rows):
                for u in range(columns):
                    total = y[n, o, v, u]
                    for c in range(channels):
                        for i in range(kernel_rows):
                            for j in range(kernel_columns):
                                pixel = x[n, c, v * row_step + i, u * column_step + j]
                                total += weight[o, c, i, j] * pixel
                    y[n, o, v, u] = total
    return y


def numpy_planes(p: Convolution):
    """The loops exchanged: one NumPy expression takes a weight to all the pixels that it meets, so
    that Python's cost falls due once a weight instead of once a multiply-add. What remains is
    traffic. The expression reads a plane, writes its products to a new array, reads them again,
    reads the sums so far and writes them back: five accesses to memory for one multiply-add."""
    x, y = padded(p), np.zeros(p.y_shape, p.x.dtype)
    rows, columns = y.shape[2:]
    for o, c, i, j in np.ndindex(p.weight.shape):
        window = x[:, c, i :: p.stride[0], j :: p.stride[1]][:, :rows, :columns]
        y[:, o] += p.weight[o, c, i, j] * window
    return y


_compiled = njit(cache=True)(_loops)


def compiled_loops(p: Convolution):
    """The loops of the first rung, not a letter changed, compiled to machine code by Numba. Now an
    index is an instruction or two, the sum lies in a register, and nothing is written but the
    result. Yet floats have to be added in the order in which the program adds them, and each
    addition waits for the one before it, about four cycles. Units that could do 64 or 128
    multiply-adds in that time stand idle."""
    return _compiled(padded(p), p.weight, np.zeros(p.y_shape, p.x.dtype), *p.stride)


@njit(cache=True, fastmath=_FUSED)
def _row_loops(x, weight, y, row_step):
    images, outputs, rows, columns = y.shape
    channels, kernel_rows, kernel_columns = weight.shape[1:]
    column_step = x.shape[3]
    for n in range(images):
        for o in range(outputs):
            for v in range(rows):
                sums = y[n, o, v]
                for c in range(channels):
                    for i in range(kernel_rows):
                        for j in range(kernel_columns):
                            factor = weight[o, c, i, j]
                            line = x[n, c, v * row_step + i, j % column_step, j // column_step :]
                            for u in range(columns):
                                sums[u] += factor * line[u]
    return y


def row_loops(p: Convolution):
    """The loop over the columns of the result goes innermost. Its sums do not depend on each other
    and lie side by side, as do their pixels, so the compiler takes 8 or 16 of them into a vector
    register and multiplies and adds them by one instruction. (Pixels that a stride would set apart
    are sorted side by side first.) But the sums now lie in memory: for each multiply-add
    instruction there are two loads and a store."""
    y = np.zeros(p.y_shape, p.x.dtype)
    return _row_loops(padded_apart(p), p.weight, y, p.stride[0])


# -- tiles of sums in registers --------------------------------------------------------------------

# Outputs made at a time, as written out below, and sums of a row for each of them.
_OUTPUTS, _WIDTH = 4, 256


@njit(inline="always")
def _four(factors, k):
    return factors[k], factors[k + 1], factors[k + 2], factors[k + 3]


@njit(cache=True, fastmath=_FUSED)
def _four_outputs(x, offsets, weight, y, line_step):
    """y (up to 4, OH, OW) from the pixels x of an image and weight (4, taps).

    Tap k of output (v, u) is the pixel at v * line_step + u + offsets[k].
    """
    outputs, rows, columns = y.shape
    taps = offsets.size
    # At constant distances in one array the compiler sees that the sums do not overlap.
    sums = np.empty(_OUTPUTS * _WIDTH, y.dtype)
    for v in range(rows):
        for first in range(0, columns, _WIDTH):
            width = min(_WIDTH, columns - first)
            start = v * line_step + first
            sums[:] = 0
            for k in range(0, taps - 3, 4):
                x0, x1 = x[start + offsets[k] :], x[start + offsets[k + 1] :]
                x2, x3 = x[start + offsets[k + 2] :], x[start + offsets[k + 3] :]
                a0, a1, a2, a3 = _four(weight[0], k)
                b0, b1, b2, b3 = _four(weight[1], k)
                c0, c1, c2, c3 = _four(weight[2], k)
                d0, d1, d2, d3 = _four(weight[3], k)
                for u in range(width):
                    p0, p1, p2, p3 = x0[u], x1[u], x2[u], x3[u]
                    sums[u] += a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3
                    sums[_WIDTH + u] += b0 * p0 + b1 * p1 + b2 * p2 + b3 * p3
                    sums[2 * _WIDTH + u] += c0 * p0 + c1 * p1 + c2 * p2 + c3 * p3
                    sums[3 * _WIDTH + u] += d0 * p0 + d1 * p1 + d2 * p2 + d3 * p3
            for k in range(taps - taps % 4, taps):
                x0 = x[start + offsets[k] :]
                a0, b0, c0, d0 = weight[0, k], weight[1, k], weight[2, k], weight[3, k]
                for u in range(width):
                    sums[u] += a0 * x0[u]
                    sums[_WIDTH + u] += b0 * x0[u]
                    sums[2 * _WIDTH + u] += c0 * x0[u]
                    sums[3 * _WIDTH + u] += d0 * x0[u]
            for o in range(outputs):
                for u in range(width):
                    y[o, v, first + u] = sums[o * _WIDTH + u]


@njit(cache=True)
def _tiles(x, offsets, weight, y, line_step):
    blocks = len(weight) // _OUTPUTS
    for task in range(len(y) * blocks):
        n, block = split(task, blocks)
        o = block * _OUTPUTS
        outputs = y[n, o : o + _OUTPUTS]
        _four_outputs(x[n], offsets, weight[o : o + _OUTPUTS], outputs, line_step)


@njit(parallel=True, cache=True)
def _parallel_tiles(x, offsets, weight, y, line_step):
    blocks = len(weight) // _OUTPUTS
    for task in prange(len(y) * blocks):
        n, block = split(task, blocks)
        o = block * _OUTPUTS
        outputs = y[n, o : o + _OUTPUTS]
        _four_outputs(x[n], offsets, weight[o : o + _OUTPUTS], outputs, line_step)


def _by_tiles(p, tiles):
    x, y = padded_apart(p), np.empty(p.y_shape, p.x.dtype)
    outputs, channels = p.weight.shape[:2]
    plane, step, pitch = math.prod(x.shape[2:]), *x.shape[3:]
    c, i, j = np.indices(p.weight.shape[1:]).reshape(3, -1)
    offsets = c * plane + i * step * pitch + j % step * pitch + j // step
    weight = np.zeros((-(-outputs // _OUTPUTS) * _OUTPUTS, offsets.size), x.dtype)
    weight[:outputs] = p.weight.reshape(outputs, -1)
    tiles(x.reshape(len(x), -1), offsets, weight, y, p.stride[0] * step * pitch)
    return y


def register_tile(p: Convolution):
    """Sixteen multiply-adds for eight loads and four stores, where the rung before needs 32 and 16:
    four taps of four output maps are taken at once. Four vectors of pixels stay in registers and
    meet sixteen weights, which lie in registers too, and each of the four sums is loaded and stored
    once for its four taps. Loads no longer set the speed, the multiply-add units do. This is what
    the inner kernel of every matrix product does."""
    return _by_tiles(p, _tiles)


def parallel_tiles(p: Convolution):
    """The same on all cores. A task is one image and four output maps, which no other task writes.
    At most it is as many times faster as there are cores; it falls short where cores share what
    they wait for: memory, caches, the power that sets their clock."""
    return _by_tiles(p, _parallel_tiles)
