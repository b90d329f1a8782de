"""The gradient of small convolutions by their weights by Winograd's algorithm, transposed.

With U = G g G^T and the results of a tile Y = A^T (U V) A, V = B^T d B, what is summed over all
tiles for each of the 36 (or 16) positions k is a product again, after which G folds back,

    dU[k] (O, C) = sum over tiles of (A dy A^T)[k]^T V[k]        dg = G^T dU G,

with as few multiplications as forward. All threads transform the rows of tiles of x and
dy, then share out the positions; layout and transforms are those of kernels.cpu.winograd. The
errors are of the same size as there.
"""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.emitter import ROWS, VECTORS, lanes
from kernels.cpu.planes import grouped
from kernels.cpu.simd import product_tiles
from kernels.cpu.tasks import MIN_TASKS, split
from kernels.cpu.threads import num_threads
from kernels.cpu.winograd import SKEW, place_of, step_pixels, step_rows
from kernels.cpu.winograd_tiles import fold_tile
from kernels.cpu.workspace import empty, workspace

# Tiles that are added up in one go: their vectors stay in a first cache.
_DEPTH = 128


@njit(parallel=True, cache=True)
def _step_sums(grads, grads_step, v, v_step, sums, places, offsets, tiles, strips, width):
    """sums (products, outputs, channels) += grads^T v, over `tiles` tiles."""
    outputs, channels = places
    strip = VECTORS * width
    total = sums.reshape(sums.size)
    for task in prange(sums.shape[0] * strips):
        k, s = split(task, strips)
        vectors = min(VECTORS, (channels - s * strip) // width)
        for t in range(0, tiles, _DEPTH):
            depth = min(_DEPTH, tiles - t)
            for o in range(0, sums.shape[1], ROWS):
                product_tiles(
                    grads, k * grads_step + t * outputs + o, outputs,
                    v, k * v_step + s * strip, offsets, t, depth,
                    total, (k * sums.shape[1] + o) * channels + s * strip, channels, vectors, False,
                )  # fmt: skip


@njit(parallel=True, cache=True)
def _fold(sums, scratch, weight_grad, size, taps, width):
    """weight_grad (O, C, taps^2) = G^T dU G, from dU (products, outputs, channels)."""
    outputs, channels, area = weight_grad.shape
    place = sums.shape[2]
    k_step = sums.shape[1] * place
    flat = sums.reshape(sums.size)
    for o in prange(outputs):
        memory = scratch[get_thread_id()]
        for c in range(0, channels, width):
            source = np.int64(o) * place + c
            fold_tile(
                size, taps, flat, source, (size + taps - 1) * k_step, k_step, memory, 0,
                taps * width, width,
            )  # fmt: skip
            for lane in range(min(width, channels - c)):
                for k in range(area):
                    weight_grad[o, c + lane, k] = memory[k * width + lane]


def weight_grad_winograd(dy, x, weight_shape, padding, size, groups=1):
    """The gradient by the weight, of `weight_shape`, of a convolution of stride 1."""
    n, outputs, oh, ow = dy.shape
    channels, outputs = weight_shape[1], outputs // groups
    width, taps = lanes(x.dtype), weight_shape[2]
    products = (size + taps - 1) ** 2
    x, dy = grouped(x, groups), grouped(dy, groups)
    geometry = (size, taps, -(-oh // size), -(-ow // size), padding[0], padding[2])
    down, across = geometry[2:4]
    places = place_of(outputs, width), place_of(channels, width)
    sums = workspace(
        "filters", (products, -(-outputs // ROWS) * ROWS, places[1]), x.dtype
    )
    tile_bytes = products * sum(places) * x.itemsize
    rows = step_rows(n * down, across, tile_bytes, sums.nbytes, _DEPTH)
    piece = -(-rows // MIN_TASKS)
    grads_step, v_step = (rows * across * place + SKEW for place in places)
    grads = workspace("products", (products * grads_step + ROWS,), x.dtype)
    v = workspace("tiles", (products * v_step,), x.dtype)
    pixels = (piece * size + taps - 1) * (across * size + taps - 1) + width
    length = max(pixels * max(places), taps**2 * width)
    scratch = workspace("conv", (num_threads(), length), x.dtype)
    offsets = np.arange(rows * across) * places[1]
    strips = -(-places[1] // (VECTORS * width))
    weight_grad = empty((groups, outputs, channels, taps**2), x.dtype)
    for g in range(groups):
        sums[...] = 0
        for row0 in range(0, n * down, rows):
            row1 = min(n * down, row0 + rows)
            step_pixels(
                x, g, v, v_step, scratch, row0, row1, piece, geometry, places[1], False, width
            )
            step_pixels(
                dy, g, grads, grads_step, scratch, row0, row1, piece, (*geometry[:4], 0, 0),
                places[0], True, width,
            )  # fmt: skip
            tiles = (row1 - row0) * across
            _step_sums(
                grads, grads_step, v, v_step, sums, places, offsets, tiles, strips, width
            )
        _fold(sums, scratch, weight_grad[g], size, taps, width)
    return weight_grad.reshape(weight_shape)
