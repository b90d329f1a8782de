"""Where convolutions go by Winograd's algorithm, and by which form of it."""

import math
from functools import lru_cache

import numpy as np

from kernels.cpu.emitter import lanes
from kernels.cpu.winograd import place_of
from kernels.cpu.winograd_strided import taps_of
from kernels.cpu.winograd_tiles import FORMS
from kernels.dispatch import winograd_size

# Fewer channels, tiles or multiplications a product position are left to the other kernels.
_MIN_CHANNELS, _MIN_TILES, _MIN_MACS = 12, 16, 1 << 16
# So many times fewer multiplications make up for the transforms, not counting those by zeros of the
# padding, which kernels.cpu.conv_gathered leaves out. The gradient by the weight has two operands
# to transform, and sums for every pair of channels; few pairs share the former less.
_MIN_SAVED, _MIN_SAVED_BY_FEW, _MANY_PAIRS = 1.8, 2.5, 1 << 10


def winograd_outputs(kernel: int, stride: int) -> int | None:
    """m of F(m x m, r x r), r the taps that a kernel has in a phase; None where there is no form.

    The tile has m + r - 1 pixels whatever the kernel, as `kernels.dispatch.winograd` chooses.
    """
    size, taps = winograd_size(), taps_of(kernel, stride)
    if size is None or (size + 3 - taps, taps) not in FORMS:
        return None
    return size + 3 - taps


@lru_cache(maxsize=256)
def _met(size, extent, taps, stride, before):
    """How many pairs of an output and a tap meet a pixel, along one axis."""
    places = np.add.outer(np.arange(size) * stride, np.arange(taps)) - before
    return int(((places >= 0) & (places < extent)).sum())


def is_winograd(
    result, y_shape, x_shape, weight_shape, stride, padding, dilation, groups: int, dtype
) -> bool:
    """True where these kernels are allowed and the faster ones, as measured.

    `result`: "y", "dx" or "dw".
    """
    kernel, step = weight_shape[2], stride[0]
    if dtype != np.float32 or dilation != (1, 1):
        return False
    if weight_shape[3] != kernel or stride != (step, step):
        return False
    size = winograd_outputs(kernel, step)
    if size is None:
        return False
    outputs, channels = weight_shape[0] // groups, weight_shape[1] * step**2
    image = x_shape if result == "dx" and step == 1 else y_shape
    tiles = image[0] * -(-image[2] // size) * -(-image[3] // size)
    if min(outputs, channels) < _MIN_CHANNELS:
        return False
    if tiles < _MIN_TILES or outputs * channels * tiles < _MIN_MACS:
        return False
    fewest = _MIN_SAVED
    if result == "dw":
        # Pixels are filled up to whole vectors.
        plain = kernel**2 * math.prod(y_shape[2:]) * channels / place_of(channels, lanes(dtype))
        if outputs * channels < _MANY_PAIRS:
            fewest = _MIN_SAVED_BY_FEW
    else:
        axes = zip(y_shape[2:], x_shape[2:], (padding[0], padding[2]), strict=True)
        plain = math.prod(_met(y, x, kernel, step, before) for y, x, before in axes)
    return plain * y_shape[0] >= fewest * (step * (size + taps_of(kernel, step) - 1)) ** 2 * tiles
