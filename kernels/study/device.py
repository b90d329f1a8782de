"""The clock and the ceilings of a GPU."""

import numpy as np

from kernels.cuda import runtime
from kernels.study.ceilings import Ceilings
from kernels.study.timing import interleaved

# A product that fills every GPU for milliseconds, and arrays far larger than its caches.
SIDE = 8192
VALUES = 1 << 27


def seconds(run, calls: int) -> float:
    """Seconds of one call, by CUDA events around `calls` of them on the default stream.

    PyTorch and CuPy share that stream. Where the GPU waits for Python, the waiting is in it.
    """
    cupy = runtime.array_module()

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
    cupy = runtime.array_module()

    a, b, product = (cupy.full((SIDE, SIDE), value, np.float32) for value in (1.5, 0.5, 0))
    runs = {"product": lambda: runtime.gemm(a, b, product)}
    return 2 * SIDE**3 / min(interleaved(runs, rounds, clock=seconds)["product"])


def _copy_rate(rounds):
    cupy = runtime.array_module()

    source, target = cupy.zeros(VALUES, np.float32), cupy.empty(VALUES, np.float32)

    def copy():
        target[...] = source

    return 2 * source.nbytes / min(interleaved({"copy": copy}, rounds, clock=seconds)["copy"])
