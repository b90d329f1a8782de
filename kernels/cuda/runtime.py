"""The one door to the GPU: sources are compiled and kernels launched here, by CuPy.

Launchers ask this module for arrays and launches and name no array library themselves. So the
tests can put NumPy and an emulator behind the same door, and run the same launchers and the same
sources where there is no GPU.
"""

import hashlib
import sys
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import numpy as np

from kernels.cuda import cublas
from kernels.dispatch import precision_choice, products_choice

SOURCES = Path(__file__).parent
THREADS, WARP = 256, 32
C_TYPES = {"f": "float", "d": "double"}
INSTALL = "pip install -e '.[cuda12]' (or '.[cuda13]' for CUDA 13)"
# The compute capability of Volta, which brought the exchanges between lanes that pool.cu needs.
OLDEST_GPU = 70
# Hopper has products that no other GPU has. They are compiled for a target of their own, sm_90a, by
# the sources that have them. CuPy tells the compiler sm_90, which takes both from this version on.
HOPPER = 90
HOPPER_SOURCES = ("conv_tf32",)
_TAKES_TWO_TARGETS = (12, 9)
# What a kernel may take without asking; more has to be allowed first.
_PLAIN_SHARED_BYTES = 48 << 10


def require() -> None:
    """RuntimeError, with what helps, unless there are CuPy and a CUDA device that is new enough."""
    try:
        cupy = array_module()
    except ImportError as error:
        raise RuntimeError(f"the cuda kernels need CuPy: {INSTALL}") from error
    _check_device(cupy)


@cache
def _check_device(cupy):
    """Asked once: every array that moves to the GPU wants to know."""
    if not cupy.is_available():
        raise RuntimeError(
            "the cuda kernels need a CUDA device and its driver, and CuPy finds none; for a CuPy "
            f"that fits the driver: {INSTALL}"
        )
    found = cupy.cuda.Device().compute_capability  # such as "86"
    if int(found) < OLDEST_GPU:
        raise RuntimeError(
            "the cuda kernels need a GPU of compute capability 7.0 (Volta) or later, got "
            f"{found[:-1]}.{found[-1]}"
        )


@cache
def multiplies_tf32() -> bool:
    """Whether the device's tensor cores take TF32, as they do from Ampere (8.0) on."""
    return _capability() >= 80


@cache
def multiplies_by_groups() -> bool:
    """Whether the device has Hopper's products of groups of warps, and they can be compiled."""
    compiler = array_module().cuda.nvrtc
    return _capability() == HOPPER and compiler.getVersion() >= _TAKES_TWO_TARGETS


def _capability() -> int:
    """The device's compute capability, such as 86 for 8.6."""
    return int(array_module().cuda.Device().compute_capability)


def by_tensor_cores(dtype) -> bool:
    """Whether products of this dtype are those of our kernels for tensor cores."""
    wanted = precision_choice() == "tf32" and products_choice() == "auto"
    return wanted and dtype == np.float32 and multiplies_tf32()


def is_device_array(array) -> bool:
    """True for a CuPy array; does not import CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def array_module() -> ModuleType:
    """The array library of the device: cupy."""
    cupy = sys.modules.get("cupy")
    if cupy is None:  # an import statement takes several times as long, where there is one
        import cupy
    return cupy


def empty(shape, dtype):
    """An uninitialised array on the device, C-contiguous."""
    return array_module().ndarray(shape, dtype)  # what CuPy's `empty` comes to


def zeros(shape, dtype):
    """An array of zeros on the device, C-contiguous."""
    return array_module().zeros(shape, dtype)


def contiguous(array):
    """`array` in C order; itself where it is so already."""
    return array if array.flags.c_contiguous else array_module().ascontiguousarray(array)


def all_contiguous(*arrays) -> list:
    """`contiguous` of each; None stays None."""
    return [None if array is None else contiguous(array) for array in arrays]


def gemm(a, b, out) -> None:
    """out[...] = a @ b by cuBLAS: matrices, or stacks of them that broadcast; `out` C-contiguous.

    float32 products are made as `dispatch.precision` says.
    """
    precision = "float64"
    if out.dtype.char == "f":
        precision = precision_choice()
        if precision == "tf32" and not multiplies_tf32():
            precision = "float32"
    cublas.gemm(array_module(), a, b, out, precision)


def compiler_options(dtype) -> tuple[str, ...]:
    """What a compiler is told of these sources: the meaning of `real`, and where headers lie.

    CuPy adds others, of which -ftz=true changes results: float32 numbers too small to be normal,
    below 1.2e-38, count as 0 in kernels. It comes last, so that no option here undoes it.

    The digest of the headers is there for CuPy, which keeps compiled code under a key that knows
    the options but not what a source includes.
    """
    headers = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.cuh")))
    digest = hashlib.sha256(headers).hexdigest()[:16]
    return f"-DREAL={C_TYPES[np.dtype(dtype).char]}", f"-I{SOURCES}", f"-DHEADERS=0x{digest}"


def blocks(count: int, threads: int = THREADS) -> int:
    """How many blocks hold `count` threads."""
    return -(-count // threads)


@lru_cache(maxsize=4096)
def ints(*numbers: int) -> tuple[np.int32, ...]:
    """The arguments of parameters that are `int`. OverflowError for what needs more bits."""
    return tuple([np.int32(number) for number in numbers])


def three(size) -> tuple[int, int, int]:
    """A grid or block of an int, or one to three ints, with its missing axes: (x, y, z)."""
    if isinstance(size, int):
        return size, 1, 1
    return (*size, 1, 1)[:3]


class Table:
    """Several arrays a row, of a few rows, as one argument that a kernel takes by value.

    rows: tuples of C-contiguous arrays, all of one size in a row, or None for a null pointer.
    block_elements: how many elements of a row a block takes. capacity: how many rows the kernel's
    type has, which is Table<columns, capacity> of tables.cuh.
    """

    def __init__(self, rows, block_elements: int, capacity: int):
        self.rows, self.capacity = rows, capacity
        self.sizes = [row[0].size for row in rows]
        self.ends = list(accumulate([blocks(size, block_elements) for size in self.sizes]))

    @property
    def blocks(self) -> int:
        """How many blocks there must be."""
        return self.ends[-1]

    def by_value(self, address=lambda array: array.data.ptr) -> np.ndarray:
        """The bytes that the kernel gets; CuPy passes an array of one element by value."""
        columns = list(zip(*self.rows, strict=True))
        layout = _table_layout(len(columns), self.capacity)
        table = np.zeros((), layout)
        count = len(self.rows)
        table["arrays"][:, :count] = [
            [0 if array is None else address(array) for array in column] for column in columns
        ]
        table["sizes"][:count] = self.sizes
        table["ends"] = self.blocks
        table["ends"][:count] = self.ends
        return table


@cache
def _table_layout(columns, capacity):
    return np.dtype(
        [
            ("arrays", np.uint64, (columns, capacity)),
            ("sizes", np.int64, (capacity,)),
            ("ends", np.int32, (capacity,)),
        ],
        align=True,
    )


class _Converters(dict):
    """What is made of an argument of each type (None: nothing) for a kernel compiled for `dtype`.

    A type is looked into once, when it first comes: launches are many, and their arguments more.
    """

    def __init__(self, dtype):
        self._real = np.dtype(dtype).type

    def __missing__(self, kind):
        if issubclass(kind, np.ndarray):
            # CuPy would pass an array of one element by value, and the kernel take it as an
            # address.
            raise TypeError("takes arrays on the device, got one of NumPy")
        if kind is type(None):
            convert = _null
        elif issubclass(kind, np.generic):
            convert = None
        elif issubclass(kind, bool):
            convert = np.int32
        elif issubclass(kind, int):
            convert = np.int64
        elif issubclass(kind, float):
            convert = self._real
        else:
            convert = Table.by_value if kind is Table else None
        self[kind] = convert
        return convert


_converters = cache(_Converters)
_NULL = np.uint64(0)


def _null(_):
    return _NULL


def arguments(dtype, args) -> tuple:
    """What a kernel compiled for `dtype` gets for `args`, each an array or a number.

    Arrays must be C-contiguous and are passed as pointers. None is a null pointer, a bool an
    `int`, an int a `long long`, a float a `real`. NumPy scalars stay what they are; a `Table` is
    passed by value. Raises TypeError for a NumPy array.
    """
    converters = _converters(dtype)
    converted = []
    for arg in args:
        convert = converters[type(arg)]
        converted.append(arg if convert is None else convert(arg))
    return tuple(converted)


def launch(source: str, kernel: str, dtype, grid, block, args, shared: int = 0) -> None:
    """Run `kernel` of <source>.cu, compiled for `dtype`, on grid x block threads.

    grid, block: an int or up to three (x, y, z); a grid without blocks runs nothing. args: as
    `arguments` takes them. shared: bytes of dynamic shared memory a block. Raises TypeError for a
    NumPy array among the arguments.
    """
    try:
        values = arguments(dtype, args)
    except TypeError as error:
        raise TypeError(f"{source}.{kernel} {error}") from None
    grid = three(grid)
    if 0 in grid:
        return
    function = _function(source, kernel, dtype)
    if shared > _PLAIN_SHARED_BYTES:
        _allow_shared_bytes(function, shared)
    function(grid, three(block), values, shared_mem=shared)


def _allow_shared_bytes(function, shared):
    """Let the kernel have so many bytes of dynamic shared memory, or more if it already may."""
    if _allowed_shared_bytes.get(function, 0) < shared:
        function.max_dynamic_shared_size_bytes = shared
        _allowed_shared_bytes[function] = shared


_allowed_shared_bytes = {}


def launch_elements(source: str, kernel: str, dtype, count: int, args) -> None:
    """Run `kernel` on one thread an element: `count` of them, and up to THREADS - 1 idle ones."""
    launch(source, kernel, dtype, blocks(count), THREADS, args)


def launch_warps(source: str, kernel: str, dtype, count: int, args) -> None:
    """Run `kernel` on `count` warps, and a few idle ones."""
    launch_elements(source, kernel, dtype, WARP * count, args)


@cache
def _function(source, kernel, dtype):
    if not isinstance(dtype, str):  # a dtype has several names, but each kernel is made once
        return _function(source, kernel, np.dtype(dtype).char)
    return _module(source, dtype).get_function(kernel)


@cache
def _module(source, dtype_char):
    code = (SOURCES / f"{source}.cu").read_text(encoding="utf-8")
    options = compiler_options(dtype_char)
    if source in HOPPER_SOURCES and multiplies_by_groups():
        options += (f"-arch=sm_{HOPPER}a",)
    return array_module().RawModule(code=code, options=options)
