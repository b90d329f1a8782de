"""What is different on a GPU: the clock, the ceilings, memory, and PyTorch's settings."""

import gc
from collections.abc import Callable

from kernels.cuda import recording
from kernels.study.device import measure_ceilings, seconds

__all__ = ["about", "made", "measure_ceilings", "seconds", "set_torch_precision"]
# A captured run is itself, then recorded, then replayed.
_FIRST_CALLS = 3
NO_PEER = "PyTorch finds no CUDA device, so only minidl is measured."


def about() -> dict:
    """The GPU and the libraries that drive it."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "gpu": properties["name"].decode(),
        "cupy": cupy.__version__,
        "cuda": cupy.cuda.runtime.runtimeGetVersion(),
        "driver": cupy.cuda.runtime.driverGetVersion(),
    }


def made(candidate: str, make: Callable[[], Callable]) -> tuple[Callable, int]:
    """make()'s run, ready to be measured, and the GPU memory that `candidate`'s allocator took for
    it at most, while it was made and called for the first times.

    In this process: what is cached of earlier work is given back first.
    """
    gc.collect()
    reset, now, peak = _torch_memory() if candidate.startswith("PyTorch") else _cupy_memory()
    reset()
    before, most, run = now(), 0, make()
    for _ in range(_FIRST_CALLS):
        run()
        most = max(most, peak())
    return run, most - before


def _cupy_memory():
    from cupy import get_default_memory_pool

    def total():
        return get_default_memory_pool().total_bytes() + recording.held_bytes()

    # What is held in the end is the most there was: a pool gives nothing back unasked.
    return get_default_memory_pool().free_all_blocks, total, total


def _torch_memory():
    from torch import cuda

    def reset():
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()

    return reset, cuda.memory_reserved, cuda.max_memory_reserved


def set_torch_precision(precision: str) -> None:
    """Let PyTorch make its products as exactly as minidl, and choose its algorithms by trial."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
