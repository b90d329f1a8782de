"""Sums by channel on the GPU; the definition stands in kernels.reference.reduce."""

import math
from dataclasses import dataclass

import numpy as np

from kernels.cuda import runtime
from kernels.cuda.packs import pack_size
from kernels.geometry import check_channels

MAX_THREADS = 1024  # of a block, where each holds one array's values
# Packs of a part that a thread holds, as channels.cuh has it.
SHARE = 4


@dataclass(frozen=True)
class ChannelParts:
    """How the channels of x (N, C, ...) are cut into parts, one a block (see channels.cuh)."""

    channels: int
    positions: int
    length: int
    part: int
    parts: int
    threads: int

    @classmethod
    def of(cls, x, share=SHARE, most=MAX_THREADS) -> "ChannelParts":
        """Those of the array x, for blocks of at most so many threads that hold `share` packs.

        A channel is one part if a block can hold it, and else cut evenly for smaller blocks, of
        which a processor has several.
        """
        channels, positions = x.shape[1], math.prod(x.shape[2:])
        length, pack = x.shape[0] * positions, pack_size(x.dtype)
        held = share * pack
        if length <= most * held:
            parts, part = 1, length
            threads = max(1, runtime.blocks(length, runtime.WARP * held)) * runtime.WARP
        else:
            parts, threads = runtime.blocks(length, runtime.THREADS * held), runtime.THREADS
            part = runtime.blocks(length, parts * pack) * pack
            parts = runtime.blocks(length, part)
        return cls(channels, max(1, positions), length, part, parts, threads)

    def launch(self, source, kernel, dtype, args) -> None:
        """Run `kernel` on a block a part; it takes the five numbers below after `args`."""
        channels, positions, part, parts = runtime.ints(
            self.channels, self.positions, self.part, self.parts
        )
        args = (*args, channels, positions, self.length, part, parts)
        runtime.launch(source, kernel, dtype, self.channels * self.parts, self.threads, args)

    def launch_sums(self, source, kernel, dtype, args):
        """Run `kernel`, which leaves sums of parts; (C,) in `dtype`, the sums of channels.

        It takes after `args` float64 (C, parts), or, where a channel is one part, the result.
        """
        y = runtime.empty((self.channels,), dtype)
        if self.parts == 1:
            self.launch(source, kernel, dtype, (*args, None, y))
            return y
        sums = runtime.empty((self.channels, self.parts), np.float64)
        self.launch(source, kernel, dtype, (*args, sums, None))
        args = (sums, y, *runtime.ints(self.channels, self.parts))
        runtime.launch_warps("reduce", "channel_sums", dtype, self.channels, args)
        return y


def channel_sums(x):
    """See kernels.reference.channel_sums."""
    check_channels(x)
    x = runtime.contiguous(x)
    return ChannelParts.of(x).launch_sums("reduce", "part_sums", x.dtype, (x,))
