"""Convolution on all cores: which way it goes depends on its shapes.

The definition and the algebra stand in kernels.reference.conv; the ways, each the fastest where it
is taken, as measured:

* a kernel as large as the image is a plain product: kernels.cpu.matmul;
* many small images, of whose pixels the padding leaves many taps of the gradient by the input
  nothing to do: kernels.cpu.conv_images;
* small kernels, larger ones at larger strides, with many channels, in float32:
  kernels.cpu.winograd, winograd_weight and winograd_strided (kernels.cpu.winograd_choice);
* results of one or two channels a group, depthwise among them: kernels.cpu.conv_direct;
* 1x1 kernels: kernels.cpu.conv_pointwise;
* small images, and outputs that fill vectors: kernels.cpu.conv_gathered;
* few outputs at stride 1, and rows that fill vectors: kernels.cpu.conv_rows;
* all else: kernels.cpu.conv_tiles, and for the gradient by the weight kernels.cpu.conv_pixels.

None of them makes the column matrix; `im2col` and `col2im` are here for those who want to see it.
How the work is cut depends on the shapes alone, never on the number of threads, and so do the
results, to the last bit.
"""

import math
from functools import lru_cache

import numpy as np
from numba import njit, prange

from kernels.cpu.conv_direct import (
    conv2d_direct,
    input_grad_direct,
    is_direct,
    weight_grad_direct,
)
from kernels.cpu.conv_gathered import conv2d_gathered, input_grad_gathered, is_gathered
from kernels.cpu.conv_images import input_grad_images, is_images
from kernels.cpu.conv_pixels import weight_grad_pixels
from kernels.cpu.conv_pointwise import conv2d_pointwise, input_grad_pointwise, is_pointwise
from kernels.cpu.conv_rows import conv2d_rows, input_grad_rows, is_rows
from kernels.cpu.conv_tiles import conv2d_tiles, input_grad_tiles
from kernels.cpu.epilogue import affine, finish, plain
from kernels.cpu.matmul import matmul
from kernels.cpu.winograd_choice import is_winograd, winograd_outputs
from kernels.cpu.winograd_strided import (
    conv2d_winograd_strided,
    input_grad_winograd_strided,
    weight_grad_winograd_strided,
)
from kernels.cpu.workspace import empty
from kernels.dispatch import winograd_size
from kernels.geometry import (
    check_conv2d,
    check_conv2d_affine,
    check_conv2d_input_grad,
    check_conv2d_weight_grad,
    check_conv_transpose2d,
    check_shape,
    conv_output_size,
)


def _flat(kernel_size, stride, padding, dilation):
    """The settings as eight ints, since parallel loops take no nested tuples."""
    return (*kernel_size, *stride, padding[0], padding[2], *dilation)


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


def _rows(x):
    """(N, ...) as the matrix (N, all the rest)."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def choose(
    result, y_shape, x_shape, weight_shape, stride, padding, dilation, groups, dtype
) -> str:
    """The way to the result "y", "dx" or "dw": "product", "images", "winograd", "direct",
    "pointwise", "gathered", "rows" or "tiles".
    """
    shapes = y_shape, x_shape, weight_shape
    return _choice(winograd_size(), result, *shapes, stride, padding, dilation, groups, dtype)


@lru_cache(maxsize=1024)
def _choice(
    winograd, result, y_shape, x_shape, weight_shape, stride, padding, dilation, groups, dtype
):
    """As `choose`, where `winograd` is what `kernels.dispatch` allows at the moment."""
    # Each output sees its whole image: the convolution is x W^T, one row an image.
    if x_shape[1:] == weight_shape[1:] and padding == (0, 0, 0, 0):
        return "product"
    shapes = x_shape, y_shape, weight_shape
    settings = stride, padding, dilation, groups
    if result == "dx" and is_images(*shapes, *settings, dtype):
        return "images"
    if is_winograd(result, y_shape, x_shape, weight_shape, *settings, dtype):
        return "winograd"
    if is_direct(result, weight_shape, stride, groups):
        return "direct"
    if result == "dw":
        return "tiles"
    if is_pointwise(weight_shape, padding):
        return "pointwise"
    if is_gathered(result, *shapes, *settings, dtype):
        return "gathered"
    return "rows" if is_rows(result, *shapes, stride, groups, dtype) else "tiles"


def conv2d(x, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """See kernels.reference.conv2d."""
    y_shape = check_conv2d(x, weight, bias, stride, padding, dilation, groups)
    epilogue = plain(y_shape[1], x.dtype, bias)
    return _convolve(x, weight, y_shape, stride, padding, dilation, groups, epilogue)


def conv2d_affine(
    x,
    weight,
    scale,
    shift,
    others=None,
    rectify=False,
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups=1,
):
    """See kernels.reference.conv2d_affine."""
    settings = stride, padding, dilation, groups
    y_shape = check_conv2d_affine(x, weight, scale, shift, others, *settings)
    return _convolve(x, weight, y_shape, *settings, affine(scale, shift, others, rectify))


def _convolve(x, weight, y_shape, stride, padding, dilation, groups, epilogue):
    """The convolution, whichever way is the fastest, and its epilogue."""
    settings = stride, padding, dilation, groups
    way = choose("y", y_shape, x.shape, weight.shape, *settings, x.dtype)
    if way == "product":
        y = matmul(_rows(x), _rows(weight).T).reshape(y_shape)
        finish(y, epilogue)
        return y
    y = empty(y_shape, x.dtype)
    if not y.size:
        return y
    if not x.size:
        y[...] = 0
        finish(y, epilogue)
    elif way == "winograd":
        size = winograd_outputs(weight.shape[2], stride[0])
        conv2d_winograd_strided(x, weight, y, stride[0], padding, size, groups, epilogue)
    elif way == "direct":
        conv2d_direct(x, weight, y, padding, dilation, groups, epilogue)
    elif way == "pointwise":
        conv2d_pointwise(x, weight, y, stride, groups, epilogue)
    elif way == "gathered":
        conv2d_gathered(x, weight, y, stride, padding, dilation, groups, epilogue)
    elif way == "rows":
        conv2d_rows(x, weight, y, padding, dilation, groups, epilogue)
    else:
        conv2d_tiles(x, weight, y, stride, padding, dilation, groups, epilogue)
    return y


def conv2d_input_grad(
    dy, weight, x_shape, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d_input_grad."""
    settings = stride, padding, dilation, groups
    check_conv2d_input_grad(dy, weight, x_shape, *settings)
    way = choose("dx", dy.shape, x_shape, weight.shape, *settings, dy.dtype)
    if way == "product":
        return matmul(_rows(dy), _rows(weight)).reshape(x_shape)
    dx = empty(x_shape, dy.dtype)
    if not dx.size:
        return dx
    if not dy.size:
        dx[...] = 0
    elif way == "images":
        input_grad_images(dy, weight, dx, padding, dilation, groups)
    elif way == "winograd":
        size = winograd_outputs(weight.shape[2], stride[0])
        input_grad_winograd_strided(dy, weight, dx, stride[0], padding, size, groups)
    elif way == "direct":
        input_grad_direct(dy, weight, dx, padding, dilation, groups)
    elif way == "pointwise":
        input_grad_pointwise(dy, weight, dx, stride, groups)
    elif way == "gathered":
        input_grad_gathered(dy, weight, dx, stride, padding, dilation, groups)
    elif way == "rows":
        input_grad_rows(dy, weight, dx, padding, dilation, groups)
    else:
        input_grad_tiles(dy, weight, dx, stride, padding, dilation, groups)
    return dx


def conv2d_weight_grad(
    dy, x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """See kernels.reference.conv2d_weight_grad."""
    settings = stride, padding, dilation, groups
    weight_shape = check_conv2d_weight_grad(dy, x, kernel_size, *settings)
    way = choose("dw", dy.shape, x.shape, weight_shape, *settings, dy.dtype)
    if way == "product":
        return matmul(_rows(dy).T, _rows(x)).reshape(weight_shape)
    if not dy.size or not x.size:
        return np.zeros(weight_shape, dy.dtype)
    if way == "winograd":
        size = winograd_outputs(kernel_size[0], stride[0])
        return weight_grad_winograd_strided(
            dy, x, weight_shape, stride[0], padding, size, groups
        )
    if way == "direct":
        return weight_grad_direct(dy, x, weight_shape, padding, dilation, groups)
    return weight_grad_pixels(dy, x, weight_shape, stride, padding, dilation, groups)


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
