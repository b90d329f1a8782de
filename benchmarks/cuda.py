"""What is different on a GPU: the clock, the ceilings, memory, and PyTorch's settings."""

import gc
from collections.abc import Callable

from kernels.cuda import recording
from kernels.study.device import measure_ceilings, seconds

__all__ = ["about", "measure_ceilings", "peak_bytes", "seconds", "set_torch_precision"]
# A captured run is itself, then recorded, then replayed.
CALLS = 3
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


def peak_bytes(candidate: str, make: Callable[[], Callable]) -> int:
    """GPU memory that `candidate`'s allocator takes for arrays, at most, while make()() runs.

    In this process: what is cached of earlier work is given back first.
    """
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    if candidate.startswith("PyTorch"):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        _call(make())
        return torch.cuda.max_memory_reserved()
    return max(_call(make(), _cupy_bytes))


def _call(run, look=lambda: 0):
    """What look() gives after each of the calls in which all is made: optimiser state, graphs."""
    return [(run(), look())[1] for _ in range(CALLS)]


def _cupy_bytes():
    import cupy

    return cupy.get_default_memory_pool().total_bytes() + recording.held_bytes()


def set_torch_precision(precision: str) -> None:
    """Let PyTorch make its products as exactly as minidl, and choose its algorithms by trial."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
