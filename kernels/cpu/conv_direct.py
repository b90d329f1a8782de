"""Convolution without columns, for groups of few channels: first layers and depthwise ones.

With C/groups * kh * kw columns' rows against a handful of output channels, building the columns
costs more than the product. Here each core pads one image plane into a small scratch plane, after
which every kernel position (tap) is just an offset into it, and no bounds are tested:

    y[v, u] += w[tap] * padded[v * sh * pitch + u * sw + offset[tap]]

The innermost loop runs along an output row, contiguous in both operands for stride 1.
"""

import numpy as np
from numba import njit, prange

from kernels.cpu.tasks import split

# Sums may be reordered into vector lanes; NaN and infinity keep their meaning.
_SUM_FLAGS = {"reassoc", "nsz", "contract"}
# Weight gradients are summed over this many slices of the batch, whatever the thread count, so
# that the rounding does not depend on it.
_SLICES = 16


def is_thin(weight, groups: int) -> bool:
    """True where a group's matrix product is too thin for im2col to pay (measured on 2 cores)."""
    outputs, channels, *_ = weight.shape
    return channels <= 3 and (outputs // groups) * channels <= 16


@njit(inline="always")
def _pad_plane(plane, padded, top, left):
    """Copy plane (H, W) into padded at (top, left); the border of padded is left as it is."""
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            padded[row + top, column + left] = plane[row, column]


@njit(parallel=True, cache=True, fastmath=_SUM_FLAGS)
def conv2d_direct(x, weight, y, stride, padding, dilation, groups):
    """Write conv(x, weight) into y, all C-contiguous."""
    n, channels, h, w = x.shape
    outputs, group_channels, kh, kw = weight.shape
    oh, ow = y.shape[2:]
    group_outputs = outputs // groups
    for task in prange(n * groups):
        image, group = split(task, groups)
        padded = np.zeros((h + padding[0] + padding[1], w + padding[2] + padding[3]), x.dtype)
        for k in range(group_channels):
            _pad_plane(x[image, group * group_channels + k], padded, padding[0], padding[2])
            for o in range(group * group_outputs, (group + 1) * group_outputs):
                for v in range(oh):
                    out = y[image, o, v]
                    if k == 0:
                        for u in range(ow):
                            out[u] = 0
                    for i in range(kh):
                        line = padded[v * stride[0] + i * dilation[0]]
                        for j in range(kw):
                            tap = weight[o, k, i, j]
                            offset = j * dilation[1]
                            if stride[1] == 1:
                                for u in range(ow):
                                    out[u] += tap * line[u + offset]
                            else:
                                for u in range(ow):
                                    out[u] += tap * line[u * stride[1] + offset]


@njit(parallel=True, cache=True, fastmath=_SUM_FLAGS)
def input_grad_direct(dy, weight, dx, stride, padding, dilation, groups):
    """Write the gradient by the input into dx, all C-contiguous."""
    n, channels, h, w = dx.shape
    outputs, group_channels, kh, kw = weight.shape
    oh, ow = dy.shape[2:]
    group_outputs = outputs // groups
    for task in prange(n * channels):
        image, c = split(task, channels)
        group, k = divmod(c, group_channels)
        padded = np.zeros((h + padding[0] + padding[1], w + padding[2] + padding[3]), dy.dtype)
        for o in range(group * group_outputs, (group + 1) * group_outputs):
            for v in range(oh):
                line = dy[image, o, v]
                for i in range(kh):
                    out = padded[v * stride[0] + i * dilation[0]]
                    for j in range(kw):
                        tap = weight[o, k, i, j]
                        offset = j * dilation[1]
                        if stride[1] == 1:
                            for u in range(ow):
                                out[u + offset] += tap * line[u]
                        else:
                            for u in range(ow):
                                out[u * stride[1] + offset] += tap * line[u]
        for row in range(h):
            for column in range(w):
                dx[image, c, row, column] = padded[row + padding[0], column + padding[2]]


@njit(parallel=True, cache=True, fastmath=_SUM_FLAGS)
def _weight_grad_slices(dy, x, parts, stride, padding, dilation, groups):
    """parts (slices, groups, O/G, C/G, kh, kw): the gradient of every slice of the batch."""
    slices, _, group_outputs, group_channels, kh, kw = parts.shape
    n, channels, h, w = x.shape
    oh, ow = dy.shape[2:]
    for task in prange(slices * groups):
        piece, group = split(task, groups)
        part = parts[piece, group]
        padded = np.zeros((h + padding[0] + padding[1], w + padding[2] + padding[3]), x.dtype)
        for image in range(piece * n // slices, (piece + 1) * n // slices):
            for k in range(group_channels):
                _pad_plane(x[image, group * group_channels + k], padded, padding[0], padding[2])
                for o in range(group_outputs):
                    for i in range(kh):
                        for j in range(kw):
                            offset = j * dilation[1]
                            total = part[o, k, i, j]
                            for v in range(oh):
                                line = padded[v * stride[0] + i * dilation[0]]
                                grad = dy[image, group * group_outputs + o, v]
                                if stride[1] == 1:
                                    for u in range(ow):
                                        total += grad[u] * line[u + offset]
                                else:
                                    for u in range(ow):
                                        total += grad[u] * line[u * stride[1] + offset]
                            part[o, k, i, j] = total


def weight_grad_direct(dy, x, dw, stride, padding, dilation, groups):
    """Write the gradient by the weight into dw, all C-contiguous."""
    outputs, group_channels, kh, kw = dw.shape
    shape = (_SLICES, groups, outputs // groups, group_channels, kh, kw)
    parts = np.zeros(shape, dy.dtype)
    _weight_grad_slices(dy, x, parts, stride, padding, dilation, groups)
    np.sum(parts, axis=0, out=dw.reshape(shape[1:]))
