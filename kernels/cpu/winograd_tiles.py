"""Winograd's transforms of blocks of tiles: the pieces of `kernels.cpu.winograd`.

The definition stands in kernels.reference.winograd. Tiles are counted through all images, row by
row; a stretch of them may begin and end within a row of tiles. `grid` holds the pixels of an output
tile's edge, the tiles down and across an image, and the padding at the top and on the left.

Vector code wants many equal things side by side. So `LANES` tiles of a channel are first laid out
as d[pixel of the tile, lane], in a buffer that stays in the L1 cache, and the transforms, written
out below, run over the lanes. The distances within the buffer being constants, the compiler sees
that its loads and stores do not overlap.
"""

import numpy as np
from numba import njit

# Tiles transformed side by side. Vectors of the widest machines are 16 float32; two of them halve
# the calls.
LANES = 32
# Multiply and add may become one instruction.
_FUSED = {"contract"}


@njit(inline="always")
def _rows_of_tiles(start, stop, across):
    """The rows of tiles, counted through all images, that the tiles start:stop lie in."""
    return start // across, (stop - 1) // across + 1


@njit(cache=True)
def _load_lines(x, channel, lines, start, stop, grid):
    """lines (rows of tiles, M + 2, M * across + 2): the padded pixels of the tiles start:stop."""
    size, down, across, top, left = grid
    h, w = x.shape[2:]
    first_row, end_row = _rows_of_tiles(start, stop, across)
    for row in range(first_row, end_row):
        image, v = row // down, row % down * size - top
        u = max(0, start - row * across) * size
        width = min(across, stop - row * across) * size + 2 - u
        first = min(width, max(0, left - u))
        last = max(first, min(width, w + left - u))
        for i in range(size + 2):
            line = lines[row - first_row, i, u : u + width]
            if v + i < 0 or v + i >= h or first == last:
                line[:] = 0
                continue
            line[:first] = 0
            inside = line[first:last]
            source = x[image, channel, v + i, u - left + first : u - left + last]
            for p in range(last - first):
                inside[p] = source[p]
            line[last:] = 0


@njit(cache=True)
def _store_lines(lines, bias, y, channel, start, stop, grid):
    """y[:, channel] at the tiles start:stop, from lines (rows of tiles, M, M * across)."""
    size, down, across = grid[:3]
    oh, ow = y.shape[2:]
    first_row, end_row = _rows_of_tiles(start, stop, across)
    for row in range(first_row, end_row):
        image, v = row // down, row % down * size
        u = max(0, start - row * across) * size
        end = min(ow, min(across, stop - row * across) * size)
        for i in range(min(size, oh - v)):
            source = lines[row - first_row, i, u:end]
            target = y[image, channel, v + i, u:end]
            for p in range(end - u):
                target[p] = source[p] + bias


@njit(cache=True, fastmath=_FUSED)
def _input_4(d, e):
    """d = B^T d B of F(4x4, 3x3): d and e (36 * LANES)."""
    two, four, five = d.dtype.type(2), d.dtype.type(4), d.dtype.type(5)
    step = 6 * LANES
    for p in range(step):
        d0, d1, d2 = d[p], d[step + p], d[2 * step + p]
        d3, d4, d5 = d[3 * step + p], d[4 * step + p], d[5 * step + p]
        even, odd = d4 - four * d2, d3 - four * d1
        even2, odd2 = d4 - d2, two * (d3 - d1)
        e[p] = four * d0 - five * d2 + d4
        e[step + p] = even + odd
        e[2 * step + p] = even - odd
        e[3 * step + p] = even2 + odd2
        e[4 * step + p] = even2 - odd2
        e[5 * step + p] = four * d1 - five * d3 + d5
    for i in range(6):
        source, target = e[i * step : (i + 1) * step], d[i * step : (i + 1) * step]
        for p in range(LANES):
            d0, d1, d2 = source[p], source[LANES + p], source[2 * LANES + p]
            d3, d4, d5 = source[3 * LANES + p], source[4 * LANES + p], source[5 * LANES + p]
            even, odd = d4 - four * d2, d3 - four * d1
            even2, odd2 = d4 - d2, two * (d3 - d1)
            target[p] = four * d0 - five * d2 + d4
            target[LANES + p] = even + odd
            target[2 * LANES + p] = even - odd
            target[3 * LANES + p] = even2 + odd2
            target[4 * LANES + p] = even2 - odd2
            target[5 * LANES + p] = four * d1 - five * d3 + d5


@njit(cache=True, fastmath=_FUSED)
def _output_4(d, e):
    """d[:16 * LANES] = A^T d A of F(4x4, 3x3): d and e (36 * LANES)."""
    two, four, eight = d.dtype.type(2), d.dtype.type(4), d.dtype.type(8)
    step = 6 * LANES
    for p in range(step):
        near, far = d[step + p] + d[2 * step + p], d[3 * step + p] + d[4 * step + p]
        slope, far_slope = d[step + p] - d[2 * step + p], d[3 * step + p] - d[4 * step + p]
        e[p] = d[p] + near + far
        e[step + p] = slope + two * far_slope
        e[2 * step + p] = near + four * far
        e[3 * step + p] = slope + eight * far_slope + d[5 * step + p]
    for i in range(4):
        source, target = e[i * step : (i + 1) * step], d[4 * i * LANES : 4 * (i + 1) * LANES]
        for p in range(LANES):
            m1, m2 = source[LANES + p], source[2 * LANES + p]
            m3, m4 = source[3 * LANES + p], source[4 * LANES + p]
            near, far, slope, far_slope = m1 + m2, m3 + m4, m1 - m2, m3 - m4
            target[p] = source[p] + near + far
            target[LANES + p] = slope + two * far_slope
            target[2 * LANES + p] = near + four * far
            target[3 * LANES + p] = slope + eight * far_slope + source[5 * LANES + p]


@njit(cache=True, fastmath=_FUSED)
def _filter_4(d, e):
    """e = G d G^T of F(4x4, 3x3): d (9 * LANES), e (36 * LANES)."""
    two, four = d.dtype.type(2), d.dtype.type(4)
    sixth, late = d.dtype.type(1 / 6), d.dtype.type(1 / 24)
    quarter = d.dtype.type(1 / 4)
    step = 3 * LANES
    rows = np.empty(6 * step, d.dtype)
    for p in range(step):
        g0, g1, g2 = d[p], d[step + p], d[2 * step + p]
        rows[p] = quarter * g0
        rows[step + p] = -sixth * (g0 + g2 + g1)
        rows[2 * step + p] = -sixth * (g0 + g2 - g1)
        rows[3 * step + p] = late * (g0 + four * g2 + two * g1)
        rows[4 * step + p] = late * (g0 + four * g2 - two * g1)
        rows[5 * step + p] = g2
    for i in range(6):
        source, target = rows[i * step : (i + 1) * step], e[2 * i * step : 2 * (i + 1) * step]
        for p in range(LANES):
            g0, g1, g2 = source[p], source[LANES + p], source[2 * LANES + p]
            target[p] = quarter * g0
            target[LANES + p] = -sixth * (g0 + g2 + g1)
            target[2 * LANES + p] = -sixth * (g0 + g2 - g1)
            target[3 * LANES + p] = late * (g0 + four * g2 + two * g1)
            target[4 * LANES + p] = late * (g0 + four * g2 - two * g1)
            target[5 * LANES + p] = g2


@njit(cache=True)
def _input_2(d, e):
    """d = B^T d B of F(2x2, 3x3): d and e (16 * LANES)."""
    step = 4 * LANES
    for p in range(step):
        d0, d1, d2, d3 = d[p], d[step + p], d[2 * step + p], d[3 * step + p]
        e[p] = d0 - d2
        e[step + p] = d1 + d2
        e[2 * step + p] = d2 - d1
        e[3 * step + p] = d1 - d3
    for i in range(4):
        source, target = e[i * step : (i + 1) * step], d[i * step : (i + 1) * step]
        for p in range(LANES):
            d0, d1 = source[p], source[LANES + p]
            d2, d3 = source[2 * LANES + p], source[3 * LANES + p]
            target[p] = d0 - d2
            target[LANES + p] = d1 + d2
            target[2 * LANES + p] = d2 - d1
            target[3 * LANES + p] = d1 - d3


@njit(cache=True)
def _output_2(d, e):
    """d[:4 * LANES] = A^T d A of F(2x2, 3x3): d and e (16 * LANES)."""
    step = 4 * LANES
    for p in range(step):
        e[p] = d[p] + d[step + p] + d[2 * step + p]
        e[step + p] = d[step + p] - d[2 * step + p] - d[3 * step + p]
    for i in range(2):
        source, target = e[i * step : (i + 1) * step], d[2 * i * LANES : 2 * (i + 1) * LANES]
        for p in range(LANES):
            m1, m2 = source[LANES + p], source[2 * LANES + p]
            target[p] = source[p] + m1 + m2
            target[LANES + p] = m1 - m2 - source[3 * LANES + p]


@njit(cache=True)
def _filter_2(d, e):
    """e = G d G^T of F(2x2, 3x3): d (9 * LANES), e (16 * LANES)."""
    half = d.dtype.type(0.5)
    step = 3 * LANES
    rows = np.empty(4 * step, d.dtype)
    for p in range(step):
        g0, g1, g2 = d[p], d[step + p], d[2 * step + p]
        rows[p] = g0
        rows[step + p] = half * (g0 + g2 + g1)
        rows[2 * step + p] = half * (g0 + g2 - g1)
        rows[3 * step + p] = g2
    for i in range(4):
        source = rows[i * step : (i + 1) * step]
        target = e[4 * i * LANES : 4 * (i + 1) * LANES]
        for p in range(LANES):
            g0, g1, g2 = source[p], source[LANES + p], source[2 * LANES + p]
            target[p] = g0
            target[LANES + p] = half * (g0 + g2 + g1)
            target[2 * LANES + p] = half * (g0 + g2 - g1)
            target[3 * LANES + p] = g2


@njit(inline="always")
def _runs(first, last, row, across):
    """The tiles of first:last that lie in this row of tiles: (column, lane, how many)."""
    start, stop = max(first, row * across), min(last, (row + 1) * across)
    return start - row * across, start - first, stop - start


@njit(cache=True)
def _gather_4(lines, d, first, last, first_row, across):
    """d[pixel, lane] of the tiles first:last, 6x6 pixels each, from `lines`."""
    begin, end = _rows_of_tiles(first, last, across)
    for row in range(begin, end):
        column, lane, count = _runs(first, last, row, across)
        for i in range(6):
            source = lines[row - first_row, i, 4 * column :]
            target = d[6 * i * LANES + lane : 6 * (i + 1) * LANES]
            for p in range(count):
                target[p] = source[4 * p]
                target[LANES + p] = source[4 * p + 1]
                target[2 * LANES + p] = source[4 * p + 2]
                target[3 * LANES + p] = source[4 * p + 3]
                target[4 * LANES + p] = source[4 * p + 4]
                target[5 * LANES + p] = source[4 * p + 5]


@njit(cache=True)
def _gather_2(lines, d, first, last, first_row, across):
    """d[pixel, lane] of the tiles first:last, 4x4 pixels each, from `lines`."""
    begin, end = _rows_of_tiles(first, last, across)
    for row in range(begin, end):
        column, lane, count = _runs(first, last, row, across)
        for i in range(4):
            source = lines[row - first_row, i, 2 * column :]
            target = d[4 * i * LANES + lane : 4 * (i + 1) * LANES]
            for p in range(count):
                target[p] = source[2 * p]
                target[LANES + p] = source[2 * p + 1]
                target[2 * LANES + p] = source[2 * p + 2]
                target[3 * LANES + p] = source[2 * p + 3]


@njit(cache=True)
def _scatter_4(d, lines, first, last, first_row, across):
    """`lines` at the tiles first:last = d[pixel, lane], 4x4 pixels each."""
    begin, end = _rows_of_tiles(first, last, across)
    for row in range(begin, end):
        column, lane, count = _runs(first, last, row, across)
        for i in range(4):
            source = d[4 * i * LANES + lane : 4 * (i + 1) * LANES]
            target = lines[row - first_row, i, 4 * column :]
            for p in range(count):
                target[4 * p] = source[p]
                target[4 * p + 1] = source[LANES + p]
                target[4 * p + 2] = source[2 * LANES + p]
                target[4 * p + 3] = source[3 * LANES + p]


@njit(cache=True)
def _scatter_2(d, lines, first, last, first_row, across):
    """`lines` at the tiles first:last = d[pixel, lane], 2x2 pixels each."""
    begin, end = _rows_of_tiles(first, last, across)
    for row in range(begin, end):
        column, lane, count = _runs(first, last, row, across)
        for i in range(2):
            source = d[2 * i * LANES + lane : 2 * (i + 1) * LANES]
            target = lines[row - first_row, i, 2 * column :]
            for p in range(count):
                target[2 * p] = source[p]
                target[2 * p + 1] = source[LANES + p]


@njit(cache=True)
def transform_input(x, v, tiles, c0, c1, start, stop, grid):
    """v[:, c, tile - start] = B^T d B for the tiles start:stop of the channels c0:c1 of x.

    Row k of v is a matrix (C, tiles), `tiles` a multiple of LANES; past the last tile it gets
    values of no meaning.
    """
    size, _, across = grid[:3]
    first_row, end_row = _rows_of_tiles(start, stop, across)
    lines = np.empty((end_row - first_row, size + 2, size * across + 2), x.dtype)
    products = (size + 2) * (size + 2)
    d, e = np.zeros(products * LANES, x.dtype), np.empty(products * LANES, x.dtype)
    for c in range(c0, c1):
        _load_lines(x, c, lines, start, stop, grid)
        for first in range(start, stop, LANES):
            last = min(stop, first + LANES)
            if size == 4:
                _gather_4(lines, d, first, last, first_row, across)
                _input_4(d, e)
            else:
                _gather_2(lines, d, first, last, first_row, across)
                _input_2(d, e)
            column = c * tiles + first - start
            for k in range(products):
                source = d[k * LANES : (k + 1) * LANES]
                target = v[k, column : column + LANES]
                for p in range(LANES):
                    target[p] = source[p]


@njit(cache=True)
def transform_output(m, tiles, bias, y, o0, o1, start, stop, grid):
    """y[:, o] at the tiles start:stop = A^T m[:, o] A + bias[o], for the channels o0:o1."""
    size, _, across = grid[:3]
    first_row, end_row = _rows_of_tiles(start, stop, across)
    lines = np.empty((end_row - first_row, size, size * across), y.dtype)
    products = (size + 2) * (size + 2)
    d, e = np.empty(products * LANES, y.dtype), np.empty(products * LANES, y.dtype)
    for o in range(o0, o1):
        for first in range(start, stop, LANES):
            last = min(stop, first + LANES)
            column = o * tiles + first - start
            for k in range(products):
                target = d[k * LANES : (k + 1) * LANES]
                source = m[k, column : column + LANES]
                for p in range(LANES):
                    target[p] = source[p]
            if size == 4:
                _output_4(d, e)
                _scatter_4(d, lines, first, last, first_row, across)
            else:
                _output_2(d, e)
                _scatter_2(d, lines, first, last, first_row, across)
        _store_lines(lines, bias[o], y, o, start, stop, grid)


@njit(cache=True)
def transform_filters(weight, u, o0, o1, size, turned):
    """u[:, o, c] = G g G^T for the filters o0:o1 of weight (O, C, 9), turned round or not.

    Row k of u is a matrix (O, C).
    """
    channels = weight.shape[1]
    products = (size + 2) * (size + 2)
    d, e = np.zeros(9 * LANES, weight.dtype), np.empty(products * LANES, weight.dtype)
    flip = 8 if turned else 0
    for o in range(o0, o1):
        for first in range(0, channels, LANES):
            count = min(LANES, channels - first)
            for lane in range(count):
                g = weight[o, first + lane]
                for k in range(9):
                    d[abs(flip - k) * LANES + lane] = g[k]
            if size == 4:
                _filter_4(d, e)
            else:
                _filter_2(d, e)
            column = o * channels + first
            for k in range(products):
                source = e[k * LANES : k * LANES + count]
                target = u[k, column : column + count]
                for p in range(count):
                    target[p] = source[p]
