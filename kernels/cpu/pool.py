"""Max-pooling on all cores; the definitions stand in kernels.reference.pool.

A task is whole planes (image, channel), so that the scatters of backward never collide. A plane is
pooled in strips that stay in the first cache: their rows are copied with margins of -inf to the
left and right, the winners among the columns are found in each row, then those among the rows. Both
go in the order of the definition, so that the first of equals wins.
"""

from functools import lru_cache

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import VECTOR_BYTES
from kernels.cpu.lines import move_down
from kernels.cpu.max_windows import line_max, split_rows, window_max
from kernels.cpu.streams import fetch
from kernels.cpu.tasks import chunk_bounds, group_size
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.reference.pool import (
    check_images,
    check_max_pool2d,
    check_switch_range,
    check_switches,
)

# Elements of a strip: so few that reading, computing and writing take turns often.
_STRIP = 400
# Bytes: where a load and a store are a multiple of 4096 apart, the processor takes them for one
# place, and waits.
_APART = 512


@njit(cache=True)
def _pool_planes(x, y, switches, first, stop, scratch, taps, windows, sizes):
    """The planes from `first` to `stop`."""
    lines, best, winners, first_taps = scratch
    starts, offsets, steps = taps
    first_rows, row_counts, corners = windows
    h, w, oh, ow, kh, sh, top, dh, used, pitch, strip = sizes
    for plane in range(first, stop):
        x0, y0 = plane * h * w, plane * oh * ow
        known = end = 0  # the rows whose winners are known
        for v0 in range(0, oh, strip):
            v1 = min(oh, v0 + strip)
            begin = max(0, v0 * sh - top)
            kept = max(0, end - begin) * pitch
            move_down(best, (begin - known) * pitch, 0, kept)
            move_down(winners, (begin - known) * pitch, 0, kept)
            r = max(begin, end)
            known, end = begin, min(h, (v1 - 1) * sh - top + (kh - 1) * dh + 1)
            # The strip after the next, which is on its way meanwhile.
            length = strip * sh * w
            ahead = x0 + end * w + length
            fetch(x, ahead, min(length, x.size - ahead))
            rows = end - r
            split_rows(x, x0 + r * w, w, rows, lines, starts, pitch, used)
            line_max(
                lines, offsets, steps, steps.size, first_taps, rows * pitch, best, winners, kept
            )
            for v in range(v0, v1):
                r = first_rows[v]
                window_max(
                    best, winners, (r - known) * pitch, dh * pitch, row_counts[v], r * w, dh * w,
                    corners, y, switches, y0 + v * ow, ow,
                )  # fmt: skip


@njit(parallel=True, cache=True)
def _max_pool(
    x, y, switches, reals, ints, starts, offsets, steps, first_rows, row_counts, corners, sizes,
    planes, group,
):  # fmt: skip
    phases = starts.size
    real, integer = reals.shape[1] // (phases + 3), ints.shape[1] // (phases + 3)
    for task in prange((planes + group - 1) // group):
        lines, numbers = reals[get_thread_id()], ints[get_thread_id()]
        scratch = (
            lines, lines[phases * real :], numbers[(phases + 1) * integer :],
            numbers[(phases + 2) * integer :],
        )  # fmt: skip
        taps, windows = (starts, offsets, steps), (first_rows, row_counts, corners)
        first, stop = chunk_bounds(task, group, planes)
        _pool_planes(x, y, switches, first, stop, scratch, taps, windows, sizes)


@lru_cache
def _max_pool_plan(plane_shape, output_shape, kernel_size, stride, padding, dilation, itemsize):
    """(bytes of a slot, first taps) and then what `_max_pool` takes from `starts` to `sizes`."""
    (h, w), (oh, ow), (kh, kw), (sh, sw) = plane_shape, output_shape, kernel_size, stride
    lanes = VECTOR_BYTES // itemsize
    reach = [(k - 1) * d for k, d in zip(kernel_size, dilation, strict=True)]
    pitch = ow + reach[1] // sw
    overlap = max(0, reach[0] + 1 - sh)
    strip = min(oh, max(1, overlap // sh, _STRIP // (sh * pitch)))
    rows = min(h, (strip - 1) * sh + reach[0] + 1)
    size = -(-rows * pitch // lanes) * lanes + lanes
    slot = (size + reach[1] // sw + lanes) * itemsize
    slot += (_APART - slot) % (2 * _APART)
    phase = slot // itemsize
    starts, offsets = (
        columns % sw * phase + columns // sw
        for columns in (np.arange(sw) + padding[2], np.arange(kw) * dilation[1])
    )
    steps = np.arange(kw, dtype=np.int32) * dilation[1]
    corners = np.arange(ow + lanes, dtype=np.int32) * sw - padding[2]
    lead = np.arange(size) % pitch * sw - padding[2]
    first_tap = np.where(lead < 0, -(lead // dilation[1]) * dilation[1], 0)
    row = np.arange(oh) * sh - padding[0]
    first_row = np.where(row < 0, row % dilation[0], row)
    row_count = (np.minimum(row + reach[0], h - 1) - first_row) // dilation[0] + 1
    used = min(w, pitch * sw - padding[2])
    sizes = h, w, oh, ow, kh, sh, padding[0], dilation[0], used, pitch, strip
    return (
        slot, first_tap.astype(np.int32), starts, offsets, steps, first_row, row_count, corners,
        sizes,
    )  # fmt: skip


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
    slot, first_taps, *plan = _max_pool_plan(
        x.shape[2:], y_shape[2:], kernel_size, stride, padding, dilation, x.itemsize
    )
    memory = workspace("pool", (num_threads(), (stride[1] + 3) * slot), np.uint8)
    reals, ints = memory.view(x.dtype), memory.view(np.int32)
    reals[:, : stride[1] * slot // x.itemsize].fill(-np.inf)
    start = (stride[1] + 2) * slot // ints.itemsize
    ints[:, start : start + first_taps.size] = first_taps
    flat = (array.reshape(-1) for array in arrays)
    planes, area = len(arrays[0]), x.shape[2] * x.shape[3]
    _max_pool(*flat, reals, ints, *plan, planes, group_size(planes, area))
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
