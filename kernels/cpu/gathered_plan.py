"""How kernels.cpu.conv_gathered cuts a convolution: which pixels make tiles, and what a task takes.

All of it follows from shapes alone, and is kept for the next call with the same ones.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kernels.cpu.emitter import ROWS, lanes
from kernels.cpu.tasks import MIN_TASKS
from kernels.cpu.tiles import PANEL_BYTES, tile_count, tile_vectors

# The sums of a task stay in a second cache.
_SUM_BYTES = 384 << 10
# Into how many pieces pixels and vectors of outputs may be cut.
_PARTS, _SLICES = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8)
# What it costs, in products of a vector, as measured: to begin a tile; to add up each of its sums;
# to store one; to fetch a vector of a panel or an image; to copy a row of an image to a padded one;
# to turn a vector of weights over, where it is used at once and where it waits for others; and what
# a term of a tile takes besides ROWS products where it has one vector of outputs.
_TILE, _ADD, _STORE, _FETCH, _LINE, _TURN, _LOADS = 40, 2, 16, 5, 20, (12, 25), 4


class Geometry(NamedTuple):
    """A convolution, axis by axis, as rows and columns."""

    size: tuple[int, int]  # of the result
    extent: tuple[int, int]  # of the images it is made from
    taps: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]  # padding at the top and on the left
    dilation: tuple[int, int]


class _Kinds(NamedTuple):
    """Which taps the pixels of a result meet."""

    extent: tuple[int, int]  # of the images, padded or not
    before: tuple[int, int] | None  # padding of padded ones at the top and on the left
    met: np.ndarray  # (K,) how many taps each kind has
    moves: list[np.ndarray]  # of each kind: how much farther than the first its pixels lie
    numbers: list[np.ndarray]  # and which they are
    kind: np.ndarray  # (H W,) of each pixel
    source: np.ndarray  # (H W,) where the pixel of its first tap lies


class _Work(NamedTuple):
    """What is to be done for each of the pixels."""

    n: int
    groups: int
    channels: int
    outputs: int
    dtype: np.dtype


class _Cut(NamedTuple):
    """What a task takes."""

    images: int
    slices: int  # one of so many of the vectors of outputs
    pixels: tuple[int, ...]  # the first of each part of the pixels, and the end


class Plan(NamedTuple):
    """How the work is cut."""

    extent: tuple[int, int]  # of the images, padded or not
    before: tuple[int, int] | None  # padding of padded ones at the top and on the left
    filled: float  # products of all taps and outputs, padding among them, over what it costs
    depth: int  # channels of a panel
    tile: int  # elements of a row of a panel, and of sums
    most: int  # elements of a task's sums
    cut: tuple[int, int, int]  # images of a task, parts of the pixels, slices of the outputs
    strips: np.ndarray  # (S, 2) first vector and how many
    bounds: np.ndarray  # (slices + 1,) the first strip of each
    pixels: np.ndarray  # (parts + 1,) the first pixel of each
    tiles: np.ndarray  # (parts + 1,) the first tile of each
    terms: np.ndarray  # (tiles, 2): where its terms begin, how many there are of a channel
    rows: np.ndarray  # (tiles ROWS 2,) where the pixel of each row lies, and its sums
    places: np.ndarray  # of each term of each kind: how much farther, and in the panel


def _axis(result, padded, positions, extent, taps, stride, before, dilation):
    """Of one axis: (kinds, moves, kind, pixel, extent, before) of the result "y" or "dx".

    kinds (K, T): which taps meet a pixel; a position's pixel is that of the first of them, those of
    the others lie `moves` (K, T) farther. `padded`: from an image padded so that all meet one.
    """
    place = np.arange(positions)[:, None]
    tap = np.arange(taps) * dilation - before
    if result == "y":
        source, met = place * stride + tap, np.full((positions, taps), True)
    else:
        source, rest = np.divmod(place - tap, stride)
        met = rest == 0
    if padded:
        before = -int(np.min(source, where=met, initial=0))
        source = source + before
        extent = int(np.max(source, where=met, initial=before)) + 1
    met &= (source >= 0) & (source < extent)
    kinds, first, kind = np.unique(met, axis=0, return_index=True, return_inverse=True)
    pixel = np.where(met.any(axis=1), source[place[:, 0], np.argmax(met, axis=1)], 0)
    return kinds, source[first] - pixel[first, None], kind.reshape(-1), pixel, extent, before


def _kinds(result, geometry, padded):
    axes = [_axis(result, padded, *axis) for axis in zip(*geometry, strict=True)]
    kinds, farther, kind, pixel, extent, before = zip(*axes, strict=True)
    moves, numbers = [], []
    for a, b in np.ndindex(len(kinds[0]), len(kinds[1])):
        i, j = np.flatnonzero(kinds[0][a]), np.flatnonzero(kinds[1][b])
        moves.append(np.add.outer(farther[0][a, i] * extent[1], farther[1][b, j]).reshape(-1))
        numbers.append(np.add.outer(i * geometry.taps[1], j).reshape(-1))
    return _Kinds(
        extent, before if padded else None, np.array([move.size for move in moves]), moves, numbers,
        np.add.outer(kind[0] * len(kinds[1]), kind[1]).reshape(-1),
        np.add.outer(pixel[0] * extent[1], pixel[1]).reshape(-1),
    )  # fmt: skip


@lru_cache(maxsize=256)
def _strips(outputs, slices, width):
    """(strips, bounds) of a plan: each slice has its share of the vectors."""
    vectors, strips, bounds = -(-outputs // width), [], [0]
    for piece in range(slices):
        v0, v1 = piece * vectors // slices, (piece + 1) * vectors // slices
        tiles = tile_count.py_func(v1 - v0, 1)
        for s in range(tiles):
            first, count = tile_vectors.py_func(s, tiles, v1 - v0)
            strips.append((v0 + first, count))
        bounds.append(len(strips))
    return np.array(strips), np.array(bounds)


def _panel(strips, kinds, channels, dtype):
    """(depth, tile): the weights that a tile reads stay in a first cache."""
    tile = int(strips[:, 1].max()) * lanes(dtype)
    term_bytes = tile * max(1, int(kinds.met.max())) * dtype.itemsize
    return max(1, min(channels, PANEL_BYTES // term_bytes)), tile


def _parts(kinds, parts):
    """The first pixel of each part, and the end, so that all parts cost about the same."""
    total = np.cumsum(kinds.met[kinds.kind] + 1)
    inner = np.searchsorted(total, np.arange(1, parts) * (total[-1] / parts)) + 1
    return (0, *np.unique(inner[inner < len(total)]).tolist(), len(total))


def _cost(cut, counts, kinds, work, taps):
    """(whether the sums are too large, what an image and a channel cost).

    As if all tasks took as long as the longest. `counts`: pixels (parts, K).
    """
    width = lanes(work.dtype)
    strips, bounds = _strips(work.outputs, cut.slices, width)
    depth, tile = _panel(strips, kinds, work.channels, work.dtype)
    tiles, pixels = -(-counts * cut.images // ROWS), counts.sum(axis=1)[:, None] * cut.images
    longest = 0
    for wide in {tuple(strips[a:b, 1]) for a, b in zip(bounds, bounds[1:], strict=False)}:
        wide = np.array(wide)
        term = np.maximum(ROWS * wide[:, None], ROWS + _LOADS)
        each = kinds.met * term + (_TILE + _ADD * ROWS * wide[:, None]) / depth
        costs = tiles @ each.T + (_STORE / work.channels * pixels + _FETCH * taps) * wide
        longest = max(longest, costs.sum(axis=1).max())
    longest += _FETCH * math.prod(kinds.extent) / width * cut.images / len(counts)
    sums = pixels.max() * np.diff(bounds).max() * tile * work.dtype.itemsize
    total = longest * len(counts) * cut.slices / cut.images
    shared = work.n // cut.images * len(counts) > 1
    total += _TURN[shared] * taps * strips[:, 1].sum() / work.n
    return sums > _SUM_BYTES, total + (_LINE * kinds.extent[0] if kinds.before else 0)


def _cuts(kinds, work, taps):
    """All (whether tasks are few, sums too large, the cost, kinds, cut)."""
    vectors, n = -(-work.outputs // lanes(work.dtype)), work.n
    for parts in (parts for parts in _PARTS if parts <= len(kinds.kind)):
        pixels = _parts(kinds, parts)
        counts = np.array([
            np.bincount(kinds.kind[first:last], minlength=len(kinds.met))
            for first, last in zip(pixels, pixels[1:], strict=False)
        ])  # fmt: skip
        for images in (i for i in range(1, n + 1) if n % i == 0):
            for slices in (slices for slices in _SLICES if slices <= vectors):
                cut = _Cut(images, slices, pixels)
                few = n // images * len(counts) * slices * work.groups < MIN_TASKS
                yield few, *_cost(cut, counts, kinds, work, taps), kinds, cut


@lru_cache(maxsize=256)
def plan_for(result, n, groups, channels, outputs, geometry, dtype) -> Plan:
    """The plan for the result "y" or "dx" with so many `outputs` of so many `channels` a group.

    `geometry`: as Geometry.
    """
    geometry, work = Geometry(*geometry), _Work(n, groups, channels, outputs, dtype)
    taps = math.prod(geometry.taps)
    as_is, padded = (_kinds(result, geometry, padded) for padded in (False, True))
    options = [option for kinds in (as_is, padded) for option in _cuts(kinds, work, taps)]
    _, _, cost, kinds, cut = min(options, key=lambda option: option[:3])
    # What other ways have to do.
    products = padded.met[padded.kind].sum() * outputs / lanes(dtype)
    strips, bounds = _strips(outputs, cut.slices, lanes(dtype))
    depth, tile = _panel(strips, kinds, channels, dtype)
    places, begins, begin = [], [], 0
    plane, channel = math.prod(kinds.extent), np.arange(depth)[:, None]
    for moves, numbers in zip(kinds.moves, kinds.numbers, strict=True):
        pair = channel * plane + moves, (channel * taps + numbers) * tile
        places.append(np.stack(pair, axis=-1).reshape(-1))
        begins.append(begin)
        begin += pair[0].size
    rows, terms, tiles = [np.empty((0, 2), np.int64)], [], [0]
    image = groups * channels * plane
    for first, last in zip(cut.pixels, cut.pixels[1:], strict=False):
        number, pixel = np.indices((cut.images, last - first)).reshape(2, -1)
        own, starts = kinds.kind[first + pixel], number * image + kinds.source[first + pixel]
        for kind in np.unique(own[kinds.met[own] > 0]):
            some = np.flatnonzero(own == kind)
            lacking = -len(some) % ROWS
            # What a tile has too many of goes behind all sums.
            ends = np.pad(some, (0, lacking), constant_values=len(own)) * tile
            rows.append(np.stack([np.pad(starts[some], (0, lacking), "edge"), ends], axis=1))
            terms += [(begins[kind], kinds.met[kind])] * (len(ends) // ROWS)
        tiles.append(len(terms))
    pixels = np.array(cut.pixels)
    # With that row, and what a square of elements reaches beyond.
    sums = int(np.diff(bounds).max()) * (cut.images * int(np.diff(pixels).max()) + 1)
    arrays = (strips, bounds, pixels, np.array(tiles), np.array(terms, np.int64).reshape(-1, 2),
              np.concatenate(rows).reshape(-1), np.concatenate(places))  # fmt: skip
    for array in arrays:
        array.flags.writeable = False
    return Plan(
        kinds.extent, kinds.before, products / cost, depth, tile,
        (sums + lanes(dtype)) * tile,
        (cut.images, len(tiles) - 1, cut.slices), *arrays,
    )  # fmt: skip
