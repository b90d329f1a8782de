"""Stride-1 convolution of small images: columns filled by stretches of the whole plane.

The planes of one image and group lie in scratch memory, padded, one row after the other at a pitch
P. In that flat memory the tap (c, i, j) of output (v, u) lies at v P + u plus an offset of its own,

    offset[c, i, j] = c HP P + i dh P + j dw,

so that row (c, i, j) of the column matrix is one stretch of memory from that offset on, copied or
added in one go. Rows of outputs are P apart then too; the P - OW columns between them are dropped.
A task is one image and group: fill the columns, which stay in the core's cache, and multiply.

The algebra is that of kernels.reference.conv.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.blas import gemm
from kernels.cpu.conv_direct import flat_offsets, grouped, pad_planes
from kernels.cpu.tasks import split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import workspace

_COLUMN_BYTES = 256 << 10
_SLICES = 16


def is_flat(x_shape, weight_shape, stride, padding, dilation, groups: int, itemsize: int) -> bool:
    """True where these kernels are the faster ones, as measured on two cores."""
    outputs, group_channels, kh, kw = weight_shape
    top, bottom, left, right = padding
    pitch = x_shape[3] + left + right
    oh = x_shape[2] + top + bottom - dilation[0] * (kh - 1)
    column_bytes = group_channels * kh * kw * oh * pitch * itemsize
    thick = group_channels > 1 and outputs // groups >= 4
    return stride == (1, 1) and thick and column_bytes <= _COLUMN_BYTES


@njit(inline="always")
def _fill_columns(flat, offsets, cols):
    for k in range(offsets.size):
        row = cols[k]
        source = flat[offsets[k] : offsets[k] + row.size]
        for p in range(row.size):
            row[p] = source[p]


@njit(parallel=True, cache=True)
def _conv(x, weight, bias, y, scratch, offsets, padding):
    """y (N, G, O/G, OH, OW) from x (N, G, C/G, H, W), weight (G, O/G, K), bias (G, O/G)."""
    n, groups, outputs, oh, ow = y.shape
    channels, h, w = x.shape[2:]
    top, bottom, left, right = padding
    height, pitch = h + top + bottom, w + left + right
    length = (oh - 1) * pitch + ow
    depth = offsets.size
    for task in prange(n * groups):
        image, g = split(task, groups)
        memory = scratch[get_thread_id()]
        flat, rest = memory[: channels * height * pitch], memory[channels * height * pitch :]
        cols, rest = rest[: depth * length].reshape(depth, length), rest[depth * length :]
        out = rest[: outputs * length].reshape(outputs, length)
        pad_planes(x[image, g], flat.reshape(channels, height, pitch), top, left)
        _fill_columns(flat, offsets, cols)
        gemm(weight[g], cols, out, False)
        for o in range(outputs):
            shift = bias[g, o]
            for v in range(oh):
                line = out[o, v * pitch : v * pitch + ow]
                target = y[image, g, o, v]
                for u in range(ow):
                    target[u] = line[u] + shift


@njit(parallel=True, cache=True)
def _input_grad(dy, weight, dx, scratch, offsets, padding):
    """dx (N, G, C/G, H, W) from dy (N, G, O/G, OH, OW) and weight (G, O/G, K)."""
    n, groups, outputs, oh, ow = dy.shape
    channels, h, w = dx.shape[2:]
    top, bottom, left, right = padding
    height, pitch = h + top + bottom, w + left + right
    length = (oh - 1) * pitch + ow
    depth = offsets.size
    for task in prange(n * groups):
        image, g = split(task, groups)
        memory = scratch[get_thread_id()]
        flat, rest = memory[: channels * height * pitch], memory[channels * height * pitch :]
        cols, rest = rest[: depth * length].reshape(depth, length), rest[depth * length :]
        rows = rest[: outputs * oh * pitch].reshape(outputs, oh, pitch)
        pad_planes(dy[image, g], rows, 0, 0)
        gemm(weight[g].T, rows.reshape(outputs, oh * pitch)[:, :length], cols, False)
        flat[:] = 0
        for k in range(depth):
            row = cols[k]
            target = flat[offsets[k] : offsets[k] + length]
            for p in range(length):
                target[p] += row[p]
        planes = flat.reshape(channels, height, pitch)
        for c in range(channels):
            for r in range(h):
                line = planes[c, top + r, left : left + w]
                target = dx[image, g, c, r]
                for u in range(w):
                    target[u] = line[u]


@njit(parallel=True, cache=True)
def _weight_grad(dy, x, slices, scratch, offsets, padding):
    """slices (S, G, K, O/G), each summed over its share of the images."""
    n, groups, outputs, oh, ow = dy.shape
    count = slices.shape[0]
    channels, h, w = x.shape[2:]
    top, bottom, left, right = padding
    height, pitch = h + top + bottom, w + left + right
    length = (oh - 1) * pitch + ow
    depth = offsets.size
    for task in prange(count * groups):
        piece, g = split(task, groups)
        memory = scratch[get_thread_id()]
        flat, rest = memory[: channels * height * pitch], memory[channels * height * pitch :]
        cols, rest = rest[: depth * length].reshape(depth, length), rest[depth * length :]
        grads = rest[: oh * pitch * outputs].reshape(oh, pitch, outputs)
        grads[:] = 0
        for image in range(piece * n // count, (piece + 1) * n // count):
            pad_planes(x[image, g], flat.reshape(channels, height, pitch), top, left)
            _fill_columns(flat, offsets, cols)
            for o in range(outputs):
                for v in range(oh):
                    for u in range(ow):
                        grads[v, u, o] = dy[image, g, o, v, u]
            turned = grads.reshape(oh * pitch, outputs)[:length]
            gemm(cols, turned, slices[piece, g], True)


def _plan(x_shape, weight_shape, y_shape, padding, dilation, groups, dtype):
    """(scratch, offsets): each thread's padded planes, columns and rows of a group."""
    outputs, group_channels, kh, kw = weight_shape
    top, bottom, left, right = padding
    pitch = x_shape[3] + left + right
    plane = (x_shape[2] + top + bottom) * pitch
    depth = group_channels * kh * kw
    size = group_channels * plane + (depth + outputs // groups) * y_shape[2] * pitch
    scratch = workspace("conv", (num_threads(), size), dtype)
    return scratch, flat_offsets(group_channels, (kh, kw), dilation, plane, pitch)


def _filters(weight, groups):
    return np.ascontiguousarray(weight).reshape(groups, len(weight) // groups, weight[0].size)


def conv2d_flat(x, weight, bias, y, padding, dilation, groups):
    """Write conv(x, weight) + bias of stride 1 into y, C-contiguous."""
    plan = _plan(x.shape, weight.shape, y.shape, padding, dilation, groups, x.dtype)
    bias = bias.reshape(groups, -1)
    _conv(
        grouped(x, groups), _filters(weight, groups), bias, grouped(y, groups), *plan, padding
    )


def input_grad_flat(dy, weight, dx, padding, dilation, groups):
    """Write the gradient by the input into dx, C-contiguous."""
    plan = _plan(dx.shape, weight.shape, dy.shape, padding, dilation, groups, dy.dtype)
    _input_grad(
        grouped(dy, groups), _filters(weight, groups), grouped(dx, groups), *plan, padding
    )


def weight_grad_flat(dy, x, weight_shape, padding, dilation, groups):
    """The gradient by the weight, of `weight_shape`."""
    plan = _plan(x.shape, weight_shape, dy.shape, padding, dilation, groups, dy.dtype)
    outputs, group_channels, kh, kw = weight_shape
    count = min(_SLICES, max(1, len(x)))
    slices = np.zeros((count, groups, group_channels * kh * kw, outputs // groups), dy.dtype)
    _weight_grad(grouped(dy, groups), grouped(x, groups), slices, *plan, padding)
    return np.ascontiguousarray(slices.sum(axis=0).swapaxes(1, 2)).reshape(weight_shape)
