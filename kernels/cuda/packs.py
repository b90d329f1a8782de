"""Launches of kernels whose threads take 16 bytes of every array (see packs.cuh)."""

import math

from kernels.cuda import runtime

_PACK_BYTES = 16


def pack_size(dtype) -> int:
    """How many elements are a pack."""
    return _PACK_BYTES // dtype.itemsize


def launch_packs(source, kernel, x, args) -> None:
    """Run `kernel` on the elements of x, a pack a thread; it takes their number after `args`."""
    threads = runtime.blocks(x.size, pack_size(x.dtype))
    runtime.launch_elements(source, kernel, x.dtype, threads, (*args, x.size))


def launch_channel_packs(source, kernel, x, args) -> None:
    """`launch_packs` on x (N, C, ...); the kernel also takes C and the size of a plane before."""
    geometry = runtime.ints(x.shape[1], math.prod(x.shape[2:]))
    launch_packs(source, kernel, x, (*args, *geometry))
