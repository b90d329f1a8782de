"""Convolution written as matrix products: the definition that the other backends are held to.

"Convolution" is cross-correlation, as everywhere in the field: with stride s, dilation d and
padding (top, left) before the image, and x read as zero outside of it,

    y[n, o, v, u] = b[o] + sum_{c, i, j} w[o, c, i, j] x[n, c, v s + i d - top, u s + j d - left]

**im2col** copies the pixels that each output needs into one column of a matrix,

    cols[(c, i, j), (n, v, u)] = x[n, c, v s + i d - top, u s + j d - left]   or 0,

so that the sum becomes a matrix product and the gradients follow from it by the chain rule:

    y = W cols,    dW = dy cols^T,    dcols = W^T dy,    dx = col2im(dcols),

where **col2im**, the transpose of im2col, adds every entry back to the pixel it was copied from.
A transposed convolution is the gradient by the input used as a forward pass: col2im(W^T x).

With **groups**, output channels of group g see only the input channels of group g: W is block
diagonal, and only its blocks are stored. The product runs block by block, on a group axis:

    W    = diag(W_1, ..., W_G)       W_g    (O/G, C/G kh kw)
    cols = stack(cols_1, ..., cols_G) cols_g (C/G kh kw, N OH OW)     y_g = W_g cols_g

Source: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
processing" (2006), section 3.1; Dumoulin and Visin, "A guide to convolution arithmetic for deep
learning" (2016).
"""

import numpy as np

from kernels.geometry import (
    check_conv2d,
    check_conv2d_affine,
    check_conv2d_input_grad,
    check_conv2d_weight_grad,
    check_conv_transpose2d,
    check_shape,
    conv_output_size,
)


def _taps(kernel_size, stride, dilation, output_size):
    """For every kernel position (i, j): the slices of the padded image that it multiplies."""
    (kh, kw), (sh, sw), (dh, dw), (oh, ow) = kernel_size, stride, dilation, output_size
    for i in range(kh):
        rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
        for j in range(kw):
            yield i, j, rows, slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)


def im2col(x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)):
    """The column matrix (C kh kw, N OH OW) of x (N, C, H, W), in x's dtype.

    Raises ValueError where the kernel does not fit into the padded image.
    """
    n, c, h, w = x.shape
    top, bottom, left, right = padding
    oh, ow = conv_output_size(h, w, kernel_size, stride, padding, dilation)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    cols = np.empty((c, *kernel_size, n, oh, ow), x.dtype)
    for i, j, rows, columns in _taps(kernel_size, stride, dilation, (oh, ow)):
        cols[:, i, j] = padded[:, :, rows, columns].swapaxes(0, 1)
    return cols.reshape(c * kernel_size[0] * kernel_size[1], n * oh * ow)


def col2im(cols, x_shape, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)):
    """The transpose of im2col: x (N, C, H, W) where each pixel is the sum of its copies in cols.

    Raises ValueError where cols is not (C kh kw, N OH OW).
    """
    n, c, h, w = x_shape
    top, bottom, left, right = padding
    oh, ow = conv_output_size(h, w, kernel_size, stride, padding, dilation)
    check_shape("cols", cols.shape, (c * kernel_size[0] * kernel_size[1], n * oh * ow))
    cols = cols.reshape(c, *kernel_size, n, oh, ow)
    padded = np.zeros((n, c, h + top + bottom, w + left + right), cols.dtype)
    for i, j, rows, columns in _taps(kernel_size, stride, dilation, (oh, ow)):
        padded[:, :, rows, columns] += cols[:, i, j].swapaxes(0, 1)
    return np.ascontiguousarray(padded[:, :, top : top + h, left : left + w])


def _blocks(matrix, groups):
    """(G m, n) as a stack (G, m, n): the operands of a product by a block-diagonal matrix."""
    return matrix.reshape(groups, matrix.shape[0] // groups, matrix.shape[1])


def _channel_rows(y):
    """(N, O, OH, OW) as the matrix (O, N OH OW), whose columns are those of im2col."""
    return y.swapaxes(0, 1).reshape(y.shape[1], y.shape[0] * y.shape[2] * y.shape[3])


def _weight_blocks(weight, groups):
    """(O, C/G, kh, kw) as the diagonal blocks (G, O/G, C/G kh kw)."""
    o, c, kh, kw = weight.shape
    return weight.reshape(groups, o // groups, c * kh * kw)


def conv2d(
    x, weight, bias=None, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """y = W cols + b: x (N, C, H, W), weight (O, C/groups, kh, kw), bias (O,) -> (N, O, OH, OW).

    One dtype, float32 or float64, for all. Raises TypeError for others, ValueError naming the
    argument whose shape does not fit.
    """
    n, o, oh, ow = check_conv2d(x, weight, bias, stride, padding, dilation, groups)
    cols = im2col(x, weight.shape[2:], stride, padding, dilation)
    y = _weight_blocks(weight, groups) @ _blocks(cols, groups)
    return _add_bias(np.ascontiguousarray(y.reshape(o, n, oh, ow).swapaxes(0, 1)), bias)


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
    """y = conv2d(x, weight) scale + shift + others, at least 0 if `rectify`; NaN stays NaN.

    scale (O,) or None for 1, shift (O,), others (N, O, OH, OW) or None. What follows a convolution
    in evaluation is of this form: batch normalisation by running statistics, what a shortcut
    brings, ReLU. The faster kernels do it to the sums before they store them. Raises as `conv2d`.
    """
    settings = stride, padding, dilation, groups
    check_conv2d_affine(x, weight, scale, shift, others, *settings)
    y = conv2d(x, weight, None, *settings)
    if scale is not None:
        y *= scale[:, None, None]
    y += shift[:, None, None]
    if others is not None:
        y += others
    return np.maximum(y, 0) if rectify else y


def conv2d_input_grad(
    dy, weight, x_shape, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """dx = col2im(W^T dy): dy (N, O, OH, OW), weight (O, C/groups, kh, kw) -> x_shape.

    Raises as `conv2d`.
    """
    check_conv2d_input_grad(dy, weight, x_shape, stride, padding, dilation, groups)
    blocks = _weight_blocks(weight, groups).swapaxes(1, 2)
    dcols = blocks @ _blocks(_channel_rows(dy), groups)
    dcols = dcols.reshape(groups * dcols.shape[1], dcols.shape[2])
    return col2im(dcols, x_shape, weight.shape[2:], stride, padding, dilation)


def conv2d_weight_grad(
    dy, x, kernel_size, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1
):
    """dW = dy cols^T: dy (N, O, OH, OW), x (N, C, H, W) -> (O, C/groups, kh, kw).

    Raises as `conv2d`.
    """
    weight_shape = check_conv2d_weight_grad(
        dy, x, kernel_size, stride, padding, dilation, groups
    )
    cols = im2col(x, kernel_size, stride, padding, dilation)
    dw = _blocks(_channel_rows(dy), groups) @ _blocks(cols, groups).swapaxes(1, 2)
    return dw.reshape(weight_shape)


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
    """y = col2im(W^T x) + b: x (N, C, H, W), weight (C, O/groups, kh, kw) -> (N, O, OH, OW).

    The weight is that of the convolution from y to x, of which this is the gradient by its input.
    Raises as `conv2d`.
    """
    y_shape = check_conv_transpose2d(
        x, weight, bias, stride, padding, output_padding, dilation, groups
    )
    return _add_bias(conv2d_input_grad(x, weight, y_shape, stride, padding, dilation, groups), bias)


def _add_bias(y, bias):
    if bias is not None:
        y += bias[:, None, None]
    return y
