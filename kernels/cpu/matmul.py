"""The product of two matrices on all cores; the definition stands in kernels.reference.matmul.

Small products go to BLAS. Otherwise a task makes a **group** of columns of the result, for all of
its rows or some: it packs the group's columns of b, some terms at a time, into **strips** as wide
as a tile of registers (kernels.cpu.simd), which stay in its cache while all rows of a pass by. So
every element of a large matrix is read once, in long stretches, which is all that counts where the
other matrix has a few rows only, as in the fully connected layers.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.pixels import turn
from kernels.cpu.simd import copy, product_tiles, row_tiles
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.threads import num_threads
from kernels.cpu.workspace import empty, workspace
from kernels.geometry import check_dtypes, check_matmul

_MIN_MACS = 1 << 22
# Terms that are packed in one go, strips of a group, and tasks that are enough for several cores.
_DEPTH, _STRIPS, _MIN_TASKS = 128, 8, 8
# Rows for which packing b once more pays.
_PART_ROWS = 64


@njit(cache=True)
def _pack(b, turned, pitch, k, depth, c, columns, packed, strip, width):
    """packed (strips, _DEPTH, strip): rows k to k + depth of columns c to c + columns of b.

    b is flat, its rows (or, if `turned`, its columns) `pitch` apart.
    """
    for first in range(0, columns, strip):
        count, base = min(strip, columns - first), first * _DEPTH
        if not turned:
            for i in range(depth):
                copy(packed, base + i * strip, b, (k + i) * pitch + c + first, count)
            continue
        turn(b, (c + first) * pitch + k, pitch, count, depth, packed, base, strip, width)


@njit(parallel=True, cache=True)
def _product(a, b, y, scratch, offsets, sizes, a_turned, b_turned, parts, width):
    """y (flat, rows and columns in whole tiles) = a b, flat too; sizes (m, k, n, pitches)."""
    rows, terms, columns, a_pitch, b_pitch, y_pitch = sizes
    strip = VECTORS * width
    group = _STRIPS * strip
    for task in prange(-(-columns // group) * parts):
        piece, part = split(task, parts)
        c0, c1 = chunk_bounds(piece, group, columns)
        blocks = rows // ROWS
        r0, r1 = part * blocks // parts * ROWS, (part + 1) * blocks // parts * ROWS
        packed = scratch[get_thread_id()]
        for k in range(0, terms, _DEPTH):
            depth = min(_DEPTH, terms - k)
            _pack(b, b_turned, b_pitch, k, depth, c0, c1 - c0, packed, strip, width)
            for r in range(r0, r1, ROWS):
                for c in range(c0, c1, strip):
                    vectors = min(VECTORS, -(-(c1 - c) // width))
                    x0, y0 = (c - c0) * _DEPTH, r * y_pitch + c
                    if a_turned:
                        product_tiles(
                            a, k * a_pitch + r, a_pitch, packed, x0, offsets, 0, depth,
                            y, y0, y_pitch, vectors, k == 0,
                        )  # fmt: skip
                    else:
                        row_tiles(
                            a, r * a_pitch + k, a_pitch, packed, x0, offsets, 0, depth,
                            y, y0, y_pitch, vectors, k == 0,
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


def matmul(a, b):
    """See kernels.reference.matmul."""
    check_dtypes(a=a, b=b)
    check_matmul(a.shape, b.shape)
    (m, k), n = a.shape, b.shape[1]
    if not m * k * n:
        return np.zeros((m, n), a.dtype)
    if m * k * n < _MIN_MACS:
        return np.matmul(a, b, out=empty((m, n), a.dtype))
    width = lanes(a.dtype)
    strip = VECTORS * width
    rows, columns = -(-m // ROWS) * ROWS, -(-n // width) * width
    y = empty((rows, columns), a.dtype)
    flat_a, a_turned, a_pitch = _flat(a if rows == m else _whole_rows(a, rows))
    flat_b, b_turned, b_pitch = _flat(b)
    scratch = workspace("conv", (num_threads(), (_STRIPS + 1) * strip * _DEPTH), a.dtype)
    parts = min(-(-rows // _PART_ROWS), -(-_MIN_TASKS // -(-n // (_STRIPS * strip))))
    _product(
        flat_a, flat_b, y.reshape(-1), scratch, np.arange(_DEPTH) * strip,
        (rows, k, n, a_pitch, b_pitch, columns), a_turned, b_turned, parts, width,
    )  # fmt: skip
    return y if y.shape == (m, n) else np.ascontiguousarray(y[:m, :n])
