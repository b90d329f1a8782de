"""Which implementation of the kernels an array gets: the reference, the CPU's or the GPU's."""

from contextlib import AbstractContextManager
from importlib import import_module
from types import ModuleType

import numpy as np

BACKENDS = ("auto", "reference", "cpu", "cuda")
WINOGRAD_SIZES = (None, 2, 4)
PRODUCTS = ("auto", "cublas", "own")
PRECISIONS = ("float32", "tf32", "float16")
_current = "auto"
_modules = {}
_winograd_size = 4
_products = "auto"
_precision = "float32"


class use(AbstractContextManager):
    """Choose the backend from here on, or, as a context manager, for the enclosed block.

    "auto" takes the fastest for the array's type. CuPy arrays always go to the GPU, whatever the
    choice, and "cuda" leaves NumPy arrays to the CPU: it makes sure that there is a GPU. Raises
    ValueError for an unknown name and RuntimeError where the backend's requirements are missing.
    """

    def __init__(self, name: str):
        global _current
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {name!r}")
        if name == "cuda":
            from kernels.cuda import runtime

            runtime.require()
        self._previous, _current = _current, name

    def __exit__(self, *exc):
        global _current
        _current = self._previous


def backend() -> str:
    """The name of the chosen backend."""
    return _current


def kernels_for(array) -> ModuleType:
    """The module of kernels for `array`; imported on first use, so that Numba loads only then."""
    module = _modules.get((type(array), _current))
    if module is None:  # a type's first array under this choice
        module = _modules[type(array), _current] = import_module(_room(array))
    return module


def _room(array) -> str:
    if isinstance(array, np.ndarray):
        return "kernels.reference" if _current == "reference" else "kernels.cpu"
    from kernels.cuda import runtime

    if not runtime.is_device_array(array):
        raise TypeError(f"array must be a NumPy or CuPy array, got {type(array).__name__}")
    return "kernels.cuda"


class winograd(AbstractContextManager):
    """Choose how the CPU convolves float32 images with small kernels, where that pays.

    From here on or, as a context manager, for the enclosed block: by Winograd's F(4x4, 3x3) (4, the
    fastest, and the choice at the start), by F(2x2, 3x3) (2, a digit more exact), or by plain sums
    (None). The tile of F(4x4, 3x3) serves 4x4 and 5x5 kernels too, as F(3x3, 4x4) and F(2x2, 5x5),
    and larger ones with strides (kernels.cpu.winograd_strided). float64 always goes by plain sums.
    The errors are listed in kernels.cpu.winograd.
    Raises ValueError for another size.
    """

    def __init__(self, size: int | None):
        global _winograd_size
        if isinstance(size, float) or size not in WINOGRAD_SIZES:
            raise ValueError(f"size must be one of {WINOGRAD_SIZES}, got {size!r}")
        self._previous, _winograd_size = _winograd_size, size

    def __exit__(self, *exc):
        global _winograd_size
        _winograd_size = self._previous


def winograd_size() -> int | None:
    """The size chosen by `winograd`."""
    return _winograd_size


class products(AbstractContextManager):
    """Choose who makes the matrix products of the GPU kernels, those of convolutions included.

    From here on or, as a context manager, for the enclosed block: cuBLAS ("cublas"), the kernels of
    kernels/cuda/product.cuh ("own"), or whichever suits shapes and precision ("auto", the choice at
    the start). Raises ValueError for another name.
    """

    def __init__(self, name: str):
        global _products
        if name not in PRODUCTS:
            raise ValueError(f"products must be one of {PRODUCTS}, got {name!r}")
        self._previous, _products = _products, name

    def __exit__(self, *exc):
        global _products
        _products = self._previous


def products_choice() -> str:
    """The name chosen by `products`."""
    return _products


class precision(AbstractContextManager):
    """Choose how a GPU makes float32 products.

    From here on or, as a context manager, for the enclosed block:
    "float32" (the choice at the start); "tf32", which rounds the operands to 10 bits of mantissa
    (GPUs from the Ampere generation on do; others ignore it), in cuBLAS and in the kernels for
    tensor cores that then make convolutions; "float16", which has cuBLAS round them to float16, 10
    bits and numbers up to 65504 only. Products are summed in float32 all the same. Those that
    `products("own")` asks for, and those of the CPU, stay as exact as they are. Raises ValueError
    for another name.
    """

    def __init__(self, name: str):
        global _precision
        if name not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {name!r}")
        self._previous, _precision = _precision, name

    def __exit__(self, *exc):
        global _precision
        _precision = self._previous


def precision_choice() -> str:
    """The name chosen by `precision`."""
    return _precision


def set_num_threads(n: int) -> None:
    """Run the CPU kernels on n threads. ValueError unless 1 <= n <= the number there are."""
    from kernels.cpu import threads

    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= threads.max_threads():
        raise ValueError(f"threads must be an int from 1 to {threads.max_threads()}, got {n!r}")
    threads.set_num_threads(n)


def get_num_threads() -> int:
    """How many threads the CPU kernels run on."""
    from kernels.cpu import threads

    return threads.num_threads()
