"""The one door from minidl to array libraries: whether an array is NumPy's or CuPy's."""

import sys
from types import ModuleType

import numpy as np


def get_array_module(array) -> ModuleType:
    """The module whose functions work on `array`: ``numpy``, or ``cupy`` for a CuPy array."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    raise TypeError(f"array must be a NumPy or CuPy array, got {type(array).__name__}")


def is_array(value) -> bool:
    """True for a NumPy or a CuPy array."""
    if isinstance(value, np.ndarray):
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def device_of(array) -> str:
    """``"cpu"`` for a NumPy array or scalar, ``"cuda"`` for a CuPy array."""
    return "cpu" if isinstance(array, (np.ndarray, np.generic)) else "cuda"


def scalar_like(value, dtype, array):
    """A number as an array () of `dtype`, on the device of `array`.

    A GPU gets it as the argument of a kernel, for which nothing has to be copied.
    """
    number = np.asarray(value, dtype=dtype)
    if isinstance(array, np.ndarray):
        return number
    return get_array_module(array).full((), number.item(), dtype=number.dtype)


def synchronize(array) -> None:
    """Wait until a GPU has computed what leads to `array`; on the CPU nothing is outstanding."""
    if not isinstance(array, np.ndarray):
        get_array_module(array).cuda.get_current_stream().synchronize()


def is_recording() -> bool:
    """Whether what runs on the GPU is only recorded, see `minidl.capture`: there is nothing to
    wait for.
    """
    recording = sys.modules.get("kernels.cuda.recording")
    return recording is not None and recording.is_recording()


def to_device(array, device: str):
    """Copy `array` to `device` ("cpu" or "cuda"); the array itself if it is already there.

    Raises ValueError for an unknown device, RuntimeError where CuPy or the GPU is missing.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    if device_of(array) == device:
        return array
    if device == "cpu":
        return array.get()
    from kernels.cuda import runtime

    runtime.require()
    if is_recording():
        raise RuntimeError(f"an array of shape {array.shape} would be copied from the CPU")
    import cupy

    return cupy.asarray(array)
