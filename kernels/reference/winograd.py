"""Winograd's minimal filtering applied to convolution: fewer multiplications for 3x3 kernels.

F(m, 3) computes m neighbouring outputs of a filter g of 3 taps from m + 2 inputs d with m + 2
multiplications instead of 3 m:

    y = A^T [(G g) * (B^T d)].

Applied along rows and along columns it gives the m x m outputs of a 3x3 filter from a tile of
(m + 2) x (m + 2) pixels with (m + 2)^2 multiplications instead of 9 m^2: 2.25 times fewer for
m = 2, four times fewer for m = 4,

    Y = A^T [(G g G^T) * (B^T d B)] A.

The tiles overlap by two pixels. A convolution sums over channels; A^T and A being linear, the sum
may stand inside of the brackets, and for each position k of the (m + 2)^2 it is a matrix product
over all tiles t of all images:

    U[k, o, c] = (G g_oc G^T)_k    V[k, c, t] = (B^T d_ct B)_k
    M[k] = U[k] V[k]               Y_ot = A^T M_ot A.

In the paper this is F(m x m, 3 x 3), its sections 4.1 (the products), 4.2 and 4.3 (the matrices for
m = 2 and 4). G's fractions round, and B^T and A^T add large numbers of different signs, so m = 4
loses about a decimal digit against plain convolution; see kernels.cpu.winograd for figures.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016,
arXiv:1509.09308; Winograd, "Arithmetic complexity of computations" (1980).
"""

from typing import NamedTuple

import numpy as np

from kernels.geometry import check_conv2d, check_shape


class Matrices(NamedTuple):
    """B^T (m + 2, m + 2), G (m + 2, 3) and A^T (m, m + 2), float64."""

    pixels: np.ndarray
    filters: np.ndarray
    outputs: np.ndarray


MATRICES = {
    2: Matrices(
        pixels=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1.0]]),
        filters=np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
        outputs=np.array([[1, 1, 1, 0], [0, 1, -1, -1.0]]),
    ),
    4: Matrices(
        pixels=np.array([
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1.0],
        ]),
        filters=np.array([
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]),
        outputs=np.array([
            [1, 1, 1, 1, 1, 0],
            [0, 1, -1, 2, -2, 0],
            [0, 1, 1, 4, 4, 0],
            [0, 1, -1, 8, -8, 1.0],
        ]),
    ),
}  # fmt: skip


def on_both_axes(matrix, tiles):
    """matrix tile matrix^T for every tile (..., h, w), in the dtype of the tiles."""
    matrix = matrix.astype(tiles.dtype)
    return matrix @ tiles @ matrix.T


def tiles(x, size, padding, down, across):
    """The overlapping tiles (N, C, down, across, size + 2, size + 2) of the padded x."""
    n, c, h, w = x.shape
    top, _, left, _ = padding
    padded = np.zeros((n, c, size * down + 2, size * across + 2), x.dtype)
    inside = padded[:, :, top : top + h, left : left + w]
    inside[:] = x[:, :, : inside.shape[2], : inside.shape[3]]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size + 2, size + 2), (2, 3))
    return windows[:, :, ::size, ::size]


def conv2d_winograd(x, weight, bias=None, padding=(0, 0, 0, 0), groups=1, size=4):
    """conv2d of stride 1 and dilation 1 by F(size x size, 3 x 3), `size` 2 or 4.

    x (N, C, H, W), weight (O, C/groups, 3, 3), bias (O,) -> (N, O, OH, OW). Tiles that reach over
    the edge of the result are computed whole and cut. Raises as `conv2d`, and ValueError where the
    kernel is not 3x3 or there are no such matrices.
    """
    if size not in MATRICES:
        raise ValueError(f"size must be one of {tuple(MATRICES)}, got {size!r}")
    n, o, oh, ow = check_conv2d(x, weight, bias, (1, 1), padding, (1, 1), groups)
    check_shape("weight", weight.shape, (o, weight.shape[1], 3, 3))
    matrices = MATRICES[size]
    down, across = -(-oh // size), -(-ow // size)
    u = on_both_axes(matrices.filters, weight)
    v = on_both_axes(matrices.pixels, tiles(x, size, padding, down, across))
    u = u.reshape(groups, o // groups, *u.shape[1:])
    v = v.reshape(n, groups, v.shape[1] // groups, *v.shape[2:])
    m = np.einsum("gocij,ngcyxij->ngoyxij", u, v, optimize=True)
    y = on_both_axes(matrices.outputs, m)
    y = y.transpose(0, 1, 2, 3, 5, 4, 6).reshape(n, o, down * size, across * size)
    y = np.ascontiguousarray(y[:, :, :oh, :ow])
    if bias is not None:
        y += bias[:, None, None]
    return y
