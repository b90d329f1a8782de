"""Convolution by Winograd."""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.blas import gemm
from kernels.cpu.tasks import chunk_bounds
from kernels.cpu.threads import num_threads
from kernels.cpu.winograd_tiles import (
    LANES,
    transform_filters,
    transform_input,
    transform_output,
)
from kernels.cpu.workspace import workspace

BLOCK_BYTES = 2 << 20
MIN_TILES, MAX_TILES = 32, 256
MIN_BLOCKS = 8
STEP_TILES = 256
_CHANNELS = 8
_SKEW = 32


@njit(parallel=True, cache=True)
def _filters(weight, u, size):
    outputs = weight.shape[0]
    for task in prange(-(-outputs // _CHANNELS)):
        o0, o1 = chunk_bounds(task, _CHANNELS, outputs)
        transform_filters(weight, u, o0, o1, size)


@njit(inline="always")
def _product(u, v, m, k, sizes, count):
    """Matrix k of m = matrix k of u times matrix k of v, for the first `count` tiles."""
    outputs, channels, tiles = sizes
    width = -(-count // 16) * 16
    gemm(
        u[k, : outputs * channels].reshape(outputs, channels),
        v[k, : channels * tiles].reshape(channels, tiles)[:, :width],
        m[k, : outputs * tiles].reshape(outputs, tiles)[:, :width],
        False,
    )


@njit(parallel=True, cache=True)
def _by_blocks(x, u, bias, y, scratch, block, grid):
    """A task takes `block` tiles from pixels to result, in its thread's scratch memory."""
    products = u.shape[0]
    channels, outputs = x.shape[1], y.shape[1]
    tiles = x.shape[0] * grid[1] * grid[2]
    sizes = (outputs, channels, block)
    inner = channels * block + _SKEW
    for task in prange(-(-tiles // block)):
        start, stop = chunk_bounds(task, block, tiles)
        memory = scratch[get_thread_id()]
        v = memory[: products * inner].reshape(products, inner)
        m = memory[products * inner :].reshape(products, outputs * block + _SKEW)
        transform_input(x, v, block, 0, channels, start, stop, grid)
        for k in range(products):
            _product(u, v, m, k, sizes, stop - start)
        transform_output(m, block, bias, y, 0, outputs, start, stop, grid)


@njit(parallel=True, cache=True)
def _by_steps(x, u, bias, y, v, m, block, start, stop, grid):
    """All threads take the tiles start:stop through each step together."""
    channels, outputs = x.shape[1], y.shape[1]
    sizes = (outputs, channels, block)
    for task in prange(-(-channels // _CHANNELS)):
        c0, c1 = chunk_bounds(task, _CHANNELS, channels)
        transform_input(x, v, block, c0, c1, start, stop, grid)
    for k in prange(u.shape[0]):
        _product(u, v, m, k, sizes, stop - start)
    for task in prange(-(-outputs // _CHANNELS)):
        o0, o1 = chunk_bounds(task, _CHANNELS, outputs)
        transform_output(m, block, bias, y, o0, o1, start, stop, grid)


def _block_tiles(channels, outputs, products, itemsize):
    tiles = BLOCK_BYTES // ((channels + outputs) * products * itemsize)
    return min(MAX_TILES, max(MIN_TILES, tiles // LANES * LANES))


def conv2d_winograd(x, weight, bias, y, padding, size):
    """Write conv(x, weight) + bias into y."""
    n, outputs, oh, ow = y.shape
    channels = x.shape[1]
    products = (size + 2) ** 2
    u = workspace("filters", (products, outputs * channels + _SKEW), x.dtype)
    _filters(weight, u, size)
    grid = (size, -(-oh // size), -(-ow // size), padding[0], padding[2])
    tiles = n * grid[1] * grid[2]
    x = np.ascontiguousarray(x)
    block = _block_tiles(channels, outputs, products, x.itemsize)
    if tiles >= MIN_BLOCKS * block:
        size = products * ((channels + outputs) * block + 2 * _SKEW)
        scratch = workspace("conv", (num_threads(), size), x.dtype)
        _by_blocks(x, u, bias, y, scratch, block, grid)
        return
    steps = -(-tiles // STEP_TILES)
    block = -(-tiles // (steps * LANES)) * LANES
    v = workspace("tiles", (products, channels * block + _SKEW), x.dtype)
    m = workspace("products", (products, outputs * block + _SKEW), x.dtype)
    for start in range(0, tiles, block):
        _by_steps(x, u, bias, y, v, m, block, start, min(tiles, start + block), grid)
