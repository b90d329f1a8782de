"""Convolution by Winograd."""

import numpy as np
from numba import get_thread_id, njit, prange

from kernels.cpu.blas import gemm
from kernels.cpu.tasks import chunk_bounds, split
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
_FILTER_ROWS = 32
_CHANNELS = 8


@njit(inline="always")
def _width(tiles):
    """Columns of a product: the tiles, rounded up to whole vectors."""
    return -(-tiles // 16) * 16


@njit(parallel=True, cache=True)
def _filters(weight, u, size):
    outputs, channels = weight.shape[:2]
    lanes = -(-channels // LANES)
    for task in prange(lanes * -(-outputs // _FILTER_ROWS)):
        band, lane = split(task, lanes)
        o0, o1 = chunk_bounds(band, _FILTER_ROWS, outputs)
        c0, c1 = chunk_bounds(lane, LANES, channels)
        transform_filters(weight, u, o0, o1, c0, c1, size)


@njit(parallel=True, cache=True)
def _by_blocks(x, u, bias, y, scratch, tiles, block, grid):
    """A task takes `block` tiles from pixels to result, in its thread's scratch memory."""
    products, outputs, channels = u.shape
    for task in prange(-(-tiles // block)):
        start, stop = chunk_bounds(task, block, tiles)
        memory = scratch[get_thread_id()]
        v = memory[: products * channels * block].reshape(products, channels, block)
        m = memory[v.size :].reshape(products, outputs, block)
        width = _width(stop - start)
        transform_input(x, v, 0, channels, start, stop, grid)
        for k in range(products):
            gemm(u[k], v[k, :, :width], m[k, :, :width], False)
        transform_output(m, bias, y, 0, outputs, start, stop, grid)


@njit(parallel=True, cache=True)
def _by_steps(x, u, bias, y, v, m, start, stop, grid):
    """All threads take the tiles start:stop through each step together."""
    products, outputs, channels = u.shape
    width = _width(stop - start)
    for task in prange(-(-channels // _CHANNELS)):
        c0, c1 = chunk_bounds(task, _CHANNELS, channels)
        transform_input(x, v, c0, c1, start, stop, grid)
    for k in prange(products):
        gemm(u[k], v[k, :, :width], m[k, :, :width], False)
    for task in prange(-(-outputs // _CHANNELS)):
        o0, o1 = chunk_bounds(task, _CHANNELS, outputs)
        transform_output(m, bias, y, o0, o1, start, stop, grid)


def _block_tiles(channels, outputs, products, itemsize):
    tiles = BLOCK_BYTES // ((channels + outputs) * products * itemsize)
    return min(MAX_TILES, max(MIN_TILES, tiles // LANES * LANES))


def conv2d_winograd(x, weight, bias, y, padding, size):
    """Write conv(x, weight) + bias into y."""
    n, outputs, oh, ow = y.shape
    channels = x.shape[1]
    products = (size + 2) ** 2
    u = workspace("filters", (products, outputs, channels), x.dtype)
    _filters(weight, u, size)
    down, across = -(-oh // size), -(-ow // size)
    grid = (size, down, across, padding[0], padding[2])
    tiles = n * down * across
    x = np.ascontiguousarray(x)
    block = _block_tiles(channels, outputs, products, x.itemsize)
    if tiles >= MIN_BLOCKS * block:
        scratch = workspace(
            "conv", (num_threads(), products * (channels + outputs) * block), x.dtype
        )
        _by_blocks(x, u, bias, y, scratch, tiles, block, grid)
        return
    steps = -(-tiles // STEP_TILES)
    block = -(-tiles // (steps * LANES)) * LANES
    memory = workspace("conv", (products * (channels + outputs) * block,), x.dtype)
    v = memory[: products * channels * block].reshape(products, channels, block)
    m = memory[v.size :].reshape(products, outputs, block)
    for start in range(0, tiles, block):
        _by_steps(x, u, bias, y, v, m, start, min(tiles, start + block), grid)
