"""The product of two matrices on all cores; the definition stands in kernels.reference.matmul.

Small products go to BLAS. Otherwise a task makes a **group** of columns of the result, for all of
its rows or some: it packs the group's columns of b, some terms at a time, into **strips** as wide
as a tile of registers (kernels.cpu.simd), which stay in its cache while all rows of a pass by. So
every element of a large matrix is read once, in long stretches.

Where `a` has **few rows**, as in the fully connected layers, that is all that counts, and packing b
would cost more than the product: its rows are summed up from where they lie, some at a time, or its
columns, if these lie together, are multiplied with the rows of a vector by vector.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.moves import copy
from kernels.cpu.pixels import turn
from kernels.cpu.simd import DOTS, dot_tile, product_tiles, row_tiles
from kernels.cpu.tasks import MIN_TASKS, chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.tiles import tile_vectors
from kernels.cpu.workspace import empty, workspace
from kernels.geometry import check_dtypes, check_matmul

_MIN_MACS = 1 << 22
# Terms that are packed in one go, and strips of a group.
_DEPTH, _STRIPS = 128, 8
# Rows for which packing b once more pays.
_PART_ROWS = 64
# Rows that are few, and then rows of b that are summed up in one go.
_MAX_FEW, _FEW_TERMS = 16, 16
# Elements of a that stay in a first cache for dot products, and blocks of columns of a task.
_DOT_ELEMENTS, _DOT_BLOCKS = 8192, 16


@njit(cache=True)
def _pack(b, turned, pitch, k, depth, c, columns, packed, base, strip, width):
    """packed[base + i strip + p] = b[k + i, c + p] for i < depth and p < columns.

    b is flat, its rows (or, if `turned`, its columns) `pitch` apart.
    """
    if turned:
        turn(b, c * pitch + k, pitch, columns, depth, packed, base, strip, width)
        return
    for i in range(depth):
        copy(packed, base + i * strip, b, (k + i) * pitch + c, columns)


@njit(parallel=True, cache=True)
def _product(a, b, y, scratch, offsets, sizes, a_turned, b_turned, parts, width):
    """y (flat, rows and columns in whole tiles) = a b, flat too; sizes (m, k, n, pitches)."""
    rows, terms, columns, a_pitch, b_pitch, y_pitch = sizes
    strip, vectors, blocks = VECTORS * width, -(-columns // width), rows // ROWS
    groups = -(-vectors // (_STRIPS * VECTORS))
    for task in prange(groups * parts):
        piece, part = split(task, parts)
        v0, own = tile_vectors(piece, groups, vectors)
        strips = -(-own // VECTORS)
        r0, r1 = part * blocks // parts * ROWS, (part + 1) * blocks // parts * ROWS
        packed = scratch[get_thread_id()]
        for k in range(0, terms, _DEPTH):
            depth = min(_DEPTH, terms - k)
            for s in range(strips):
                v, wide = tile_vectors(s, strips, own)
                c = (v0 + v) * width
                _pack(
                    b, b_turned, b_pitch, k, depth, c, min(wide * width, columns - c), packed,
                    s * _DEPTH * strip, strip, width,
                )  # fmt: skip
            for r in range(r0, r1, ROWS):
                for s in range(strips):
                    v, wide = tile_vectors(s, strips, own)
                    x0, y0 = s * _DEPTH * strip, r * y_pitch + (v0 + v) * width
                    if a_turned:
                        product_tiles(
                            a, k * a_pitch + r, a_pitch, packed, x0, offsets, 0, depth,
                            y, y0, y_pitch, wide, k == 0,
                        )  # fmt: skip
                    else:
                        row_tiles(
                            a, r * a_pitch + k, a_pitch, packed, x0, offsets, 0, depth,
                            y, y0, y_pitch, wide, k == 0,
                        )  # fmt: skip


@njit(cache=True)
def _plain(a, a0, a_pitch, b, b0, b_steps, y, y0, y_pitch, sizes):
    """y[r, c] += sum_k a[r, k] b[k, c], each from an element on; for what is less than a tile.

    `b_steps`: elements from one k, and from one c, to the next. `sizes`: of r, k and c.
    """
    for r in range(sizes[0]):
        for k in range(sizes[1]):
            weight = a[a0 + r * a_pitch + k]
            for c in range(sizes[2]):
                y[y0 + r * y_pitch + c] += weight * b[b0 + k * b_steps[0] + c * b_steps[1]]


@njit(parallel=True, cache=True)
def _few_rows(a, b, y, offsets, sizes, width):
    """y (flat, zeros) += a (rows in whole tiles, terms) b, the rows of b `b_pitch` apart."""
    rows, terms, columns, a_pitch, b_pitch, y_pitch = sizes
    strip = VECTORS * width
    # Pieces of whole strips, and long enough for what fetches b ahead.
    length = -(-columns // (MIN_TASKS * strip)) * strip
    for piece in prange(-(-columns // length)):
        c0, c1 = chunk_bounds(piece, length, columns)
        for k in range(0, terms, offsets.size):
            depth = min(offsets.size, terms - k)
            for c in range(c0, c1, strip):
                vectors = min(VECTORS, (c1 - c) // width)
                for r in range(0, rows if vectors else 0, ROWS):
                    row_tiles(
                        a, r * a_pitch + k, a_pitch, b, k * b_pitch + c, offsets, 0, depth,
                        y, r * y_pitch + c, y_pitch, vectors, False,
                    )  # fmt: skip
                done = c + vectors * width
                _plain(
                    a, k, a_pitch, b, k * b_pitch + done, (b_pitch, 1), y, done, y_pitch,
                    (rows, depth, min(c1, c + strip) - done),
                )  # fmt: skip


@njit(parallel=True, cache=True)
def _dots(a, b, y, sizes):
    """y (flat, zeros) += a (rows in whole tiles, terms) b, the columns of b `b_pitch` apart."""
    rows, terms, columns, a_pitch, b_pitch, y_pitch = sizes
    blocks, most = -(-columns // DOTS), max(1, _DOT_ELEMENTS // rows)
    for task in prange(-(-blocks // _DOT_BLOCKS)):
        first, last = chunk_bounds(task, _DOT_BLOCKS, blocks)
        for k in range(0, terms, most):
            depth = min(most, terms - k)
            for c in range(first * DOTS, last * DOTS, DOTS):
                if c + DOTS > columns:
                    _plain(
                        a, k, a_pitch, b, c * b_pitch + k, (1, b_pitch), y, c, y_pitch,
                        (rows, depth, columns - c),
                    )  # fmt: skip
                    continue
                for r in range(0, rows, DOTS):
                    dot_tile(
                        a, r * a_pitch + k, a_pitch, b, c * b_pitch + k, b_pitch, depth,
                        y, r * y_pitch + c, y_pitch,
                    )  # fmt: skip


def _flat(x):
    """(x or a copy as flat memory, whether its columns lie together, elements between them)."""
    turned = x.flags.f_contiguous and not x.flags.c_contiguous
    x = np.ascontiguousarray(x.T if turned else x)
    return x.reshape(-1), turned, x.shape[1]


def _whole_rows(a, rows):
    """`a` with rows of zeros added."""
    padded = np.zeros((rows, a.shape[1]), a.dtype)
    padded[: len(a)] = a
    return padded


def _cut(y, rows, columns):
    """The result without what whole tiles have added to it."""
    return y if y.shape == (rows, columns) else np.ascontiguousarray(y[:rows, :columns])


def matmul(a, b):
    """See kernels.reference.matmul."""
    check_dtypes(a=a, b=b)
    check_matmul(a.shape, b.shape)
    if max(a.ndim, b.ndim) > 2:
        return np.matmul(a, b)
    (m, k), n = a.shape, b.shape[1]
    if not m * k * n:
        return np.zeros((m, n), a.dtype)
    if m * k * n < _MIN_MACS:
        return np.matmul(a, b, out=empty((m, n), a.dtype))
    width = lanes(a.dtype)
    strip = VECTORS * width
    rows, columns = -(-m // ROWS) * ROWS, -(-n // width) * width
    y = empty((rows, columns), a.dtype)
    few = m <= _MAX_FEW
    if few:
        a = np.ascontiguousarray(a)
    flat_a, a_turned, a_pitch = _flat(a if rows == m else _whole_rows(a, rows))
    flat_b, b_turned, b_pitch = _flat(b)
    sizes = rows, k, n, a_pitch, b_pitch, columns
    if few:
        y[:] = 0
        if b_turned:
            _dots(flat_a, flat_b, y.reshape(-1), (-(-m // DOTS) * DOTS, *sizes[1:]))
        else:
            offsets = np.arange(_FEW_TERMS) * b_pitch
            _few_rows(flat_a, flat_b, y.reshape(-1), offsets, sizes, width)
        return _cut(y, m, n)
    scratch = workspace("conv", (num_threads(), (_STRIPS + 1) * strip * _DEPTH), a.dtype)
    parts = min(-(-rows // _PART_ROWS), -(-MIN_TASKS // -(-n // (_STRIPS * strip))))
    _product(
        flat_a, flat_b, y.reshape(-1), scratch, np.arange(_DEPTH) * strip,
        sizes, a_turned, b_turned, parts, width,
    )  # fmt: skip
    return _cut(y, m, n)
