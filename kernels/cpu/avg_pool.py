"""Average pooling on all cores; the definitions stand in kernels.reference.pool.

A task is whole planes (image, channel). Their windows are sums of rows first, which are contiguous,
and then of columns; backward hands the shares out to columns first and then to rows. Sums are in
the arrays' own dtype, in parts, so that large windows keep their digits.
"""

from functools import lru_cache

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import VECTOR_BYTES
from kernels.cpu.lines import move_down
from kernels.cpu.mean_windows import line_spread, quotients, row_sums, run_total, window_means
from kernels.cpu.streams import fetch, past_caches, stream
from kernels.cpu.tasks import chunk_bounds, group_size
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.geometry import check_shape, pool_output_size
from kernels.reference.pool import check_avg_pool2d_backward, check_images, window_counts

# Elements of a plane that are summed in its own dtype; their sums are added in float64.
_RUN = 1 << 10
# Elements of the sums of a strip: so few that reading, computing and writing take turns often.
_STRIP = 400


@njit(cache=True)
def _pool_planes(x, y, first, stop, sums, rows, columns, sizes):
    """The planes from `first` to `stop`; `sums` is zero between the rows' pixels."""
    h, w, oh, ow, kh, kw, sh, sw, top, left, pitch, strip = sizes
    used = min(w, pitch - left)
    for plane in range(first, stop):
        x0, y0 = plane * h * w, plane * oh * ow
        for v0 in range(0, oh, strip):
            v1 = min(oh, v0 + strip)
            # The strip after the next, which is on its way meanwhile.
            length = strip * sh * w
            ahead = x0 + (v1 * sh - top) * w + length
            fetch(x, ahead, min(length, x.size - ahead))
            for v in range(v0, v1):
                r = max(0, v * sh - top)
                count = min(h, v * sh - top + kh) - r
                row_sums(x, x0 + r * w, w, count, sums, (v - v0) * pitch + left, used)
            for v in range(v0, v1):
                line = (v - v0) * pitch
                window_means(sums, line, sw, kw, rows[v], columns, y, y0 + v * ow, ow)


@njit(parallel=True, cache=True)
def _avg_pool(x, y, sums, rows, columns, sizes, planes, group):
    for task in prange((planes + group - 1) // group):
        first, stop = chunk_bounds(task, group, planes)
        _pool_planes(x, y, first, stop, sums[get_thread_id()], rows, columns, sizes)


@njit(cache=True)
def _spread_planes(dy, dx, first, stop, scratch, rows, columns, windows, sizes, past):
    """The planes from `first` to `stop`; `past` the caches or not.

    `shares` is zero beside the rows' shares.
    """
    shares, sums, landing = scratch
    first_windows, window_counts = windows
    h, w, oh, ow, kh, kw, sh, sw, top, left, pitch, strip = sizes
    before = (kw - 1) // sw
    wide = before + ow + before
    for plane in range(first, stop):
        x0, y0 = plane * h * w, plane * oh * ow
        known = r = 0  # the first window of the sums, and the first row to come
        for v0 in range(0, oh, strip):
            v1 = min(oh, v0 + strip)
            kept = max(0, v0 - first_windows[r])
            move_down(sums, (v0 - kept - known) * pitch, 0, kept * pitch)
            known = v0 - kept
            for v in range(v0, v1):
                at = (v - v0) * wide + before
                quotients(dy, y0 + v * ow, rows[v], columns, shares, at, ow)
            for v in range(v0, v1):
                start, line = (v - v0) * wide + before, (v - known) * pitch
                line_spread(shares, start, sw, kw, sums, line, ow + before)
                for c in range((ow + before) * sw, pitch):
                    sums[line + c] = 0
            end = h if v1 == oh else max(0, v1 * sh - top)
            begin = x0 + r * w
            target, base = (landing, 0) if past else (dx, begin)
            for q in range(r, end):
                source = (first_windows[q] - known) * pitch + left
                row_sums(sums, source, pitch, window_counts[q], target, base + (q - r) * w, w)
            if past:
                stream(dx, begin, landing, 0, (end - r) * w)
            r = end


@njit(parallel=True, cache=True)
def _avg_pool_backward(
    dy, dx, shares, sums, landing, rows, columns, first_windows, window_counts, sizes, past, planes,
    group,
):  # fmt: skip
    for task in prange((planes + group - 1) // group):
        thread = get_thread_id()
        scratch = shares[thread], sums[thread], landing[thread]
        windows = first_windows, window_counts
        first, stop = chunk_bounds(task, group, planes)
        _spread_planes(dy, dx, first, stop, scratch, rows, columns, windows, sizes, past)


@lru_cache
def _counts(x_shape, y_shape, kernel_size, stride, padding, count_include_pad, dtype):
    """The factors of the counts; whole vectors may be read of those of columns."""
    rows, columns = window_counts(
        x_shape, y_shape, kernel_size, stride, padding, count_include_pad
    )
    columns = np.append(columns, np.ones(VECTOR_BYTES // dtype.itemsize))
    return rows.astype(dtype), columns.astype(dtype)


@njit(parallel=True, cache=True)
def _plane_means(x, y, size):
    for plane in prange(y.size):
        total = 0.0
        for start in range(0, size, _RUN):
            total += run_total(x, plane * size + start, min(_RUN, size - start))
        y[plane] = total / size


@njit(parallel=True, cache=True)
def _spread(values, x):
    planes, size = x.shape
    for plane in prange(planes):
        for p in range(size):
            x[plane, p] = values[plane]


@lru_cache
def _row_windows(height, windows, size, stride, before):
    """For each row of an image: the first window that has it, and how many have it."""
    row = np.arange(height) + before
    first = np.maximum(0, (row - size) // stride + 1)
    return first, np.maximum(0, np.minimum(windows, row // stride + 1) - first)


def _slack(stride, array):
    """Elements that vectors may reach beyond the end of a line."""
    return (VECTOR_BYTES // array.itemsize + 1) * stride[1]


def _flat(array):
    return np.ascontiguousarray(array).reshape(-1)


def avg_pool2d(
    x, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d."""
    check_images("x", x)
    n, c, h, w = x.shape
    size = pool_output_size(h, w, kernel_size, stride, padding, (1, 1), ceil_mode)
    if kernel_size == (h, w) and not any(padding):
        return global_avg_pool2d(x)
    y = empty((n, c, *size), x.dtype)
    settings = kernel_size, stride, padding
    counts = _counts(x.shape, y.shape, *settings, count_include_pad, x.dtype)
    pitch = (size[1] - 1) * stride[1] + kernel_size[1]
    strip = min(size[0], max(1, _STRIP // pitch))
    sums = workspace("pool", (num_threads(), strip * pitch + _slack(stride, x)), x.dtype)
    sums.fill(0)
    sizes = h, w, *size, *kernel_size, *stride, *padding[::2], pitch, strip
    _avg_pool(_flat(x), _flat(y), sums, *counts, sizes, n * c, group_size(n * c, h * w))
    return y


def avg_pool2d_backward(
    dy, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d_backward."""
    check_avg_pool2d_backward(dy, x_shape, kernel_size, stride, padding, ceil_mode)
    if kernel_size == tuple(x_shape[2:]) and not any(padding):
        return global_avg_pool2d_backward(dy, x_shape)
    dx = empty(x_shape, dy.dtype)
    (n, c, h, w), (oh, ow) = x_shape, dy.shape[2:]
    (kh, kw), (sh, sw), threads = kernel_size, stride, num_threads()
    settings = kernel_size, stride, padding
    counts = _counts(tuple(x_shape), dy.shape, *settings, count_include_pad, dy.dtype)
    before = (kw - 1) // sw
    pitch = max((ow + before) * sw, padding[2] + w)
    strip = min(oh, max(1, _STRIP // pitch))
    slack = _slack(stride, dy)
    shares = workspace("shares", (threads, strip * (ow + 2 * before) + slack), dy.dtype)
    shares.fill(0)
    lines = strip + (kh - 1) // sh + 1
    sums = workspace("pool", (threads, lines * pitch + slack), dy.dtype)
    landing = workspace("landing", (threads, (strip * sh + kh) * w + slack), dy.dtype)
    sizes = h, w, oh, ow, kh, kw, sh, sw, *padding[::2], pitch, strip
    windows = _row_windows(h, oh, kh, sh, padding[0])
    _avg_pool_backward(
        _flat(dy), _flat(dx), shares, sums, landing, *counts, *windows, sizes,
        past_caches(dy, dx), n * c, group_size(n * c, h * w),
    )  # fmt: skip
    return dx


def global_avg_pool2d(x):
    """See kernels.reference.global_avg_pool2d."""
    check_images("x", x)
    n, c, h, w = x.shape
    y = empty((n, c, 1, 1), x.dtype)
    _plane_means(_flat(x), y.reshape(-1), h * w)
    return y


def global_avg_pool2d_backward(dy, x_shape):
    """See kernels.reference.global_avg_pool2d_backward."""
    check_images("dy", dy)
    n, c, h, w = x_shape
    check_shape("dy", dy.shape, (n, c, 1, 1))
    dx = empty(x_shape, dy.dtype)
    _spread((dy / dy.dtype.type(h * w)).reshape(-1), dx.reshape(n * c, h * w))
    return dx
