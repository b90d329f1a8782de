"""Max-pooling on all cores; the definitions stand in kernels.reference.pool.

A task is whole planes (image, channel), so that the scatters of backward never collide. Windows are
taken vector by vector, straight from the image, in the order of the definition, so that the first
of equals wins. Tall windows that overlap much are pooled along rows first, then along columns,
which goes in that order, too.

The gradient of small windows two pixels apart is gathered instead where no cache holds it, line by
line of pixels, and written past the caches: more arithmetic than the scatter, which has fewer
windows than pixels, but each pixel moves once, where it would be fetched and written back.
"""

import math
from functools import lru_cache

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import VECTOR_BYTES
from kernels.cpu.lines import is_tall, row_windows
from kernels.cpu.max_windows import switched_sums, window_max
from kernels.cpu.planes import flat
from kernels.cpu.streams import PIECE, fetch_ahead, past_caches, stream
from kernels.cpu.tasks import chunk_bounds, group_size
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.reference.pool import (
    check_images,
    check_max_pool2d,
    check_max_pool2d_backward,
    check_switch_range,
    check_switches,
)

# Elements of a vector at most.
_LANES = VECTOR_BYTES // 4
# Windows that have a pixel, at most, for which it pays to look through them.
_SHARED = 4


@njit(parallel=True, cache=True)
def _max_pool(x, y, switches, first_rows, row_counts, first_columns, corners, sizes, planes, group):
    h, w, oh, ow, sh, sw, left, dh, kw, dw = sizes
    for task in prange((planes + group - 1) // group):
        first, stop = chunk_bounds(task, group, planes)
        for plane in range(first, stop):
            x0, y0 = plane * h * w, plane * oh * ow
            for v in range(oh):
                pixel = first_rows[v] * w
                fetch_ahead(x, x0 + pixel, sh * w)
                window_max(
                    x, x0 + pixel, w, row_counts[v], dh * w, left, sw, kw, dw, first_columns,
                    corners, pixel, y, switches, y0 + v * ow, ow,
                )  # fmt: skip


@lru_cache
def _max_pool_plan(plane_shape, output_shape, kernel_size, stride, padding, dilation):
    """What `_max_pool` takes from `first_rows` to `sizes`."""
    (h, w), (oh, ow), (sh, sw), (dh, dw) = plane_shape, output_shape, stride, dilation
    row, column = np.arange(oh) * sh - padding[0], np.arange(ow + _LANES) * sw - padding[2]
    first_row = np.where(row < 0, row % dh, row)
    first_column = np.where(column < 0, column % dw, column)
    last_row = np.minimum(row + (kernel_size[0] - 1) * dh, h - 1)
    row_count = (last_row - first_row) // dh + 1
    sizes = h, w, oh, ow, sh, sw, padding[2], dh, kernel_size[1], dw
    return first_row, row_count, first_column.astype(np.int32), column.astype(np.int32), sizes


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
def _max_pool_backward(
    dy, switches, dx, first_windows, window_counts, sizes, planes, group, scratch
):  # fmt: skip
    h, w, oh, ow, kw, left = sizes
    lines = scratch.shape[1] // w
    for task in prange((planes + group - 1) // group):
        first, stop = chunk_bounds(task, group, planes)
        piece = scratch[get_thread_id()]
        for plane in range(first, stop):
            x0, y0 = plane * h * w, plane * oh * ow
            for top in range(0, h, lines):
                bottom = min(h, top + lines)
                for r in range(top, bottom):
                    switched_sums(
                        dy, switches, y0 + first_windows[r] * ow, ow, window_counts[r], left, kw,
                        r * w, piece, (r - top) * w, w,
                    )  # fmt: skip
                stream(dx, x0 + top * w, piece, 0, (bottom - top) * w)


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


def _flat_planes(array):
    """(N, C, H, W) as a contiguous (N C, H W)."""
    n, c, h, w = array.shape
    return np.ascontiguousarray(array).reshape(n * c, h * w)


def _planes(array):
    """(N, C, H, W) as a contiguous (N C, H, W)."""
    n, c, h, w = array.shape
    return np.ascontiguousarray(array).reshape(n * c, h, w)


def max_pool2d(x, kernel_size, stride, padding=(0, 0, 0, 0), dilation=(1, 1), ceil_mode=False):
    """See kernels.reference.max_pool2d."""
    y_shape = check_max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    y, switches = empty(y_shape, x.dtype), empty(y_shape, np.int32)
    arrays = _planes(x), _planes(y), _planes(switches)
    whole = not ceil_mode or (x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0)
    if (kernel_size, stride, padding, dilation, whole) == ((2, 2), (2, 2), (0,) * 4, (1, 1), True):
        _max_pool_2x2(*arrays)
        return y, switches
    if is_tall(kernel_size, stride):
        (kh, kw), (sh, sw), (dh, dw) = kernel_size, stride, dilation
        along = max_pool2d(x, (1, kw), (1, sw), (0, 0, *padding[2:]), (1, dw), ceil_mode)
        y, rows = max_pool2d(along[0], (kh, 1), (sh, 1), (*padding[:2], 0, 0), (dh, 1), ceil_mode)
        _gather(_flat_planes(along[1]), _flat_planes(rows), _flat_planes(switches))
        return y, switches
    plan = _max_pool_plan(x.shape[2:], y_shape[2:], kernel_size, stride, padding, dilation)
    lines = (array.reshape(-1) for array in arrays)
    planes, area = len(arrays[0]), x.shape[2] * x.shape[3]
    _max_pool(*lines, *plan, planes, group_size(planes, area))
    return y, switches


def max_pool2d_backward(
    dy, switches, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), dilation=(1, 1)
):
    """See kernels.reference.max_pool2d_backward."""
    check_max_pool2d_backward(dy, switches, x_shape)
    dx = empty(x_shape, dy.dtype)
    shared = math.prod(-(-k // s) for k, s in zip(kernel_size, stride, strict=True))
    gathered = stride[1] == 2 and dilation == (1, 1) and shared <= _SHARED
    if not (gathered and past_caches(dx, dy, switches)):
        _unpool(dy, switches, dx)
        return dx
    (n, c, h, w), (oh, ow) = x_shape, dy.shape[2:]
    sizes = h, w, oh, ow, kernel_size[1], padding[2]
    windows = row_windows(h, oh, kernel_size[0], stride[0], padding[0])
    _max_pool_backward(
        flat(dy), flat(switches), flat(dx), *windows, sizes, n * c, group_size(n * c, h * w),
        workspace("lines", (num_threads(), max(PIECE, w)), dy.dtype),
    )  # fmt: skip
    return dx


def max_unpool2d(y, switches, plane_shape):
    """See kernels.reference.max_unpool2d."""
    check_images("y", y)
    check_switches(switches, y.shape)
    n, c = y.shape[:2]
    x = empty((n, c, *plane_shape), y.dtype)
    _unpool(y, switches, x)
    return x


def _unpool(y, switches, x):
    """Make x 0 but for y at its switches."""
    if _scatter(_flat_planes(y), _flat_planes(switches), _flat_planes(x)):
        check_switch_range(switches, x.shape[2:])  # which raises


def max_pool2d_gather(x, switches):
    """See kernels.reference.max_pool2d_gather."""
    check_images("x", x)
    check_switches(switches, (*x.shape[:2], *switches.shape[2:]))
    y = empty(switches.shape, x.dtype)
    if _gather(_flat_planes(x), _flat_planes(switches), _flat_planes(y)):
        check_switch_range(switches, x.shape[2:])  # which raises
    return y
