"""Average pooling on all cores; the definitions stand in kernels.reference.pool.

A task is whole planes (image, channel). Windows are summed vector by vector, straight from the
image; backward, each vector of pixels gathers its shares. Tall windows that overlap much are taken
along rows first, then along columns. Sums are in the arrays' own dtype, in parts, so that large
windows keep their digits.
"""

from functools import lru_cache

import numpy as np
from numba import njit, prange

from kernels.cpu.emitter import VECTOR_BYTES
from kernels.cpu.lines import is_tall, row_windows
from kernels.cpu.mean_windows import window_means, window_shares
from kernels.cpu.planes import flat
from kernels.cpu.reduce import total_of
from kernels.cpu.streams import fetch_ahead
from kernels.cpu.tasks import chunk_bounds, group_size
from kernels.cpu.workspace import empty
from kernels.geometry import check_shape, pool_output_size
from kernels.reference.pool import check_avg_pool2d_backward, check_images, window_counts


@njit(parallel=True, cache=True)
def _avg_pool(x, y, rows, columns, sizes, planes, group):
    h, w, oh, ow, kh, kw, sh, sw, top, left = sizes
    for task in prange((planes + group - 1) // group):
        first, stop = chunk_bounds(task, group, planes)
        for plane in range(first, stop):
            x0, y0 = plane * h * w, plane * oh * ow
            for v in range(oh):
                r = max(0, v * sh - top)
                count = min(h, v * sh - top + kh) - r
                begin = x0 + r * w
                fetch_ahead(x, begin, sh * w)
                window_means(
                    x, begin, w, count, left, sw, kw, rows[v], columns, y, y0 + v * ow, ow
                )


@njit(parallel=True, cache=True)
def _avg_pool_backward(
    dy, dx, rows, columns, first_windows, window_counts, sizes, planes, group
):  # fmt: skip
    h, w, oh, ow, kw, sw, left = sizes
    for task in prange((planes + group - 1) // group):
        first, stop = chunk_bounds(task, group, planes)
        for plane in range(first, stop):
            x0, y0 = plane * h * w, plane * oh * ow
            for r in range(h):
                v = first_windows[r]
                window_shares(
                    dy, y0 + v * ow, ow, window_counts[r], left, sw, kw, rows, v, columns, dx,
                    x0 + r * w, w,
                )  # fmt: skip


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
        y[plane] = total_of(x, np.int64(plane) * size, size) / size


@njit(parallel=True, cache=True)
def _spread(values, x):
    planes, size = x.shape
    for plane in prange(planes):
        for p in range(size):
            x[plane, p] = values[plane]


def avg_pool2d(
    x, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d."""
    check_images("x", x)
    n, c, h, w = x.shape
    size = pool_output_size(h, w, kernel_size, stride, padding, (1, 1), ceil_mode)
    if kernel_size == (h, w) and not any(padding):
        return global_avg_pool2d(x)
    if is_tall(kernel_size, stride):
        (kh, kw), (sh, sw), modes = kernel_size, stride, (ceil_mode, count_include_pad)
        along = avg_pool2d(x, (1, kw), (1, sw), (0, 0, *padding[2:]), *modes)
        return avg_pool2d(along, (kh, 1), (sh, 1), (*padding[:2], 0, 0), *modes)
    y = empty((n, c, *size), x.dtype)
    settings = kernel_size, stride, padding
    counts = _counts(x.shape, y.shape, *settings, count_include_pad, x.dtype)
    sizes = h, w, *size, *kernel_size, *stride, *padding[::2]
    _avg_pool(flat(x), flat(y), *counts, sizes, n * c, group_size(n * c, h * w))
    return y


def avg_pool2d_backward(
    dy, x_shape, kernel_size, stride, padding=(0, 0, 0, 0), ceil_mode=False, count_include_pad=True
):
    """See kernels.reference.avg_pool2d_backward."""
    check_avg_pool2d_backward(dy, x_shape, kernel_size, stride, padding, ceil_mode)
    if kernel_size == tuple(x_shape[2:]) and not any(padding):
        return global_avg_pool2d_backward(dy, x_shape)
    if is_tall(kernel_size, stride):
        (kh, kw), (sh, sw), modes = kernel_size, stride, (ceil_mode, count_include_pad)
        along_shape = (*x_shape[:3], dy.shape[3])
        along = avg_pool2d_backward(dy, along_shape, (kh, 1), (sh, 1), (*padding[:2], 0, 0), *modes)
        return avg_pool2d_backward(along, x_shape, (1, kw), (1, sw), (0, 0, *padding[2:]), *modes)
    dx = empty(x_shape, dy.dtype)
    (n, c, h, w), (oh, ow) = x_shape, dy.shape[2:]
    rows, columns = _counts(
        tuple(x_shape), dy.shape, kernel_size, stride, padding, count_include_pad, dy.dtype
    )
    sizes = h, w, oh, ow, kernel_size[1], stride[1], padding[2]
    windows = row_windows(h, oh, kernel_size[0], stride[0], padding[0])
    factors, group = (1 / rows, 1 / columns), group_size(n * c, h * w)
    _avg_pool_backward(flat(dy), flat(dx), *factors, *windows, sizes, n * c, group)
    return dx


def global_avg_pool2d(x):
    """See kernels.reference.global_avg_pool2d."""
    check_images("x", x)
    n, c, h, w = x.shape
    y = empty((n, c, 1, 1), x.dtype)
    _plane_means(flat(x), y.reshape(-1), h * w)
    return y


def global_avg_pool2d_backward(dy, x_shape):
    """See kernels.reference.global_avg_pool2d_backward."""
    check_images("dy", dy)
    n, c, h, w = x_shape
    check_shape("dy", dy.shape, (n, c, 1, 1))
    dx = empty(x_shape, dy.dtype)
    _spread((dy / dy.dtype.type(h * w)).reshape(-1), dx.reshape(n * c, h * w))
    return dx
