"""Winograd's transforms of blocks of tiles: the pieces of `kernels.cpu.winograd`.

The definition stands in kernels.reference.winograd. A **block** is a stretch of tiles, counted
through all images, row by row; it may begin and end within a row of tiles. Its transformed pixels
are written as v[k, c, tile], one matrix for each of the 36 (or 16) products.

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


@njit(inline="always")
def _origin(tile, first_row, lines, grid):
    """Where the tile begins in the flat `lines`."""
    row, column = tile // grid[2], tile % grid[2]
    return (row - first_row) * lines.shape[1] * lines.shape[2] + column * grid[0]


@njit(cache=True, fastmath=_FUSED)
def _input_4(d, e):
    """e = B^T d B of F(4x4, 3x3): d and e (36 * LANES), d is overwritten."""
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
    """d[:16 * LANES] = A^T d A of F(4x4, 3x3): d (36 * LANES), e of the same size."""
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
def _gather(lines, base, d, lane, edge):
    """d[:, lane] = the edge x edge pixels of `lines` from `base` on."""
    flat, pitch = lines.reshape(lines.size), lines.shape[2]
    for i in range(edge):
        source = flat[base + i * pitch : base + i * pitch + edge]
        target = d[i * edge * LANES + lane : (i + 1) * edge * LANES]
        for j in range(edge):
            target[j * LANES] = source[j]


@njit(inline="always")
def _scatter(d, lane, lines, base, edge):
    """The edge x edge pixels of `lines` from `base` on = d[:, lane]."""
    flat, pitch = lines.reshape(lines.size), lines.shape[2]
    for i in range(edge):
        source = d[i * edge * LANES + lane : (i + 1) * edge * LANES]
        target = flat[base + i * pitch : base + i * pitch + edge]
        for j in range(edge):
            target[j] = source[j * LANES]


@njit(cache=True)
def transform_input(x, v, c0, c1, start, stop, grid):
    """v[:, c, tile - start] = B^T d B for the tiles start:stop of the channels c0:c1 of x.

    v is (36 or 16, C, a multiple of LANES); past the tiles it gets zeros. `grid`: (pixels of an
    output tile's edge, tiles down and across an image, padding at top and left).
    """
    size, _, across = grid[:3]
    first_row, end_row = _rows_of_tiles(start, stop, across)
    lines = np.empty((end_row - first_row, size + 2, size * across + 2), x.dtype)
    products = (size + 2) * (size + 2)
    d, e = np.empty(products * LANES, x.dtype), np.empty(products * LANES, x.dtype)
    for c in range(c0, c1):
        _load_lines(x, c, lines, start, stop, grid)
        for first in range(start, stop, LANES):
            last = min(stop, first + LANES)
            if last < first + LANES:
                d[:] = 0
            for tile in range(first, last):
                base = _origin(tile, first_row, lines, grid)
                if size == 4:
                    _gather(lines, base, d, tile - first, 6)
                else:
                    _gather(lines, base, d, tile - first, 4)
            if size == 4:
                _input_4(d, e)
            else:
                _input_2(d, e)
            for k in range(products):
                source = d[k * LANES : (k + 1) * LANES]
                target = v[k, c, first - start : first - start + LANES]
                for p in range(LANES):
                    target[p] = source[p]


@njit(cache=True)
def transform_output(m, bias, y, o0, o1, start, stop, grid):
    """y[:, o] at the tiles start:stop = A^T m[:, o] A + bias[o], for the channels o0:o1."""
    size, _, across = grid[:3]
    first_row, end_row = _rows_of_tiles(start, stop, across)
    lines = np.empty((end_row - first_row, size, size * across), y.dtype)
    products = (size + 2) * (size + 2)
    d, e = np.empty(products * LANES, y.dtype), np.empty(products * LANES, y.dtype)
    for o in range(o0, o1):
        for first in range(start, stop, LANES):
            for k in range(products):
                target = d[k * LANES : (k + 1) * LANES]
                source = m[k, o, first - start : first - start + LANES]
                for p in range(LANES):
                    target[p] = source[p]
            if size == 4:
                _output_4(d, e)
            else:
                _output_2(d, e)
            for tile in range(first, min(stop, first + LANES)):
                base = _origin(tile, first_row, lines, grid)
                if size == 4:
                    _scatter(d, tile - first, lines, base, 4)
                else:
                    _scatter(d, tile - first, lines, base, 2)
        _store_lines(lines, bias[o], y, o, start, stop, grid)


@njit(cache=True)
def transform_filters(weight, u, o0, o1, c0, c1, size):
    """u[:, o, c] = G g G^T for the filters o0:o1, c0:c1 of weight (O, C, 3, 3); c1 - c0 <= LANES."""
    products = (size + 2) * (size + 2)
    d, e = np.zeros(9 * LANES, weight.dtype), np.empty(products * LANES, weight.dtype)
    for o in range(o0, o1):
        for c in range(c0, c1):
            for i in range(3):
                for j in range(3):
                    d[(3 * i + j) * LANES + c - c0] = weight[o, c, i, j]
        if size == 4:
            _filter_4(d, e)
        else:
            _filter_2(d, e)
        for k in range(products):
            source = e[k * LANES : k * LANES + c1 - c0]
            target = u[k, o, c0:c1]
            for p in range(c1 - c0):
                target[p] = source[p]
