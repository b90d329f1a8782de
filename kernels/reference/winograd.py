"""Winograd's minimal filtering applied to convolution: fewer multiplications for small kernels.

F(m, r) computes m neighbouring outputs of a filter g of r taps from a tile d of m + r - 1 inputs
with m + r - 1 multiplications instead of m r:

    y = A^T [(G g) * (B^T d)].

Applied along rows and along columns it gives the m x m outputs of an r x r filter from a tile of
(m + r - 1) x (m + r - 1) pixels with (m + r - 1)^2 multiplications instead of (m r)^2: for 3x3
filters 2.25 times fewer with m = 2 and four times fewer with m = 4, for 5x5 filters 2.8 times fewer
with m = 2,

    Y = A^T [(G g G^T) * (B^T d B)] A.

The tiles overlap by r - 1 pixels. A convolution sums over channels; A^T and A being linear, the sum
may stand inside of the brackets, and for each position k of a tile it is a matrix product over all
tiles t of all images:

    U[k, o, c] = (G g_oc G^T)_k    V[k, c, t] = (B^T d_ct B)_k
    M[k] = U[k] V[k]               Y_ot = A^T M_ot A.

In the paper this is F(m x m, r x r), its sections 4.1 (the products), 4.2 and 4.3 (the matrices for
r = 3 with m = 2 and 4). G's fractions round, and B^T and A^T add large numbers of different signs,
so tiles of six pixels lose about a decimal digit against plain convolution; figures are in
kernels.cpu.winograd.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016,
arXiv:1509.09308; Winograd, "Arithmetic complexity of computations" (1980).
"""

from typing import NamedTuple

import numpy as np

from kernels.geometry import check_conv2d, check_shape


class Matrices(NamedTuple):
    """B^T (t, t), G (t, r) and A^T (m, t) of F(m, r) on tiles of t = m + r - 1, float64."""

    pixels: np.ndarray
    filters: np.ndarray
    outputs: np.ndarray


# Of F(m, 3), by m.
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


# Where a tile's polynomials are evaluated, by the tile's length; infinity is the last point.
_POINTS = {4: (0, 1, -1), 6: (0, 1, -1, 2, -2)}


def minimal_filtering(size, taps) -> Matrices:
    """The matrices of F(size, taps), for tiles of size + taps - 1 = 4 or 6 pixels.

    B^T interpolates, which depends on the points alone. G and A^T evaluate: polynomials of the
    filter's degree, each value over the product of the distances to the other points, and of the
    result's. ValueError for other tiles, and where one output or one tap is left.
    """
    tile = size + taps - 1
    if tile not in _POINTS or min(size, taps) < 2:
        raise ValueError(
            "size must be 2 or more, of a tile of size + taps - 1 = 4 or 6 pixels, "
            f"with {taps} taps; got {size!r}"
        )
    known = MATRICES[tile - 2]
    at = np.array(_POINTS[tile], float)[:, None]
    filters, outputs = np.zeros((tile, taps)), np.zeros((tile, size))
    filters[:-1] = at ** np.arange(taps) * known.filters[:-1, :1]
    outputs[:-1] = at ** np.arange(size)
    filters[-1, -1], outputs[-1, -1] = known.filters[-1, -1], known.outputs[-1, -1]
    return Matrices(known.pixels, filters, outputs.T)


def on_both_axes(matrix, tiles):
    """matrix tile matrix^T for every tile (..., h, w), in the dtype of the tiles."""
    matrix = matrix.astype(tiles.dtype)
    return matrix @ tiles @ matrix.T


def tiles(x, size, padding, down, across, taps=3):
    """The tiles (N, C, down, across, t, t) of the padded x, t = size + taps - 1, that overlap."""
    n, c, h, w = x.shape
    top, _, left, _ = padding
    padded = np.zeros((n, c, size * down + taps - 1, size * across + taps - 1), x.dtype)
    inside = padded[:, :, top : top + h, left : left + w]
    inside[:] = x[:, :, : inside.shape[2], : inside.shape[3]]
    tile = (size + taps - 1, size + taps - 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, tile, (2, 3))
    return windows[:, :, ::size, ::size]


def conv2d_winograd(x, weight, bias=None, padding=(0, 0, 0, 0), groups=1, size=4):
    """conv2d of stride 1 and dilation 1 by F(size x size, r x r).

    x (N, C, H, W), weight (O, C/groups, r, r), bias (O,) -> (N, O, OH, OW). Tiles that reach over
    the edge of the result are computed whole and cut. Raises as `conv2d`, and ValueError where the
    kernel is not square or `minimal_filtering` has no such matrices.
    """
    n, o, oh, ow = check_conv2d(x, weight, bias, (1, 1), padding, (1, 1), groups)
    taps = weight.shape[2]
    check_shape("weight", weight.shape, (o, weight.shape[1], taps, taps))
    matrices = minimal_filtering(size, taps)
    down, across = -(-oh // size), -(-ow // size)
    u = on_both_axes(matrices.filters, weight)
    v = on_both_axes(matrices.pixels, tiles(x, size, padding, down, across, taps))
    u = u.reshape(groups, o // groups, *u.shape[1:])
    v = v.reshape(n, groups, v.shape[1] // groups, *v.shape[2:])
    m = np.einsum("gocij,ngcyxij->ngoyxij", u, v, optimize=True)
    y = on_both_axes(matrices.outputs, m)
    y = y.transpose(0, 1, 2, 3, 5, 4, 6).reshape(n, o, down * size, across * size)
    y = np.ascontiguousarray(y[:, :, :oh, :ow])
    if bias is not None:
        y += bias[:, None, None]
    return y
