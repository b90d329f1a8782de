"""What convolutions by tiles share: a product whose right matrix is known by offsets only,

    y[o, f] = sum_k w[o, k] source[offset[k] + f].

The filters are packed once a call: `depth` terms at a time make a **part**, in which ROWS outputs
after the other have their weights in the order in which tiles want them. The columns f are cut into
**tiles** of up to VECTORS vectors; some tiles that follow each other, a **group**, go through all
parts together. So a part of the filters stays in a second cache while the tiles of a group go by,
what a tile reads of the source stays in a first cache while the outputs go by, and the sums of a
group wait in scratch memory.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.moves import copy, prefetch
from kernels.cpu.pixels import interleave
from kernels.cpu.simd import product_tiles, store_run, store_run_onto
from kernels.cpu.tasks import chunk_bounds, split
from kernels.cpu.workspace import workspace

# What a tile reads of the source for one part should stay in a first cache, a part of the filters
# and the sums of a group in a second one.
PART_BYTES, _FILTER_BYTES, _SUM_BYTES = 24 << 10, 256 << 10, 384 << 10
# And in a first one, where filters or gradients are turned over to be read as rows of a tile, those
# of as many terms as a tile sums up.
PANEL_BYTES = 26 << 10
# What it costs to turn over an element, in products of a vector, as measured.
TURN = 0.7
_MAX_GROUP = 8
_PACK_BLOCKS = 8


class Filters(NamedTuple):
    """Packed filters: (G, blocks C T ROWS), in parts of `depth` terms; rows beyond are zero."""

    packed: np.ndarray
    blocks: int  # of ROWS outputs
    depth: int


@njit(parallel=True, cache=True)
def _pack(weight, packed, outputs, places, strides, depth, width):
    """packed (G, blocks K ROWS) from flat weights: weight[g, o, k] at g, o strides + places[k].

    A task takes a part of some blocks.
    """
    groups, blocks = packed.shape[0], -(-outputs // ROWS)
    group_stride, output_stride = strides
    terms, bands = places.size, -(-blocks // _PACK_BLOCKS)
    parts = -(-terms // depth)
    in_rows = places[terms - 1] - places[0] == terms - 1
    for task in prange(groups * bands * parts):
        rest, part = split(task, parts)
        g, band = split(rest, bands)
        k0, k1 = chunk_bounds(part, depth, terms)
        b0, b1 = chunk_bounds(band, _PACK_BLOCKS, blocks)
        target = packed[g]
        for b in range(b0, b1):
            count = min(ROWS, outputs - b * ROWS)
            first = g * group_stride + b * ROWS * output_stride
            at = (k0 * blocks + b * (k1 - k0)) * ROWS
            if in_rows:
                interleave(
                    weight, first + places[k0], output_stride, count, k1 - k0, target, at, width
                )
            elif count == ROWS and output_stride == 1:
                for k in range(k0, k1):
                    copy(target, at + (k - k0) * ROWS, weight, first + places[k], ROWS)
            else:
                for k in range(k0, k1):
                    for r in range(ROWS):
                        place = first + r * output_stride + places[k]
                        target[at + (k - k0) * ROWS + r] = weight[place] if r < count else 0


def pack_filters(weight, groups, outputs, places, strides, depth, rows) -> Filters:
    """Filters for `outputs` a group, of the terms that lie `places` behind the first of an output.

    `strides`: elements from one group, and from one output, to the next. `depth`: the terms whose
    pixels stay in a first cache. `rows`: the outputs of a task.
    """
    blocks = -(-outputs // ROWS)
    depth = max(1, min(depth, max(32, _FILTER_BYTES // (rows * weight.itemsize))))
    packed = workspace("filters", (groups, blocks * places.size * ROWS), weight.dtype)
    if packed.size:
        flat = np.ascontiguousarray(weight).reshape(-1)
        _pack(flat, packed, outputs, places, strides, depth, lanes(weight.dtype))
    return Filters(packed, blocks, depth)


def group_size(rows: int, dtype) -> int:
    """Tiles of a group whose sums for so many rows fill the scratch memory meant for them."""
    tile_bytes = rows * VECTORS * lanes(dtype) * dtype.itemsize
    return max(1, min(_MAX_GROUP, _SUM_BYTES // tile_bytes))


@njit(inline="always")
def tile_count(columns, width):
    """Tiles that hold so many columns."""
    return -(-columns // (VECTORS * width))


@njit(inline="always")
def tile_vectors(tile, tiles, vectors):
    """The first of the vectors of a tile, and how many: as good as equally many in all tiles.

    Tiles of VECTORS and one of a single vector, whose loads take longer than its products, would be
    slower.
    """
    first = tile * vectors // tiles
    return first, (tile + 1) * vectors // tiles - first


@njit(inline="always")
def panel_steps(terms, most, s0, s1):
    """How often a panel of `most` terms is filled for all terms and the strips s0 to s1."""
    return -(-terms // most) * (s1 - s0)


@njit(inline="always")
def panel_step(step, terms, most, s0, s1, strips, vectors):
    """(strip, its first vector, how many, first term, how many) of a panel."""
    chunks, chunk, s = -(-terms // most), step // (s1 - s0), s0 + step % (s1 - s0)
    first, count = tile_vectors(s, strips, vectors)
    k = chunk * terms // chunks
    return s, first, count, k, (chunk + 1) * terms // chunks - k


def widest_tile(tiles: int, columns: int, width: int) -> int:
    """Elements of the widest of the tiles that so many columns are cut into."""
    return -(-columns // width // tiles) * width


@njit(cache=True)
def _span(tile, columns, room, width):
    """The first column of a tile and its vectors.

    A tile ends within `room` columns: the last may begin within the one before it, and computes the
    same sums as that.
    """
    tiles = tile_count(columns, width)
    first, vectors = tile_vectors(tile, tiles, -(-columns // width))
    return min(first * width, room - vectors * width), vectors


@njit(cache=True)
def sum_tiles(filters, part, source, base, offsets, tiles, columns, room, out, width):
    """Into `out` (tiles, rows, tile): the sums of some tiles and blocks.

    `part`: (blocks of all, first and last block here, depth). `tiles`: the first and last tile of
    `columns` columns, which begin at source[base].
    """
    blocks, b0, b1, depth = part
    rows, tile = (b1 - b0) * ROWS, VECTORS * width
    if offsets.size == 0:
        out[: (tiles[1] - tiles[0]) * rows * tile] = 0
    for k in range(0, offsets.size, depth):
        terms = min(depth, offsets.size - k)
        for t in range(tiles[0], tiles[1]):
            f, vectors = _span(t, columns, room, width)
            # What comes next is on its way while this is computed.
            last = t == tiles[1] - 1
            coming, _ = _span(tiles[0] if last else t + 1, columns, room, width)
            ahead = k + terms if last else k
            ahead_terms = min(depth, offsets.size - ahead)
            for b in range(b0, b1):
                i, count = b - b0, b1 - b0
                prefetch(
                    source, base + coming, offsets, ahead + i * ahead_terms // count,
                    ahead + (i + 1) * ahead_terms // count, tile,
                )  # fmt: skip
                at = ((t - tiles[0]) * rows + (b - b0) * ROWS) * tile
                product_tiles(
                    filters, (k * blocks + b * terms) * ROWS, ROWS, source, base + f, offsets, k,
                    terms, out, at, tile, vectors, k == 0,
                )  # fmt: skip


@njit(cache=True)
def _runs(rows, tiles, columns, room, planes, place, target, runs, width):
    """How the columns of a group lie in y: runs (first of `out`, first of y, length); their number.

    See `store_tiles`; y counts from the first output's first pixel of the group's block.
    """
    pitch, image_rows, lines, ow = place
    row_step, column_step, row0, column0, y_pitch = target
    whole = pitch == ow and row_step * column_step == 1
    number = 0
    for t in range(tiles[0], tiles[1]):
        f, vectors = _span(t, columns, room, width)
        stop = min(f + vectors * width, columns)
        source = (t - tiles[0]) * rows * VECTORS * width - f
        p = f
        while p < stop:
            row = p // pitch
            image, v = row // image_rows, row % image_rows
            u = p - row * pitch
            left = lines * ow - v * ow - u if whole else ow - u
            if v >= lines or left <= 0:
                p = (row + 1) * pitch
                continue
            run = min(left, stop - p)
            pixel = (v * row_step + row0) * y_pitch + u * column_step + column0
            runs[number] = source + p, image * planes + pixel, run
            number += 1
            p += run
    return number


@njit(cache=True)
def store_tiles(out, rows, tiles, columns, room, y, first, outputs, place, area, target, epilogue,
                width):  # fmt: skip
    """The sums of `sum_tiles` to their pixels in the planes of y, the first at `first`.

    `rows`: those of `out`. `outputs`: (the first, how many, planes of an image of y). `place`:
    (P, rows, lines, OW) of the columns. `target`: they lie in y in steps of so many rows and
    columns, from a row and a column on, in rows of a length.
    """
    o0, count, planes = outputs
    scale, shift, others, floor = epilogue
    tile, step = VECTORS * width, target[1]
    runs = np.empty(((tiles[1] - tiles[0]) * tile, 3), np.int64)
    number = _runs(rows, tiles, columns, room, planes * area, place, target, runs, width)
    for o in range(count):
        for r in range(number):
            source, pixel, run = runs[r, 0] + o * tile, first + o * area + runs[r, 1], runs[r, 2]
            if step > 1:
                for i in range(run):
                    y[pixel + i * step] = out[source + i]
            elif others.size:
                store_run_onto(out, source, run, y, pixel, scale, shift, o0 + o, others, floor)
            else:
                store_run(out, source, run, y, pixel, scale, shift, o0 + o, others, floor)
