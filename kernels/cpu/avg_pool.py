"""Average pooling on all cores; the definitions stand in kernels.reference.pool.

A task is one plane (image, channel). Its windows are sums of rows first, which are contiguous, and
then of columns; backward hands the shares out to columns first and then to rows. Sums are in the
arrays' own dtype, in parts, so that large windows keep their digits.
"""

from functools import lru_cache

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import VECTOR_BYTES
from kernels.cpu.threads import num_threads
from kernels.cpu.windows import line_spread, row_sums, run_total, window_means
from kernels.cpu.workspace import empty, workspace
from kernels.geometry import check_shape, pool_output_size
from kernels.reference.pool import check_avg_pool2d_backward, check_images, window_counts

# Elements of a plane that are summed in its own dtype; their sums are added in float64.
_RUN = 1 << 10


@njit(parallel=True, cache=True)
def _avg_pool(x, y, lines, rows, columns, shapes, windows):
    (h, w), (oh, ow) = shapes
    (kh, kw), (sh, sw), (top, left), pitch = windows
    used = min(w, pitch - left)
    for plane in prange(x.size // (h * w)):
        sums = lines[get_thread_id()]
        for v in range(oh):
            r = max(0, v * sh - top)
            count = min(h, v * sh - top + kh) - r
            row_sums(x, (plane * h + r) * w, w, count, sums, v * pitch + left, used)
        for v in range(oh):
            at = (plane * oh + v) * ow
            window_means(sums, v * pitch, sw, kw, rows[v], columns, y, at, ow)


@njit(parallel=True, cache=True, error_model="numpy")
def _avg_pool_backward(dy, dx, shares, lines, rows, columns, shapes, windows):
    (h, w), (oh, ow) = shapes
    (kh, kw), (sh, sw), (top, left), pitch = windows
    before = (kw - 1) // sw
    wide = before + ow + before
    for plane in prange(dx.size // (h * w)):
        thread = get_thread_id()
        share, sums = shares[thread], lines[thread]
        for v in range(oh):
            start, at = (plane * oh + v) * ow, v * wide + before
            for u in range(ow):
                share[at + u] = dy[start + u] / (rows[v] * columns[u])
        for v in range(oh):
            line_spread(share, v * wide + before, sw, kw, sums, v * pitch, ow + before)
            for c in range((ow + before) * sw, pitch):
                sums[v * pitch + c] = 0
        for r in range(h):
            first = max(0, (r + top - kh + sh) // sh)
            count = min(oh, (r + top) // sh + 1) - first
            at = (plane * h + r) * w
            row_sums(sums, first * pitch + left, pitch, count, dx, at, w)


@lru_cache
def _avg_pool_plan(x_shape, y_shape, kernel_size, stride, padding, count_include_pad, dtype):
    """(elements of the lines, rows, columns, shapes, windows): the last four of either kernel."""
    oh, ow = y_shape[2:]
    lanes = VECTOR_BYTES // dtype.itemsize
    rows, columns = window_counts(
        x_shape, y_shape, kernel_size, stride, padding, count_include_pad
    )
    columns = np.append(columns, np.ones(lanes))  # whole vectors are read
    reach = (ow - 1) * stride[1] + kernel_size[1]
    pitch = max(reach, padding[2] + x_shape[3])
    windows = kernel_size, stride, padding[::2], pitch
    return (
        (oh * pitch + (lanes + 1) * stride[1], rows.astype(dtype), columns.astype(dtype),
        (x_shape[2:], (oh, ow)), windows)
    )


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


def _flat(array):
    return np.ascontiguousarray(array).reshape(-1)


def avg_pool2d(
    x, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d."""
    check_images("x", x)
    n, c, h, w = x.shape
    size = pool_output_size(h, w, kernel_size, stride, padding, (1, 1), ceil_mode)
    y = empty((n, c, *size), x.dtype)
    length, *plan = _avg_pool_plan(
        x.shape, y.shape, kernel_size, stride, padding, count_include_pad, x.dtype
    )
    lines = workspace("pool", (num_threads(), length), x.dtype)
    lines.fill(0)
    _avg_pool(_flat(x), _flat(y), lines, *plan)
    return y


def avg_pool2d_backward(
    dy, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d_backward."""
    check_avg_pool2d_backward(dy, x_shape, kernel_size, stride, padding, ceil_mode)
    dx = empty(x_shape, dy.dtype)
    length, *plan = _avg_pool_plan(
        x_shape, dy.shape, kernel_size, stride, padding, count_include_pad, dy.dtype
    )
    threads, (oh, ow) = num_threads(), dy.shape[2:]
    lines = workspace("pool", (threads, length), dy.dtype)
    share_size = oh * (ow + 2 * ((kernel_size[1] - 1) // stride[1])) + VECTOR_BYTES // dy.itemsize
    shares = workspace("shares", (threads, share_size), dy.dtype)
    shares.fill(0)
    _avg_pool_backward(_flat(dy), _flat(dx), shares, lines, *plan)
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
