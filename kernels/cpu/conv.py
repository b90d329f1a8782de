"""Convolution by im2col and matrix products, a bounded block of columns at a time.

The definition and the algebra stand in kernels.reference.conv. What is added here:

* the column matrix is never whole in memory: a **block** is a few images, or a band of output rows
  of one large image, chosen so that its columns stay in the cache;
* im2col and col2im run on all cores, each core on its own rows of the matrix or its own planes of
  the image, so that one image keeps every core busy too; the products between them belong to BLAS,
  which threads them itself (never inside a parallel loop);
* a 1x1 convolution of stride 1 has its columns in the image already: nothing is copied;
* with few channels in a group (first layers, depthwise) a matrix product would be too thin to pay
  for its columns, and `kernels.cpu.conv_direct` multiplies the images where they are.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from kernels.cpu.conv_direct import conv2d_direct, input_grad_direct, is_thin, weight_grad_direct
from kernels.cpu.tasks import split
from kernels.cpu.workspace import workspace
from kernels.geometry import (
    check_conv2d,
    check_conv2d_input_grad,
    check_conv2d_weight_grad,
    check_conv_transpose2d,
    check_shape,
    conv_output_size,
)

BLOCK_BYTES = 2 << 20


class Block(NamedTuple):
    """Images n0:n1 and their output rows v0:v1, computed at once."""

    n0: int
    n1: int
    v0: int
    v1: int


def _blocks(n, oh, ow, rows, itemsize):
    """Cut the output into blocks whose columns (of `rows` entries each) fit BLOCK_BYTES."""
    outputs = max(1, BLOCK_BYTES // (rows * itemsize))
    images = outputs // (oh * ow)
    if images:
        for n0 in range(0, n, images):
            yield Block(n0, min(n0 + images, n), 0, oh)
        return
    band = max(1, outputs // ow)
    for image in range(n):
        for v0 in range(0, oh, band):
            yield Block(image, image + 1, v0, min(v0 + band, oh))


@njit(inline="always")
def _inside(tap, stride, padding, extent, start, stop):
    """The outputs in start:stop whose pixel, output * stride + tap - padding, is in the image."""
    first = max(start, -((tap - padding) // stride))
    last = min(stop, (extent - 1 + padding - tap) // stride + 1)
    return first, max(first, last)


@njit(parallel=True, cache=True)
def _fill_columns(x, cols, kernel_size, stride, padding, dilation, v0):
    """cols (C, kh, kw, N, V, OW) from x (N, C, H, W): the output rows from v0 on."""
    (kh, kw), (sh, sw), (dh, dw) = kernel_size, stride, dilation
    n, channels, h, w = x.shape
    rows, ow = cols.shape[4:]
    for task in prange(channels * kh * kw * n):
        line, image = split(task, n)
        c, tap = divmod(line, kh * kw)
        i, j = divmod(tap, kw)
        plane = x[image, c]
        out = cols[c, i, j, image]
        u_first, u_last = _inside(j * dw, sw, padding[2], w, 0, ow)
        v_first, v_last = _inside(i * dh, sh, padding[0], h, v0, v0 + rows)
        for v in range(v0, v0 + rows):
            line_out = out[v - v0]
            if v < v_first or v >= v_last:
                line_out[:] = 0
                continue
            line_in = plane[v * sh + i * dh - padding[0]]
            offset = j * dw - padding[2]
            line_out[:u_first] = 0
            if sw == 1:
                for u in range(u_first, u_last):
                    line_out[u] = line_in[u + offset]
            else:
                for u in range(u_first, u_last):
                    line_out[u] = line_in[u * sw + offset]
            line_out[u_last:] = 0


@njit(parallel=True, cache=True)
def _add_columns(cols, x, kernel_size, stride, padding, dilation, v0):
    """Add cols (C, kh, kw, N, V, OW) to the pixels of x (N, C, H, W) that they were taken from."""
    (kh, kw), (sh, sw), (dh, dw) = kernel_size, stride, dilation
    n, channels, h, w = x.shape
    rows, ow = cols.shape[4:]
    for task in prange(n * channels):
        image, c = split(task, channels)
        plane = x[image, c]
        for i in range(kh):
            v_first, v_last = _inside(i * dh, sh, padding[0], h, v0, v0 + rows)
            for j in range(kw):
                u_first, u_last = _inside(j * dw, sw, padding[2], w, 0, ow)
                offset = j * dw - padding[2]
                for v in range(v_first, v_last):
                    line_in = cols[c, i, j, image, v - v0]
                    line_out = plane[v * sh + i * dh - padding[0]]
                    if sw == 1:
                        for u in range(u_first, u_last):
                            line_out[u + offset] += line_in[u]
                    else:
                        for u in range(u_first, u_last):
                            line_out[u * sw + offset] += line_in[u]


@njit(parallel=True, cache=True)
def _to_channel_rows(y, matrix):
    """matrix (O, N, P) from y (N, O, P)."""
    n, channels, _ = y.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        matrix[c, image] = y[image, c]


@njit(parallel=True, cache=True)
def _from_channel_rows(matrix, y):
    """y (N, O, P) from matrix (O, N, P)."""
    n, channels, _ = y.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        y[image, c] = matrix[c, image]


def im2col(x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)):
    """See kernels.reference.im2col."""
    n, c, h, w = x.shape
    oh, ow = conv_output_size(h, w, kernel_size, stride, padding, dilation)
    cols = np.empty((c, *kernel_size, n, oh, ow), x.dtype)
    _fill_columns(np.ascontiguousarray(x), cols, kernel_size, stride, padding, dilation, 0)
    return cols.reshape(-1, n * oh * ow)


def col2im(cols, x_shape, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)):
    """See kernels.reference.col2im."""
    n, c, h, w = x_shape
    oh, ow = conv_output_size(h, w, kernel_size, stride, padding, dilation)
    check_shape("cols", cols.shape, (c * kernel_size[0] * kernel_size[1], n * oh * ow))
    cols = np.ascontiguousarray(cols).reshape(c, *kernel_size, n, oh, ow)
    x = np.zeros(x_shape, cols.dtype)
    _add_columns(cols, x, kernel_size, stride, padding, dilation, 0)
    return x


class _Blocked:
    """What the three products share: the blocks, their columns, and groups as a stack axis."""

    def __init__(self, x_shape, y_shape, kernel_size, stride, padding, dilation, groups, dtype):
        self.geometry = (kernel_size, stride, padding, dilation)
        self.channels = x_shape[1]
        self.outputs, self.oh, self.ow = y_shape[1:]
        self.groups = groups
        self.rows = self.channels * kernel_size[0] * kernel_size[1]
        self.pointwise = self.geometry == ((1, 1), (1, 1), (0, 0, 0, 0), dilation)
        self.blocks = list(_blocks(y_shape[0], self.oh, self.ow, self.rows, dtype.itemsize))
        self.dtype = dtype

    def width(self, block):
        return (block.n1 - block.n0) * (block.v1 - block.v0) * self.ow

    def weight(self, weight):
        """(O, C/G, kh, kw) as the diagonal blocks (G, O/G, rows/G)."""
        return weight.reshape(self.groups, self.outputs // self.groups, self.rows // self.groups)

    def empty_columns(self, block):
        shape = (
            self.channels, *self.geometry[0], block.n1 - block.n0, block.v1 - block.v0, self.ow
        )  # fmt: skip
        return workspace("columns", shape, self.dtype)

    def stacked(self, matrix, block):
        """(G m, ...) as a stack (G, m, columns), a view."""
        return matrix.reshape(self.groups, -1, self.width(block))

    def columns(self, x, block):
        """The columns of a block as a stack (G, rows/G, width)."""
        if self.pointwise and block.n1 - block.n0 == 1:
            return self.stacked(x[block.n0, :, block.v0 : block.v1], block)
        cols = self.empty_columns(block)
        _fill_columns(x[block.n0 : block.n1], cols, *self.geometry, block.v0)
        return self.stacked(cols, block)

    def channel_rows(self, y, block):
        """The block of y (N, O, OH, OW) as a stack (G, O/G, width): a view for one image."""
        part = y[block.n0 : block.n1, :, block.v0 : block.v1]
        if len(part) == 1:
            return self.stacked(part[0], block)
        matrix = workspace("rows", (self.outputs, len(part), self.oh * self.ow), self.dtype)
        _to_channel_rows(part.reshape(len(part), self.outputs, -1), matrix)
        return self.stacked(matrix, block)


def conv2d(
    x, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d."""
    y_shape = check_conv2d(x, weight, bias, stride, padding, dilation, groups)
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    y = np.empty(y_shape, x.dtype)
    if is_thin(weight, groups):
        conv2d_direct(x, weight, y, stride, padding, dilation, groups)
        return _add_bias(y, bias)
    plan = _Blocked(
        x.shape, y_shape, weight.shape[2:], stride, padding, dilation, groups, x.dtype
    )
    filters = plan.weight(weight)
    for block in plan.blocks:
        cols = plan.columns(x, block)
        out = y[block.n0 : block.n1, :, block.v0 : block.v1]
        if len(out) == 1:
            np.matmul(filters, cols, out=plan.stacked(out[0], block))
        else:
            matrix = workspace("rows", (plan.outputs, len(out), plan.oh * plan.ow), x.dtype)
            np.matmul(filters, cols, out=plan.stacked(matrix, block))
            _from_channel_rows(matrix, out.reshape(len(out), plan.outputs, -1))
    return _add_bias(y, bias)


def conv2d_input_grad(
    dy, weight, x_shape, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d_input_grad."""
    check_conv2d_input_grad(dy, weight, x_shape, stride, padding, dilation, groups)
    dy, weight = np.ascontiguousarray(dy), np.ascontiguousarray(weight)
    dx = np.zeros(x_shape, dy.dtype)
    if is_thin(weight, groups):
        input_grad_direct(dy, weight, dx, stride, padding, dilation, groups)
        return dx
    plan = _Blocked(
        x_shape, dy.shape, weight.shape[2:], stride, padding, dilation, groups, dy.dtype
    )
    filters = plan.weight(weight).swapaxes(1, 2)
    for block in plan.blocks:
        rows = plan.channel_rows(dy, block)
        if plan.pointwise and block.n1 - block.n0 == 1:
            out = plan.stacked(dx[block.n0, :, block.v0 : block.v1], block)
            np.matmul(filters, rows, out=out)
            continue
        cols = plan.empty_columns(block)
        np.matmul(filters, rows, out=plan.stacked(cols, block))
        _add_columns(cols, dx[block.n0 : block.n1], *plan.geometry, block.v0)
    return dx


def conv2d_weight_grad(
    dy, x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d_weight_grad."""
    weight_shape = check_conv2d_weight_grad(
        dy, x, kernel_size, stride, padding, dilation, groups
    )
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    dw = np.zeros(weight_shape, dy.dtype)
    if is_thin(dw, groups):
        weight_grad_direct(dy, x, dw, stride, padding, dilation, groups)
        return dw
    plan = _Blocked(x.shape, dy.shape, kernel_size, stride, padding, dilation, groups, dy.dtype)
    total = plan.weight(dw)
    part = workspace("weight_part", total.shape, dy.dtype)
    for block in plan.blocks:
        cols = plan.columns(x, block)
        np.matmul(plan.channel_rows(dy, block), cols.swapaxes(1, 2), out=part)
        total += part
    return dw


def conv_transpose2d(
    x,
    weight,
    bias=None,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    output_padding=(0, 0),
    dilation=(1, 1),
    groups=1,
):
    """See kernels.reference.conv_transpose2d."""
    y_shape = check_conv_transpose2d(
        x, weight, bias, stride, padding, output_padding, dilation, groups
    )
    return _add_bias(conv2d_input_grad(x, weight, y_shape, stride, padding, dilation, groups), bias)


def _add_bias(y, bias):
    if bias is not None:
        _add_to_planes(y.reshape(*y.shape[:2], -1), np.ascontiguousarray(bias))
    return y


@njit(parallel=True, cache=True)
def _add_to_planes(y, bias):
    n, channels, size = y.shape
    for task in prange(n * channels):
        image, c = split(task, channels)
        for p in range(size):
            y[image, c, p] += bias[c]
