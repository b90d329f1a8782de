"""Where convolutions go by Winograd's algorithm, and by which form of it."""

import numpy as np

from kernels.cpu.winograd_strided import taps_of
from kernels.cpu.winograd_tiles import FORMS
from kernels.dispatch import winograd_size

# Fewer channels, tiles or multiplications a product position are left to the other kernels.
_MIN_CHANNELS, _MIN_TILES, _MIN_MACS = 12, 16, 1 << 16


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
    thick = outputs >= _MIN_CHANNELS and channels >= _MIN_CHANNELS
    return thick and tiles >= _MIN_TILES and outputs * channels * tiles >= _MIN_MACS
