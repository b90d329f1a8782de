"""Local response normalisation: a channel is damped by the activity of its neighbours.

With the window of channel i reaching `size // 2` channels before and `(size - 1) // 2` after it
(PyTorch's; ONNX swaps the two, which differ for an even size), clipped at the first and the last:

    s_i = k + alpha sum_{j in window(i)} x_j^2            (the **scale**)
    y_i = x_i s_i^-beta

x_i enters y_i itself and, through s_j, all y_j whose window holds i, so that

    dx_i = dy_i s_i^-beta - 2 alpha beta x_i sum_{j : i in window(j)} dy_j x_j s_j^(-beta - 1)

where {j : i in window(j)} is the window mirrored: `(size - 1) // 2` before, `size // 2` after.

Source: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural
networks" (2012), section 3.3, with k = 2, size = 5, alpha = 1e-4, beta = 0.75. Caffe, PyTorch and
ONNX divide alpha by the size (`size_normalized`), so that the paper's is 5e-4 there.
"""

import operator

import numpy as np

from kernels.geometry import check_dtypes, check_shape


def check_lrn(size, **arrays):
    """Check the arguments of an `lrn` or `lrn_backward`: arrays (N, C, H, W) of one shape."""
    check_dtypes(**arrays)
    shape = arrays["x"].shape
    if len(shape) != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {shape}")
    for name, array in arrays.items():
        check_shape(name, array.shape, shape)
    if operator.index(size) < 1:
        raise ValueError(f"size must be at least 1, got {size}")


def _window_sum(x, before, after):
    """The sum of channels i - before ... i + after, for every channel i of x (N, C, H, W)."""
    channels = x.shape[1]
    total = np.zeros_like(x)
    for shift in range(-min(before, channels), min(after, channels) + 1):
        here = slice(max(0, -shift), channels - max(0, shift))
        there = slice(max(0, shift), channels - max(0, -shift))
        total[:, here] += x[:, there]
    return total


def lrn(x, size, alpha, beta, k, size_normalized=False):
    """(y, scale), both of the shape (N, C, H, W) and dtype of x.

    Raises TypeError for other dtypes than float32 and float64, ValueError for another rank or a
    size below 1.
    """
    check_lrn(size, x=x)
    alpha = float(alpha) / size if size_normalized else float(alpha)
    scale = float(k) + alpha * _window_sum(x * x, size // 2, (size - 1) // 2)
    return x * scale ** -float(beta), scale


def lrn_backward(dy, x, scale, size, alpha, beta, k, size_normalized=False):
    """dx from dy, x and the scale that `lrn` returned, all (N, C, H, W). Raises as `lrn`.

    k has no part in it beyond the scale, and stands here only for the settings to be the same.
    """
    check_lrn(size, x=x, dy=dy, scale=scale)
    alpha = float(alpha) / size if size_normalized else float(alpha)
    beta = float(beta)
    through = _window_sum(dy * x * scale ** (-beta - 1), (size - 1) // 2, size // 2)
    return dy * scale**-beta - (2 * alpha * beta) * x * through
