"""Pooling on all cores, a plane at a time; the definitions stand in kernels.reference.pool.

A task is one plane (image, channel), so that the scatters of backward never collide. Max-pooling
pads the plane with -inf in scratch memory and makes a vector of windows at a time; average pooling
clips each window to its real taps once, after which no tap is tested.
"""

import math

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import VECTOR_BYTES
from kernels.cpu.planes import phase_shape, split_phases, tap_offsets
from kernels.cpu.simd import max_tile
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.geometry import check_shape, pool_output_size
from kernels.reference.pool import (
    check_avg_pool2d_backward,
    check_images,
    check_max_pool2d,
    check_switch_range,
    check_switches,
    window_counts,
)


@njit(inline="always")
def _clip(output, stride, before, size, dilation, extent):
    """(first, stop) pixel of the real taps of one window along one axis, in steps of dilation."""
    start = output * stride - before
    stop = min(start + (size - 1) * dilation + 1, extent)
    if start < 0:
        start += ((-start + dilation - 1) // dilation) * dilation
    return start, stop


@njit(parallel=True, cache=True)
def _max_pool(x, y, switches, memory, winners, layout, padding, offsets, steps, corners, first):
    """All outputs of a plane lie flat, a vector of them is done at once: see kernels.cpu.planes.

    Output f begins with pixel first[f], the first real tap of its window, as the winner, and the
    pixels that its taps number are corners[f] plus steps[t].
    """
    oh, ow = y.shape[1:]
    rows, pitch = layout[2:4]
    size = first.size
    lowest = x.dtype.type(-np.inf)
    for plane in prange(x.shape[0]):
        thread = get_thread_id()
        flat, best = memory[thread, size:], memory[thread, :size]
        winner = winners[thread]
        split_phases(x[plane], flat, 0, rows * pitch, layout, padding[0], padding[2], lowest)
        for f in range(0, size, VECTOR_BYTES // x.itemsize):
            max_tile(flat, 0, offsets, steps, offsets.size, corners, first, f, best, winner)
        for v in range(oh):
            line = v * pitch
            for u in range(ow):
                y[plane, v, u] = best[line + u]
                switches[plane, v, u] = winner[line + u]


def _max_pool_plan(x_shape, y_shape, kernel_size, stride, padding, dilation):
    """(layout, padding, offsets, steps, corners, first) of `_max_pool`."""
    w = x_shape[3]
    oh, ow = y_shape[2:]
    layout = phase_shape((oh, ow), kernel_size, stride, dilation)
    size = -(-oh * layout[3] // VECTOR_BYTES) * VECTOR_BYTES
    v, u = np.divmod(np.arange(size), layout[3])
    row, column = v * stride[0] - padding[0], u * stride[1] - padding[2]
    real_row, real_column = (
        np.where(start < 0, start % step, start)
        for start, step in ((row, dilation[0]), (column, dilation[1]))
    )
    i, j = (np.arange(size) * step for size, step in zip(kernel_size, dilation, strict=True))
    steps = np.add.outer(i * w, j).reshape(-1)
    corners, first, steps = (
        a.astype(np.int32) for a in (row * w + column, real_row * w + real_column, steps)
    )
    return layout, padding, tap_offsets(layout, kernel_size, dilation), steps, corners, first


@njit(parallel=True, cache=True)
def _max_pool_2x2(x, y, switches):
    """2x2 windows of stride 2 without padding, as selections instead of branches."""
    planes, _, w = x.shape
    oh, ow = y.shape[1:]
    # The loop becomes vector code where nothing in it branches and no winner is a 64-bit int.
    right, below = np.int32(1), np.int32(w)
    for plane in prange(planes):
        for v in range(oh):
            upper, lower = x[plane, 2 * v], x[plane, 2 * v + 1]
            values, winners = y[plane, v], switches[plane, v]
            corner = np.int32(2 * v * w)
            for u in range(ow):
                best, winner = upper[2 * u], corner
                value = upper[2 * u + 1]
                wins = (not value <= best) & (best == best)
                best = value if wins else best
                winner = np.int32(corner + right) if wins else winner
                value = lower[2 * u]
                wins = (not value <= best) & (best == best)
                best = value if wins else best
                winner = np.int32(corner + below) if wins else winner
                value = lower[2 * u + 1]
                wins = (not value <= best) & (best == best)
                values[u] = value if wins else best
                winners[u] = np.int32(corner + below + right) if wins else winner
                corner = np.int32(corner + right + right)


@njit(parallel=True, cache=True)
def _scatter(y, switches, x):
    """The number of switches outside of the plane, which are skipped."""
    planes, size = y.shape
    pixels = x.shape[1]
    outside = 0
    for plane in prange(planes):
        for p in range(pixels):
            x[plane, p] = 0
        for p in range(size):
            pixel = switches[plane, p]
            if 0 <= pixel < pixels:
                x[plane, pixel] += y[plane, p]
            else:
                outside += 1
    return outside


@njit(parallel=True, cache=True)
def _gather(x, switches, y):
    """The number of switches outside of the plane, which are skipped."""
    planes, size = y.shape
    pixels = x.shape[1]
    outside = 0
    for plane in prange(planes):
        for p in range(size):
            pixel = switches[plane, p]
            if 0 <= pixel < pixels:
                y[plane, p] = x[plane, pixel]
            else:
                outside += 1
    return outside


@njit(parallel=True, cache=True)
def _avg_pool(x, y, rows, columns, kernel_size, stride, padding):
    planes, h, w = x.shape
    oh, ow = y.shape[1:]
    for plane in prange(planes):
        for v in range(oh):
            r0, r1 = _clip(v, stride[0], padding[0], kernel_size[0], 1, h)
            for u in range(ow):
                c0, c1 = _clip(u, stride[1], padding[2], kernel_size[1], 1, w)
                total = 0.0
                for r in range(r0, r1):
                    for c in range(c0, c1):
                        total += x[plane, r, c]
                y[plane, v, u] = total / (rows[v] * columns[u])


@njit(parallel=True, cache=True)
def _avg_pool_backward(dy, dx, rows, columns, kernel_size, stride, padding):
    planes, h, w = dx.shape
    oh, ow = dy.shape[1:]
    for plane in prange(planes):
        total = np.zeros((h, w))
        for v in range(oh):
            r0, r1 = _clip(v, stride[0], padding[0], kernel_size[0], 1, h)
            for u in range(ow):
                c0, c1 = _clip(u, stride[1], padding[2], kernel_size[1], 1, w)
                share = dy[plane, v, u] / (rows[v] * columns[u])
                for r in range(r0, r1):
                    for c in range(c0, c1):
                        total[r, c] += share
        for r in range(h):
            for c in range(w):
                dx[plane, r, c] = total[r, c]


@njit(parallel=True, cache=True, fastmath={"reassoc", "nsz"})
def _plane_means(x, y):
    planes, size = x.shape
    for plane in prange(planes):
        total = 0.0
        for p in range(size):
            total += x[plane, p]
        y[plane] = total / size


@njit(parallel=True, cache=True)
def _spread(values, x):
    planes, size = x.shape
    for plane in prange(planes):
        for p in range(size):
            x[plane, p] = values[plane]


def _planes(array):
    """(N, C, H, W) as a contiguous (N C, H, W)."""
    n, c, h, w = array.shape
    return np.ascontiguousarray(array).reshape(n * c, h, w)


def _flat_planes(array):
    """(N, C, H, W) as a contiguous (N C, H W)."""
    n, c, h, w = array.shape
    return np.ascontiguousarray(array).reshape(n * c, h * w)


def max_pool2d(x, kernel_size, stride, padding=(0, 0, 0, 0), dilation=(1, 1), ceil_mode=False):
    """See kernels.reference.max_pool2d."""
    y_shape = check_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    y, switches = empty(y_shape, x.dtype), empty(y_shape, np.int32)
    arrays = _planes(x), _planes(y), _planes(switches)
    whole = not ceil_mode or (x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0)
    if (kernel_size, stride, padding, dilation, whole) == ((2, 2), (2, 2), (0,) * 4, (1, 1), True):
        _max_pool_2x2(*arrays)
    else:
        plan = _max_pool_plan(x.shape, y_shape, kernel_size, stride, padding, dilation)
        threads, size = num_threads(), plan[-1].size
        # The last vector may reach beyond the phases.
        memory = workspace("pool", (threads, 2 * size + math.prod(plan[0][2:])), x.dtype)
        winners = workspace("winners", (threads, size), np.int32)
        _max_pool(*arrays, memory, winners, *plan)
    return y, switches


def max_unpool2d(y, switches, plane_shape):
    """See kernels.reference.max_unpool2d."""
    check_images("y", y)
    check_switches(switches, y.shape)
    n, c = y.shape[:2]
    x = empty((n, c, *plane_shape), y.dtype)
    if _scatter(_flat_planes(y), _flat_planes(switches), _flat_planes(x)):
        check_switch_range(switches, plane_shape)  # which raises
    return x


def max_pool2d_gather(x, switches):
    """See kernels.reference.max_pool2d_gather."""
    check_images("x", x)
    check_switches(switches, (*x.shape[:2], *switches.shape[2:]))
    y = empty(switches.shape, x.dtype)
    if _gather(_flat_planes(x), _flat_planes(switches), _flat_planes(y)):
        check_switch_range(switches, x.shape[2:])  # which raises
    return y


def avg_pool2d(
    x, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d."""
    check_images("x", x)
    n, c, h, w = x.shape
    size = pool_output_size(h, w, kernel_size, stride, padding, (1, 1), ceil_mode)
    y = empty((n, c, *size), x.dtype)
    counts = window_counts(x.shape, y.shape, kernel_size, stride, padding, count_include_pad)
    _avg_pool(_planes(x), _planes(y), *counts, kernel_size, stride, padding)
    return y


def avg_pool2d_backward(
    dy, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d_backward."""
    check_avg_pool2d_backward(dy, x_shape, kernel_size, stride, padding, ceil_mode)
    dx = empty(x_shape, dy.dtype)
    counts = window_counts(x_shape, dy.shape, kernel_size, stride, padding, count_include_pad)
    _avg_pool_backward(_planes(dy), _planes(dx), *counts, kernel_size, stride, padding)
    return dx


def global_avg_pool2d(x):
    """See kernels.reference.global_avg_pool2d."""
    check_images("x", x)
    y = empty((*x.shape[:2], 1, 1), x.dtype)
    _plane_means(_flat_planes(x), y.reshape(-1))
    return y


def global_avg_pool2d_backward(dy, x_shape):
    """See kernels.reference.global_avg_pool2d_backward."""
    check_images("dy", dy)
    n, c, h, w = x_shape
    check_shape("dy", dy.shape, (n, c, 1, 1))
    dx = empty(x_shape, dy.dtype)
    _spread((dy / dy.dtype.type(h * w)).reshape(-1), _flat_planes(dx))
    return dx
