"""Winograd convolution with 3x3 kernels at stride 1: a quarter of the multiplications.

The definition and the algebra stand in kernels.reference.winograd, the transforms in
kernels.cpu.winograd_tiles. Here the work is cut:

* **by blocks**, where there are many tiles: a task takes a block of them from pixels to result, in
  scratch memory of its thread, so that what is transformed stays near its core: V of all channels,
  36 (or 16) products M = U V, and the results;
* **by steps**, where there are few (deep layers of small images): all threads transform the
  channels, then share out the products, then the channels of the result.

The gradient by the input is the same convolution of dy. How the work is cut depends on the shapes
alone, never on the number of threads, and so do the results, to the last bit.

Errors in float32, the largest over the largest result, on the 3x3 layers of VGG and ResNet: F(4x4)
6e-6 to 1.4e-5, F(2x2) 3e-7 to 7e-7, by columns 2e-7 to 5e-7. `kernels.dispatch.winograd` chooses.
A NaN spreads over the results of its whole tile, and an infinity becomes NaN there.

Processor time of F(4x4, 3x3), and that of the columns of kernels.cpu.conv, over that of PyTorch
2.13.0 (one thread, AVX-512, float32, the filters' transform included):

    N, C, H, O          forward          gradient by the input
    4, 64, 224, 64      0.54 (1.24)      0.55 (1.27)
    4, 128, 112, 128    0.58 (1.34)      0.59 (1.27)
    4, 256, 56, 256     0.62 (1.42)      0.64 (1.30)
    4, 512, 28, 512     0.56 (1.52)      0.56 (1.36)
    4, 512, 14, 512     0.99 (1.61)      1.02 (1.64)
    16, 64, 56, 64      0.87 (2.02)      0.84 (1.86)
    16, 128, 28, 128    0.82 (1.93)      0.81 (1.58)
    16, 256, 14, 256    0.92 (1.81)      0.90 (1.44)
    16, 512, 7, 512     1.06 (1.91)      1.16 (1.76)

In the last rows a quarter of the time goes into the filters, which have as many values as the
tiles.
"""

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
from kernels.dispatch import winograd_size

# Tiles of a block, down to half as many to make this many blocks, enough for several cores; with
# fewer BLAS spends its time on packing the filters.
BLOCK_TILES, MIN_BLOCKS = 128, 8
STEP_TILES = 256
# Channels that a task of a step transforms.
_CHANNELS = 8
# Values between one matrix and the next. Without them all 36 would begin at multiples of the page
# size, where they displace each other from the cache.
_SKEW = 32
# The columns of the products are rounded up to whole vectors, for which BLAS is faster.
_VECTOR = 16
# Fewer channels, tiles or multiplications a product position are left to the other kernels.
_MIN_CHANNELS, _MIN_TILES, _MIN_MACS = 16, 16, 1 << 16


def is_winograd(y_shape, weight_shape, stride, dilation, groups: int, dtype) -> bool:
    """True where these kernels are allowed and the faster ones, as measured on one core.

    `y_shape` is that of the result: of the outputs, or of the gradient by the input.
    """
    size = winograd_size()
    if size is None or dtype != np.float32 or groups > 1:
        return False
    if weight_shape[2:] != (3, 3) or stride != (1, 1) or dilation != (1, 1):
        return False
    outputs, channels = weight_shape[:2]
    tiles = y_shape[0] * -(-y_shape[2] // size) * -(-y_shape[3] // size)
    thick = outputs >= _MIN_CHANNELS and channels >= _MIN_CHANNELS
    return thick and tiles >= _MIN_TILES and outputs * channels * tiles >= _MIN_MACS


@njit(parallel=True, cache=True)
def _filters(weight, u, size, turned):
    """u (36 or 16, O C + _SKEW), the transforms of weight (O, C, 9)."""
    outputs = weight.shape[0]
    for task in prange(-(-outputs // _CHANNELS)):
        o0, o1 = chunk_bounds(task, _CHANNELS, outputs)
        transform_filters(weight, u, o0, o1, size, turned)


@njit(inline="always")
def _product(u, v, m, k, sizes, count, turned):
    """Matrix k of m = matrix k of u, or its transpose, times that of v; of `count` tiles."""
    outputs, channels, tiles = sizes
    width = -(-count // _VECTOR) * _VECTOR
    filters = u[k, : outputs * channels]
    pixels = v[k, : channels * tiles].reshape(channels, tiles)[:, :width]
    result = m[k, : outputs * tiles].reshape(outputs, tiles)[:, :width]
    if turned:
        gemm(filters.reshape(channels, outputs).T, pixels, result, False)
    else:
        gemm(filters.reshape(outputs, channels), pixels, result, False)


@njit(parallel=True, cache=True)
def _by_blocks(x, u, bias, y, scratch, block, turned, grid):
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
            _product(u, v, m, k, sizes, stop - start, turned)
        transform_output(m, block, bias, y, 0, outputs, start, stop, grid)


@njit(parallel=True, cache=True)
def _by_steps(x, u, bias, y, v, m, block, turned, start, stop, grid):
    """All threads take the tiles start:stop through each step together."""
    channels, outputs = x.shape[1], y.shape[1]
    sizes = (outputs, channels, block)
    for task in prange(-(-channels // _CHANNELS)):
        c0, c1 = chunk_bounds(task, _CHANNELS, channels)
        transform_input(x, v, block, c0, c1, start, stop, grid)
    for k in prange(u.shape[0]):
        _product(u, v, m, k, sizes, stop - start, turned)
    for task in prange(-(-outputs // _CHANNELS)):
        o0, o1 = chunk_bounds(task, _CHANNELS, outputs)
        transform_output(m, block, bias, y, o0, o1, start, stop, grid)


def conv2d_winograd(x, weight, bias, y, padding, size):
    """Write conv(x, weight) + bias of stride 1, by F(size x size, 3x3), into y, C-contiguous."""
    _convolve(x, weight, bias, y, padding, size, False)


def input_grad_winograd(dy, weight, dx, padding, size):
    """Write the gradient by the input into dx, C-contiguous.

    It is the convolution of dy, padded by 2 - p (less than nothing, where p > 2: pixels are left
    out), with the filters turned round and their channels exchanged.
    """
    bias = np.zeros(dx.shape[1], dx.dtype)
    _convolve(dy, weight, bias, dx, tuple(2 - p for p in padding), size, True)


def _convolve(x, weight, bias, y, padding, size, turned):
    """y = conv(x, weight) + bias, or, if `turned`, the convolution of `input_grad_winograd`.

    The channels are exchanged by multiplying with the transposes of the transformed filters.
    """
    n, outputs, oh, ow = y.shape
    if not y.size:
        return
    x, bias = np.ascontiguousarray(x), np.ascontiguousarray(bias)
    channels = x.shape[1]
    products = (size + 2) ** 2
    u = workspace("filters", (products, outputs * channels + _SKEW), x.dtype)
    taps = np.ascontiguousarray(weight).reshape(*weight.shape[:2], 9)
    _filters(taps, u, size, turned)
    grid = (size, -(-oh // size), -(-ow // size), padding[0], padding[2])
    tiles = n * grid[1] * grid[2]
    block = min(BLOCK_TILES, max(BLOCK_TILES // 2, tiles // MIN_BLOCKS // LANES * LANES))
    if tiles >= MIN_BLOCKS * block:
        length = products * ((channels + outputs) * block + 2 * _SKEW)
        scratch = workspace("conv", (num_threads(), length), x.dtype)
        _by_blocks(x, u, bias, y, scratch, block, turned, grid)
        return
    block = min(STEP_TILES, -(-tiles // LANES) * LANES)
    v = workspace("tiles", (products, channels * block + _SKEW), x.dtype)
    m = workspace("products", (products, outputs * block + _SKEW), x.dtype)
    for start in range(0, tiles, block):
        stop = min(tiles, start + block)
        _by_steps(x, u, bias, y, v, m, block, turned, start, stop, grid)
