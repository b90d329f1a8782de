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

    def launch(self, source, kernel, dtype, args) -> None:
        """Run `kernel` on a block a part; it takes the five numbers below after `args`."""
        channels, positions, part, parts = runtime.ints(
            self.channels, self.positions, PART, self.parts
        )
        args = (*args, channels, positions, self.length, part, parts)
        runtime.launch(
            source, kernel, dtype, self.channels * self.parts, runtime.THREADS, args
        )


def sum_parts(sums, cut, dtype):
    """(C,) in `dtype` from the sums of all parts, float64 (C, parts)."""
    y = runtime.empty((cut.channels,), dtype)
    args = (sums, y, *runtime.ints(cut.channels, cut.parts))
    runtime.launch_warps("reduce", "channel_sums", dtype, cut.channels, args)
    return y


def channel_sums(x):
    """See kernels.reference.channel_sums."""
    check_channels(x)
    x = runtime.contiguous(x)
    cut = ChannelParts.of(x)
    sums = runtime.empty((cut.channels, cut.parts), np.float64)
    cut.launch("reduce", "part_sums", x.dtype, (x, sums))
    return sum_parts(sums, cut, x.dtype)
