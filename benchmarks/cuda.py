"""What is different on a GPU: the clock, the ceilings, memory, and PyTorch's settings."""

from kernels.study.device import measure_ceilings, seconds

__all__ = ["about", "measure_ceilings", "peak_bytes", "seconds", "set_torch_precision"]
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
