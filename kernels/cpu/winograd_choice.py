"""Where convolutions go by Winograd's algorithm, and by which form of it."""

import math

import numpy as np

from kernels.cpu.emitter import lanes
from kernels.cpu.winograd import place_of
from kernels.cpu.winograd_strided import taps_of
from kernels.cpu.winograd_tiles import FORMS
from kernels.dispatch import winograd_size

# Fewer channels, tiles or multiplications a product position are left to the other kernels.
_MIN_CHANNELS, _MIN_TILES, _MIN_MACS = 12, 16, 1 << 16
# So many times fewer multiplications make up for what the gradient by the weight has to do beside
# them: transforms of two operands, and sums for every pair of channels. Few pairs share them less.
_MIN_SAVED, _MIN_SAVED_BY_FEW, _MANY_PAIRS = 1.8, 2.5, 1 << 10


def winograd_outputs(kernel: int, stride: int) -> int | None:
    """m of F(m x m, r x r), r the taps that a kernel has in a phase; None where there is no form.

    The tile has m + r - 1 pixels whatever the kernel, as `kernels.dispatch.winograd` chooses.
    """
    size, taps = winograd_size(), taps_of(kernel, stride)
    if size is None or (size + 3 - taps, taps) not in FORMS:
        return None
    return size + 3 - taps


def is_winograd(
    result, y_shape, x_shape, weight_shape, stride, dilation, groups: int, dtype
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
    if result == "dw":
        # The multiplications saved, of whole tiles and of pixels filled up to whole vectors.
        filled = channels / place_of(channels, lanes(dtype))
        plain = kernel**2 * math.prod(y_shape[2:]) * y_shape[0]
        saved = plain * filled / max(1, step**2 * (size + taps_of(kernel, step) - 1) ** 2 * tiles)
        if saved < (_MIN_SAVED if outputs * channels >= _MANY_PAIRS else _MIN_SAVED_BY_FEW):
            return False
    return tiles >= _MIN_TILES and outputs * channels * tiles >= _MIN_MACS
