"""What is different on a GPU: the clock, the ceilings, memory, and PyTorch's settings."""

import numpy as np

from kernels.cuda import runtime
from kernels.study.ceilings import Ceilings
from kernels.study.timing import interleaved

# A product that fills every GPU for milliseconds, and arrays far larger than its caches.
SIDE = 8192
VALUES = 1 << 27
NO_PEER = "PyTorch finds no CUDA device, so only minidl is measured."


def seconds(run, calls: int) -> float:
    """Seconds of one call, by CUDA events around `calls` of them on the default stream.

    PyTorch and CuPy share that stream. Where the GPU waits for Python, the waiting is in it.
    """
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1000 / calls


def measure_ceilings(rounds: int) -> Ceilings:
    """The best of `rounds` runs of cuBLAS on a large float32 product, and of a copy.

    The product is made as `dispatch.precision` says.
    """
    return Ceilings(_product_rate(rounds), _copy_rate(rounds))


def _product_rate(rounds):
    import cupy

    a, b, product = (cupy.full((SIDE, SIDE), value, np.float32) for value in (1.5, 0.5, 0))
    runs = {"product": lambda: runtime.gemm(a, b, product)}
    return 2 * SIDE**3 / min(interleaved(runs, rounds, clock=seconds)["product"])


def _copy_rate(rounds):
    import cupy

    source, target = cupy.zeros(VALUES, np.float32), cupy.empty(VALUES, np.float32)

    def copy():
        target[...] = source

    return 2 * source.nbytes / min(interleaved({"copy": copy}, rounds, clock=seconds)["copy"])


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


def peak_bytes(candidate: str) -> int:
    """GPU memory that `candidate`'s allocator has taken for arrays, at most, in this process."""
    if candidate == "PyTorch":
        import torch

        return torch.cuda.max_memory_reserved()
    import cupy

    return cupy.get_default_memory_pool().total_bytes()  # it gives nothing back unasked


def set_torch_precision(precision: str) -> None:
    """Let PyTorch make its products as exactly as minidl, and choose its algorithms by trial."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
