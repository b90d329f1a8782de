"""The gradient of small convolutions by their weights by Winograd's algorithm, transposed.

With U = G g G^T and the results of a tile Y = A^T (U V) A, V = B^T d B, what is summed over all
tiles for each of the 36 (or 16) positions k is a product again, after which G folds back,

    dU[k] (O, C) = sum over tiles of (A dy A^T)[k]^T V[k]        dg = G^T dU G,

with as few multiplications as forward; layout, transforms and errors are those of
kernels.cpu.winograd. The work is cut

* **by pieces**, where the channels are so few that all sums stay in a core's cache: a task
  transforms and adds up its share of the tiles, and the shares are added in order;
* **by steps** otherwise: all threads transform rows of tiles, then share out the filters, each
  with the sums of all positions, which fold as soon as they are complete.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.planes import grouped
from kernels.cpu.simd import product_tiles
from kernels.cpu.tasks import MIN_TASKS, split
from kernels.cpu.threads import num_threads
from kernels.cpu.winograd import SKEW, place_of, step_pixels, step_rows, transform_pixels
from kernels.cpu.winograd_tiles import fold_tile
from kernels.cpu.workspace import empty, workspace

# Tiles that are added up in one go: their vectors stay in a first cache.
_DEPTH = 128
# Blocks of ROWS outputs of a step's task at most: its sums stay in a second cache.
_MAX_BLOCKS = 16
# By pieces: the tiles that are transformed in one go, and the sums of a piece at most.
_PIECE_TILES, _PIECE_BYTES = 64, 3 << 20


@njit(cache=True)
def _fold(sums, at, k_step, memory, weight_grad, o, c0, count, size, taps, width):
    """weight_grad (O, C, taps^2) = G^T dU G for some channels of an output, from dU at `at`."""
    for c in range(0, count, width):
        fold_tile(
            size, taps, sums, at + c, (size + taps - 1) * k_step, k_step, memory, 0, taps * width,
            width,
        )  # fmt: skip
        for lane in range(min(width, count - c)):
            for tap in range(taps * taps):
                weight_grad[o, c0 + c + lane, tap] = memory[tap * width + lane]


@njit(cache=True)
def _add_up(grads, grads0, grads_place, v, v0, offsets, tiles, vectors, outputs, sums, at, pitch,
            fresh):  # fmt: skip
    """sums[at + o pitch : ] += the products over the tiles of some `outputs` and channels; or =."""
    for t in range(0, tiles, _DEPTH):
        for o in range(0, outputs, ROWS):
            product_tiles(
                grads, grads0 + t * grads_place + o, grads_place, v, v0, offsets, t,
                min(_DEPTH, tiles - t), sums, at + o * pitch, pitch, vectors, fresh and t == 0,
            )  # fmt: skip


@njit(parallel=True, cache=True)
def _by_pieces(dy, x, g, sums, scratch, geometry, places, offsets, block, width):
    """sums (pieces, positions, outputs, channels), each over its share of the rows of tiles."""
    size, taps, down, across = geometry[:4]
    grads_place, place = places
    pieces, positions, outputs = sums.shape[:3]
    strip = VECTORS * width
    rows, flat = x.shape[0] * down, sums.reshape(sums.size)
    grads_step, v_step = block * across * grads_place + SKEW, block * across * place + SKEW
    for piece in prange(pieces):
        first, last = piece * rows // pieces, (piece + 1) * rows // pieces
        memory = scratch[get_thread_id()]
        cut = positions * grads_step + ROWS
        grads, rest = memory[:cut], memory[cut:]
        v, pixels = rest[: positions * v_step], rest[positions * v_step :]
        for row0 in range(first, last, block):
            row1 = min(last, row0 + block)
            transform_pixels(
                x, g, v, v_step, 0, row0, row1, pixels, geometry, place, False, width
            )
            transform_pixels(
                dy, g, grads, grads_step, 0, row0, row1, pixels,
                (size, taps, down, across, 0, 0), grads_place, True, width,
            )  # fmt: skip
            tiles = (row1 - row0) * across
            for k in range(positions):
                for c in range(0, place, strip):
                    _add_up(
                        grads, k * grads_step, grads_place, v, k * v_step + c, offsets, tiles,
                        min(VECTORS, (place - c) // width), outputs, flat,
                        (piece * positions + k) * outputs * place + c, place, row0 == first,
                    )  # fmt: skip


@njit(parallel=True, cache=True)
def _fold_pieces(sums, scratch, weight_grad, size, taps, width):
    """weight_grad of the sums of all pieces, which are added to the first's."""
    outputs, channels = weight_grad.shape[:2]
    pieces, positions, tall, place = sums.shape
    flat = sums.reshape(sums.size)
    for o in prange(outputs):
        for k in range(positions):
            total = sums[0, k, o]
            for piece in range(1, pieces):
                share = sums[piece, k, o]
                for c in range(place):
                    total[c] += share[c]
        _fold(
            flat, np.int64(o) * place, tall * place, scratch[get_thread_id()], weight_grad, o, 0,
            channels, size, taps, width,
        )  # fmt: skip


@njit(parallel=True, cache=True)
def _step_sums(
    grads, grads_step, v, v_step, sums, weight_grad, scratch, places, offsets, strips, step, size,
    taps, width,
):  # fmt: skip
    """Add up the products over one step's tiles, and fold the sums behind the last step.

    A task takes some blocks of outputs and a strip of channels, at all positions: sums (tasks or
    threads, positions, outputs, strip). `step`: (tiles, whether it is the first, the last).
    weight_grad (O, C, taps^2) = G^T dU G.
    """
    outputs, channels = weight_grad.shape[:2]
    grads_place, place = places
    positions, tall, strip = sums.shape[1:]
    tiles, is_first, is_last = step
    k_step, flat = tall * strip, sums.reshape(sums.size)
    for task in prange(-(-outputs // tall) * strips):
        part, s = split(task, strips)
        o0, c0 = part * tall, s * strip
        own = (get_thread_id() if is_first and is_last else np.int64(task)) * positions * k_step
        vectors = min(VECTORS, (place - c0) // width)
        for k in range(positions):
            _add_up(
                grads, k * grads_step + o0, grads_place, v, k * v_step + c0, offsets, tiles,
                vectors, min(tall, outputs - o0), flat, own + k * k_step, strip, is_first,
            )  # fmt: skip
        if is_last:
            for r in range(min(tall, outputs - o0)):
                _fold(
                    flat, own + r * strip, k_step, scratch[get_thread_id()], weight_grad, o0 + r,
                    c0, min(strip, channels - c0), size, taps, width,
                )  # fmt: skip


def _run_pieces(dy, x, weight_grad, geometry, places, width):
    size, taps, down, across = geometry[:4]
    rows, positions = len(x) * down, (size + taps - 1) ** 2
    # Shares of few tiles would take longer to add up than to make.
    pieces = min(MIN_TASKS, rows, max(2, rows * across // _PIECE_TILES))
    block = max(1, min(-(-rows // pieces), _PIECE_TILES // across))
    outputs = -(-dy.shape[2] // ROWS) * ROWS
    sums = workspace("filters", (pieces, positions, outputs, places[1]), x.dtype)
    tiles = block * across
    pixels = (block * size + taps - 1) * (across * size + taps - 1) + width
    length = positions * (tiles * sum(places) + 2 * SKEW) + ROWS + pixels * max(places)
    scratch = workspace("conv", (num_threads(), max(length, taps**2 * width)), x.dtype)
    offsets = np.arange(tiles) * places[1]
    for g in range(x.shape[1]):
        _by_pieces(dy, x, g, sums, scratch, geometry, places, offsets, block, width)
        _fold_pieces(sums, scratch, weight_grad[g], size, taps, width)


def _run_steps(dy, x, weight_grad, geometry, places, width):
    size, taps, down, across = geometry[:4]
    all_rows, positions = len(x) * down, (size + taps - 1) ** 2
    strip = VECTORS * width
    blocks, strips = -(-dy.shape[2] // ROWS), -(-places[1] // strip)
    tall = max(1, min(_MAX_BLOCKS, blocks * strips // MIN_TASKS)) * ROWS
    tasks = -(-dy.shape[2] // tall) * strips
    sum_bytes = tasks * positions * tall * strip * x.itemsize
    tile_bytes = positions * sum(places) * x.itemsize
    rows = step_rows(all_rows, across, tile_bytes, sum_bytes, _DEPTH)
    piece = -(-rows // MIN_TASKS)
    grads_step, v_step = (rows * across * place + SKEW for place in places)
    grads = workspace("products", (positions * grads_step + ROWS,), x.dtype)
    v = workspace("tiles", (positions * v_step,), x.dtype)
    pixels = (piece * size + taps - 1) * (across * size + taps - 1) + width
    length = max(pixels * max(places), taps**2 * width)
    scratch = workspace("conv", (num_threads(), length), x.dtype)
    # One step's sums fold at once: then a thread needs room for a task's alone.
    kept = num_threads() if rows == all_rows else tasks
    sums = workspace("filters", (kept, positions, tall, strip), x.dtype)
    offsets = np.arange(rows * across) * places[1]
    for g in range(x.shape[1]):
        for row0 in range(0, all_rows, rows):
            row1 = min(all_rows, row0 + rows)
            step_pixels(
                x, g, v, v_step, scratch, row0, row1, piece, geometry, places[1], False, width
            )
            step_pixels(
                dy, g, grads, grads_step, scratch, row0, row1, piece, (*geometry[:4], 0, 0),
                places[0], True, width,
            )  # fmt: skip
            step = (row1 - row0) * across, row0 == 0, row1 == all_rows
            _step_sums(
                grads, grads_step, v, v_step, sums, weight_grad[g], scratch, places, offsets,
                strips, step, size, taps, width,
            )  # fmt: skip


def weight_grad_winograd(dy, x, weight_shape, padding, size, groups=1):
    """The gradient by the weight, of `weight_shape`, of a convolution of stride 1, not empty."""
    outputs, channels, taps, _ = weight_shape
    outputs, width = outputs // groups, lanes(x.dtype)
    down, across = (-(-extent // size) for extent in dy.shape[2:])
    geometry = (size, taps, down, across, padding[0], padding[2])
    places = place_of(outputs, width), place_of(channels, width)
    weight_grad = empty((groups, outputs, channels, taps**2), x.dtype)
    sum_bytes = (size + taps - 1) ** 2 * outputs * places[1] * x.itemsize
    run = _run_pieces if sum_bytes <= _PIECE_BYTES else _run_steps
    run(grouped(dy, groups), grouped(x, groups), weight_grad, geometry, places, width)
    return weight_grad.reshape(weight_shape)
