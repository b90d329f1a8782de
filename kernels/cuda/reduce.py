"""Sums by channel on the GPU; the definition stands in kernels.reference.reduce."""

import math
from dataclasses import dataclass

import numpy as np

from kernels.cuda import runtime
from kernels.geometry import check_channels

# Values a block reduces: enough to hide its start, few enough to give every processor several.
PART = 8192


@dataclass(frozen=True)
class ChannelParts:
    """How the channels of x (N, C, ...) are cut into parts, one a block (see channels.cuh)."""

    channels: int
    positions: int
    length: int

    @classmethod
    def of(cls, x) -> "ChannelParts":
        """Those of the array x."""
        positions = math.prod(x.shape[2:])
        return cls(x.shape[1], positions, x.shape[0] * positions)

    @property
    def parts(self) -> int:
        """How many a channel has; none where there are no values."""
        return runtime.blocks(self.length, PART)

    @property
    def arguments(self) -> tuple:
        """What a kernel over parts takes last: channels, positions, length, part, parts."""
        return (
            np.int32(self.channels), np.int32(self.positions), self.length, np.int32(PART),
            np.int32(self.parts),
        )  # fmt: skip

    def launch(self, source, kernel, dtype, args) -> None:
        """Run `kernel` on a block a part, with these arguments after `args`."""
        grid = self.channels * self.parts
        runtime.launch(source, kernel, dtype, grid, runtime.THREADS, (*args, *self.arguments))

    def launch_warps(self, source, kernel, dtype, args) -> None:
        """Run `kernel` on a warp a channel."""
        runtime.launch_elements(source, kernel, dtype, 32 * self.channels, args)


def sum_parts(sums, cut, dtype):
    """(C,) in `dtype` from the sums of all parts, float64 (C, parts)."""
    y = runtime.empty((cut.channels,), dtype)
    numbers = np.int32(cut.channels), np.int32(cut.parts)
    cut.launch_warps("reduce", "channel_sums", dtype, (sums, y, *numbers))
    return y


def channel_sums(x):
    """See kernels.reference.channel_sums."""
    check_channels(x)
    x = runtime.contiguous(x)
    cut = ChannelParts.of(x)
    sums = runtime.empty((cut.channels, cut.parts), np.float64)
    cut.launch("reduce", "part_sums", x.dtype, (x, sums))
    return sum_parts(sums, cut, x.dtype)
