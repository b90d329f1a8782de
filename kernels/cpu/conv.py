"""Convolution by im2col and matrix products, block by block, each core on blocks of its own.

The definition and the algebra stand in kernels.reference.conv. What is added here:

* the column matrix is never whole in memory: a **block** is a few images, or a band of output rows
  of one large image, so few that its columns stay in a core's cache;
* a task takes its block from pixels to result: im2col, product, bias (or product, col2im), in
  scratch memory of its thread. No core waits for another between the steps, and one large image
  still keeps all cores busy;
* a kernel as large as the image is a plain product, left to `kernels.cpu.matmul`; 3x3 kernels at
  stride 1 are left to `kernels.cpu.winograd` where that pays; small images at stride 1 to
  `kernels.cpu.conv_flat`, and groups of few channels, whose products are too thin to pay for
  columns, to `kernels.cpu.conv_direct`;
* the products call BLAS on one thread (see `kernels.cpu.threads`): the cores are already taken.

How the work is cut depends on the shapes alone, never on the number of threads, and so do the
results, to the last bit.
"""

import math

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.conv_direct import (
    conv2d_direct,
    input_grad_direct,
    is_direct,
    weight_grad_direct,
)
from kernels.cpu.conv_flat import conv2d_flat, input_grad_flat, is_flat, weight_grad_flat
from kernels.cpu.matmul import matmul
from kernels.cpu.tasks import split
from kernels.cpu.threads import num_threads
from kernels.cpu.winograd import conv2d_winograd, input_grad_winograd, is_winograd
from kernels.cpu.workspace import empty, workspace
from kernels.dispatch import winograd_size
from kernels.geometry import (
    check_conv2d,
    check_conv2d_input_grad,
    check_conv2d_weight_grad,
    check_conv_transpose2d,
    check_shape,
    conv_output_size,
)

# Columns of a block: as many as fill this much cache, but enough to make the product efficient,
# and few enough that there are blocks for several cores.
BLOCK_BYTES = 256 << 10
MIN_COLUMNS = 256
MIN_BLOCKS = 8
# Partial weight gradients, one a slice of the blocks, may take this much memory in all.
SLICE_BYTES = 1 << 20


def _flat(kernel_size, stride, padding, dilation):
    """The settings as eight ints, since parallel loops take no nested tuples."""
    return (*kernel_size, *stride, padding[0], padding[2], *dilation)


def _block_size(n, rows, output_size, itemsize):
    """(images, output rows) of a block, for columns of `rows` entries."""
    oh, ow = output_size
    columns = max(BLOCK_BYTES // (rows * itemsize), MIN_COLUMNS)
    columns = min(columns, -(-n * oh * ow // MIN_BLOCKS))
    if columns >= oh * ow:
        return columns // (oh * ow), oh
    return 1, max(1, min(oh, columns // ow))


@njit(inline="always")
def _block(index, size, n, oh):
    """Block number `index`: (first image, last + 1, first output row, last + 1)."""
    images, rows = size
    image_group, band = split(index, (oh + rows - 1) // rows)
    n0, v0 = image_group * images, band * rows
    return n0, min(n, n0 + images), v0, min(oh, v0 + rows)


@njit(inline="always")
def _inside(tap, stride, padding, extent, start, stop):
    """The outputs in start:stop whose pixel, output * stride + tap - padding, is in the image."""
    first = min(stop, max(start, -((tap - padding) // stride)))
    last = min(stop, (extent - 1 + padding - tap) // stride + 1)
    return first, max(first, last)


@njit(cache=True)
def _fill_columns(x, cols, geometry, v0):
    """cols (C, kh, kw, N, V, OW) from x (N, C, H, W): the output rows from v0 on."""
    kh, kw, sh, sw, top, left, dh, dw = geometry
    n, channels, h, w = x.shape
    rows, ow = cols.shape[4:]
    for c in range(channels):
        for i in range(kh):
            v_first, v_last = _inside(i * dh, sh, top, h, v0, v0 + rows)
            for j in range(kw):
                u_first, u_last = _inside(j * dw, sw, left, w, 0, ow)
                offset = j * dw - left
                for image in range(n):
                    for v in range(v0, v0 + rows):
                        line = cols[c, i, j, image, v - v0]
                        if v < v_first or v >= v_last:
                            for u in range(ow):
                                line[u] = 0
                            continue
                        source = x[image, c, v * sh + i * dh - top]
                        for u in range(u_first):
                            line[u] = 0
                        if sw == 1:
                            inner = line[u_first:u_last]
                            segment = source[u_first + offset : u_last + offset]
                            for u in range(u_last - u_first):
                                inner[u] = segment[u]
                        else:
                            for u in range(u_first, u_last):
                                line[u] = source[u * sw + offset]
                        for u in range(u_last, ow):
                            line[u] = 0


@njit(cache=True)
def _add_columns(cols, x, geometry, v0):
    """Add cols (C, kh, kw, N, V, OW) to the pixels of x (N, C, H, W) that they were taken from."""
    kh, kw, sh, sw, top, left, dh, dw = geometry
    n, channels, h, w = x.shape
    rows, ow = cols.shape[4:]
    for image in range(n):
        for c in range(channels):
            for i in range(kh):
                v_first, v_last = _inside(i * dh, sh, top, h, v0, v0 + rows)
                for j in range(kw):
                    u_first, u_last = _inside(j * dw, sw, left, w, 0, ow)
                    offset = j * dw - left
                    for v in range(v_first, v_last):
                        line = cols[c, i, j, image, v - v0]
                        target = x[image, c, v * sh + i * dh - top]
                        if sw == 1:
                            inner = target[u_first + offset : u_last + offset]
                            segment = line[u_first:u_last]
                            for u in range(u_last - u_first):
                                inner[u] += segment[u]
                        else:
                            for u in range(u_first, u_last):
                                target[u * sw + offset] += line[u]


@njit(parallel=True, cache=True)
def _im2col(x, cols, geometry):
    for c in prange(x.shape[1]):
        _fill_columns(x[:, c : c + 1], cols[c : c + 1], geometry, 0)


@njit(parallel=True, cache=True)
def _col2im(cols, x, geometry):
    for c in prange(x.shape[1]):
        _add_columns(cols[c : c + 1], x[:, c : c + 1], geometry, 0)


@njit(parallel=True, cache=True)
def _conv2d(x, weight, bias, y, scratch, size, geometry):
    """y (N, G, O/G, OH, OW) from x (N, C, H, W) and weight (G, O/G, K)."""
    n, groups, outputs, oh, ow = y.shape
    kh, kw = geometry[0], geometry[1]
    channels = x.shape[1] // groups
    depth = weight.shape[2]
    blocks = -(-n // size[0]) * -(-oh // size[1])
    for task in prange(blocks * groups):
        block, g = split(task, groups)
        n0, n1, v0, v1 = _block(block, size, n, oh)
        width = (n1 - n0) * (v1 - v0) * ow
        memory = scratch[get_thread_id()]
        cols = memory[: depth * width]
        out = memory[depth * width : (depth + outputs) * width].reshape(outputs, width)
        _fill_columns(
            x[n0:n1, g * channels : (g + 1) * channels],
            cols.reshape(channels, kh, kw, n1 - n0, v1 - v0, ow), geometry, v0,
        )  # fmt: skip
        np.dot(weight[g], cols.reshape(depth, width), out)
        lines = out.reshape(outputs, n1 - n0, v1 - v0, ow)
        for image in range(n1 - n0):
            for o in range(outputs):
                shift = bias[g * outputs + o]
                for v in range(v1 - v0):
                    for u in range(ow):
                        y[n0 + image, g, o, v0 + v, u] = lines[o, image, v, u] + shift


@njit(inline="always")
def _gather_rows(dy, rows, n0, n1, v0, v1):
    """rows (O, N V OW), the block of dy (N, O, OH, OW) with channels first."""
    outputs, ow = dy.shape[1], dy.shape[3]
    lines = rows.reshape(outputs, n1 - n0, v1 - v0, ow)
    for o in range(outputs):
        for image in range(n0, n1):
            for v in range(v0, v1):
                for u in range(ow):
                    lines[o, image - n0, v - v0, u] = dy[image, o, v, u]


@njit(parallel=True, cache=True)
def _input_grad(dy, weight, dx, scratch, size, parts, geometry):
    """dx (N, C, H, W) += col2im(W^T dy), from dy (N, G, O/G, OH, OW) and weight (G, K, O/G).

    A task owns some planes: a few images, and of each group one of `parts` parts of its channels.
    """
    n, groups, outputs, oh, ow = dy.shape
    kh, kw = geometry[0], geometry[1]
    group_channels = dx.shape[1] // groups
    image_groups = -(-n // size[0])
    bands = -(-oh // size[1])
    for task in prange(image_groups * groups * parts):
        rest, part = split(task, parts)
        image_group, g = split(rest, groups)
        c0, c1 = part * group_channels // parts, (part + 1) * group_channels // parts
        depth = (c1 - c0) * kh * kw
        memory = scratch[get_thread_id()]
        for band in range(bands):
            n0, n1, v0, v1 = _block(image_group * bands + band, size, n, oh)
            width = (n1 - n0) * (v1 - v0) * ow
            cols = memory[: depth * width]
            rows = memory[depth * width : (depth + outputs) * width].reshape(outputs, width)
            _gather_rows(dy[:, g], rows, n0, n1, v0, v1)
            filters = weight[g, c0 * kh * kw : c1 * kh * kw]
            np.dot(filters, rows, cols.reshape(depth, width))
            first = g * group_channels
            _add_columns(
                cols.reshape(c1 - c0, kh, kw, n1 - n0, v1 - v0, ow),
                dx[n0:n1, first + c0 : first + c1], geometry, v0,
            )  # fmt: skip


@njit(parallel=True, cache=True)
def _weight_grad(dy, x, slices, scratch, size, geometry):
    """slices (S, G, O/G, K): dy cols^T, summed over the blocks of each slice."""
    n, groups, outputs, oh, ow = dy.shape
    kh, kw = geometry[0], geometry[1]
    channels = x.shape[1] // groups
    count, depth = slices.shape[0], slices.shape[3]
    blocks = -(-n // size[0]) * -(-oh // size[1])
    for task in prange(count * groups):
        piece, g = split(task, groups)
        total = slices[piece, g]
        total[:] = 0
        memory = scratch[get_thread_id()]
        product = memory[: outputs * depth].reshape(outputs, depth)
        memory = memory[outputs * depth :]
        for block in range(piece * blocks // count, (piece + 1) * blocks // count):
            n0, n1, v0, v1 = _block(block, size, n, oh)
            width = (n1 - n0) * (v1 - v0) * ow
            cols = memory[: depth * width]
            rows = memory[depth * width : (depth + outputs) * width].reshape(outputs, width)
            _gather_rows(dy[:, g], rows, n0, n1, v0, v1)
            _fill_columns(
                x[n0:n1, g * channels : (g + 1) * channels],
                cols.reshape(channels, kh, kw, n1 - n0, v1 - v0, ow), geometry, v0,
            )  # fmt: skip
            np.dot(rows, cols.reshape(depth, width).T, product)
            for o in range(outputs):
                for k in range(depth):
                    total[o, k] += product[o, k]


def im2col(x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)):
    """See kernels.reference.im2col."""
    n, c, h, w = x.shape
    size = conv_output_size(h, w, kernel_size, stride, padding, dilation)
    cols = np.empty((c, *kernel_size, n, *size), x.dtype)
    _im2col(np.ascontiguousarray(x), cols, _flat(kernel_size, stride, padding, dilation))
    return cols.reshape(c * kernel_size[0] * kernel_size[1], n * size[0] * size[1])


def col2im(cols, x_shape, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)):
    """See kernels.reference.col2im."""
    n, c, h, w = x_shape
    size = conv_output_size(h, w, kernel_size, stride, padding, dilation)
    check_shape("cols", cols.shape, (c * kernel_size[0] * kernel_size[1], n * size[0] * size[1]))
    cols = np.ascontiguousarray(cols).reshape(c, *kernel_size, n, *size)
    x = np.zeros(x_shape, cols.dtype)
    _col2im(cols, x, _flat(kernel_size, stride, padding, dilation))
    return x


def _scratch(name, size, dtype):
    """`size` elements of scratch memory for each thread."""
    return workspace(name, (num_threads(), size), dtype)


def _grouped(y, groups):
    """(N, O, OH, OW) as (N, G, O/G, OH, OW)."""
    n, o, oh, ow = y.shape
    return y.reshape(n, groups, o // groups, oh, ow)


def _is_product(x_shape, weight_shape, padding):
    """True where each output sees its whole image: the convolution is x W^T, one row an image."""
    return x_shape[1:] == weight_shape[1:] and padding == (0, 0, 0, 0)


def _rows(x):
    """(N, ...) as the matrix (N, all the rest)."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def conv2d(
    x, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d."""
    y_shape = check_conv2d(x, weight, bias, stride, padding, dilation, groups)
    n, o, oh, ow = y_shape
    if _is_product(x.shape, weight.shape, padding):
        y = matmul(_rows(x), _rows(weight).T)
        if bias is not None:
            y += bias
        return y.reshape(y_shape)
    y = empty(y_shape, x.dtype)
    bias = np.zeros(o, x.dtype) if bias is None else np.ascontiguousarray(bias)
    if is_winograd(y_shape, weight.shape, stride, dilation, groups, x.dtype):
        conv2d_winograd(x, weight, bias, y, padding, winograd_size())
        return y
    if is_flat(x.shape, weight.shape, stride, padding, dilation, groups, x.itemsize):
        conv2d_flat(x, weight, bias, y, padding, dilation, groups)
        return y
    if is_direct(weight.shape, stride, groups):
        conv2d_direct(x, weight, bias, y, padding, dilation, groups)
        return y
    filters = np.ascontiguousarray(weight).reshape(groups, o // groups, weight[0].size)
    depth = filters.shape[2]
    size = _block_size(n, depth, (oh, ow), x.itemsize)
    scratch = _scratch("conv", (depth + o // groups) * size[0] * size[1] * ow, x.dtype)
    geometry = _flat(weight.shape[2:], stride, padding, dilation)
    x = np.ascontiguousarray(x)
    _conv2d(x, filters, bias, _grouped(y, groups), scratch, size, geometry)
    return y


def conv2d_input_grad(
    dy, weight, x_shape, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d_input_grad."""
    check_conv2d_input_grad(dy, weight, x_shape, stride, padding, dilation, groups)
    n, o, oh, ow = dy.shape
    if _is_product(x_shape, weight.shape, padding):
        return matmul(_rows(dy), _rows(weight)).reshape(x_shape)
    dx = empty(x_shape, dy.dtype)
    if is_winograd(x_shape, weight.shape, stride, dilation, groups, dy.dtype):
        input_grad_winograd(dy, weight, dx, padding, winograd_size())
        return dx
    if is_flat(x_shape, weight.shape, stride, padding, dilation, groups, dy.itemsize):
        input_grad_flat(dy, weight, dx, padding, dilation, groups)
        return dx
    if is_direct(weight.shape, stride, groups):
        input_grad_direct(dy, weight, dx, padding, dilation, groups)
        return dx
    dx[:] = 0
    filters = weight.reshape(groups, o // groups, weight[0].size)
    filters = np.ascontiguousarray(filters.swapaxes(1, 2))
    depth = filters.shape[1]
    size = _block_size(n, depth, (oh, ow), dy.itemsize)
    tasks = -(-n // size[0]) * groups
    parts = min(weight.shape[1], -(-MIN_BLOCKS // max(tasks, 1)))
    scratch = _scratch("conv", (depth + o // groups) * size[0] * size[1] * ow, dy.dtype)
    geometry = _flat(weight.shape[2:], stride, padding, dilation)
    dy = np.ascontiguousarray(dy)
    _input_grad(_grouped(dy, groups), filters, dx, scratch, size, parts, geometry)
    return dx


def conv2d_weight_grad(
    dy, x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d_weight_grad."""
    weight_shape = check_conv2d_weight_grad(
        dy, x, kernel_size, stride, padding, dilation, groups
    )
    if _is_product(x.shape, weight_shape, padding):
        return matmul(_rows(dy).T, _rows(x)).reshape(weight_shape)
    if is_flat(x.shape, weight_shape, stride, padding, dilation, groups, x.itemsize):
        return weight_grad_flat(dy, x, weight_shape, padding, dilation, groups)
    if is_direct(weight_shape, stride, groups):
        return weight_grad_direct(dy, x, weight_shape, padding, dilation, groups)
    n, o, oh, ow = dy.shape
    depth = weight_shape[1] * kernel_size[0] * kernel_size[1]
    size = _block_size(n, depth, (oh, ow), dy.itemsize)
    blocks = -(-n // size[0]) * -(-oh // size[1])
    count = min(blocks, max(4, min(16, SLICE_BYTES // (o * depth * dy.itemsize))))
    slices = workspace("slices", (count, groups, o // groups, depth), dy.dtype)
    columns = size[0] * size[1] * ow
    outputs = o // groups
    scratch = _scratch("conv", outputs * depth + (depth + outputs) * columns, dy.dtype)
    geometry = _flat(kernel_size, stride, padding, dilation)
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    _weight_grad(_grouped(dy, groups), x, slices, scratch, size, geometry)
    return slices.sum(axis=0).reshape(weight_shape)


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
    y = conv2d_input_grad(x, weight, y_shape, stride, padding, dilation, groups)
    if bias is not None:
        y += bias[:, None, None]
    return y
