"""The one door to the GPU: sources are compiled and kernels launched here, by CuPy.

Launchers ask this module for arrays and launches and name no array library themselves. So the
tests can put NumPy and an emulator behind the same door, and run the same launchers and the same
sources where there is no GPU.
"""

import hashlib
import math
import sys
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from kernels.dispatch import precision_choice, products_choice

SOURCES = Path(__file__).parent
THREADS, WARP = 256, 32
C_TYPES = {"f": "float", "d": "double"}
INSTALL = "pip install -e '.[cuda12]' (or '.[cuda13]' for CUDA 13)"
CUBLAS_TF32_TENSOR_OP_MATH = 3  # of cublasMath_t; CuPy gives it no name
# The compute capability of Volta, which brought the exchanges between lanes that pool.cu needs.
OLDEST_GPU = 70
# What a kernel may take without asking; more has to be allowed first.
_PLAIN_SHARED_BYTES = 48 << 10


def require() -> None:
    """RuntimeError, with what helps, unless there are CuPy and a CUDA device that is new enough."""
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(f"the cuda kernels need CuPy: {INSTALL}") from error
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
    return int(array_module().cuda.Device().compute_capability) >= 80


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
    import cupy

    return cupy


def empty(shape, dtype):
    """An uninitialised array on the device, C-contiguous."""
    return array_module().empty(shape, dtype)


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
    precision = precision_choice() if out.dtype == np.float32 else "float32"
    if precision == "float16":
        _float16_products(a, b, out)
    else:
        with _tf32_products() if precision == "tf32" else nullcontext():
            array_module().matmul(a, b, out=out)


@contextmanager
def _tf32_products():
    """Within, cuBLAS may round the operands of float32 products to TF32."""
    from cupy.cuda import cublas, device

    handle = device.get_cublas_handle()
    before = cublas.getMathMode(handle)
    cublas.setMathMode(handle, CUBLAS_TF32_TENSOR_OP_MATH)
    try:
        yield
    finally:
        cublas.setMathMode(handle, before)


def _float16_products(a, b, out):
    """The products of operands rounded to float16, summed and kept in float32.

    CuPy's matmul would round the results, too. To cuBLAS, which counts by columns, a C-contiguous
    matrix is its transpose: out^T = b^T a^T, and nothing has to be turned. One call makes the
    products along the first axis of the stacks, over which one matrix may serve for all.
    """
    from cupy.cuda import cublas, device, runtime

    if not out.size or not a.shape[-1]:
        out.fill(0)
        return
    a, b = (x.astype(np.float16, order="C") for x in (a, b))
    half, single = (runtime.CUDA_R_16F, 2), (runtime.CUDA_R_32F, 4)
    (m, k), n = a.shape[-2:], b.shape[-1]
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    count, *others = out.shape[:-2] or (1,)
    for place in np.ndindex(*others):
        (at_a, step_a), (at_b, step_b), (at_out, step_out) = (
            _place_in_stack(x, place) for x in (a, b, out)
        )
        cublas.gemmStridedBatchedEx(
            device.get_cublas_handle(), 0, 0, n, m, k, one.ctypes.data,
            b.data.ptr + half[1] * at_b, half[0], n, step_b,
            a.data.ptr + half[1] * at_a, half[0], k, step_a, zero.ctypes.data,
            out.data.ptr + single[1] * at_out, single[0], n, step_out, count,
            cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip


def _place_in_stack(x, place):
    """Where, in elements, x's matrix for (0, *place) of a stack begins, and how far it is to that
    for (1, *place); x broadcasts.
    """
    axes = len(place) + 1
    first, *sizes = ((1,) * (axes + 2 - x.ndim) + x.shape[:-2])[-axes:]
    number = 0
    for index, size in zip(place, sizes, strict=True):
        number = number * size + (index if size > 1 else 0)
    matrix = math.prod(x.shape[-2:])
    return number * matrix, 0 if first == 1 else math.prod(sizes) * matrix


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


def ints(*numbers: int) -> tuple[np.int32, ...]:
    """The arguments of parameters that are `int`. OverflowError for what needs more bits."""
    return tuple([np.int32(number) for number in numbers])


def three(size) -> tuple[int, int, int]:
    """A grid or block of an int, or one to three ints, with its missing axes: (x, y, z)."""
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return (*sizes, *(1,) * (3 - len(sizes)))


def arguments(dtype, args) -> tuple:
    """What a kernel compiled for `dtype` gets for `args`, each an array or a NumPy scalar.

    Arrays must be C-contiguous and are passed as pointers. None is a null pointer, a bool an
    `int`, an int a `long long`, a float a `real`. NumPy scalars stay what they are.
    """
    return tuple([_argument(np.dtype(dtype).type, arg) for arg in args])


def _argument(real, arg):
    if arg is None:
        return np.uint64(0)
    if isinstance(arg, bool):
        return np.int32(arg)
    if isinstance(arg, int):
        return np.int64(arg)
    if isinstance(arg, float) and not isinstance(arg, np.generic):
        return real(arg)
    return arg


def launch(source: str, kernel: str, dtype, grid, block, args, shared: int = 0) -> None:
    """Run `kernel` of <source>.cu, compiled for `dtype`, on grid x block threads.

    grid, block: an int or up to three (x, y, z); a grid without blocks runs nothing. args: as
    `arguments` takes them. shared: bytes of dynamic shared memory a block. Raises TypeError for a
    NumPy array among the arguments.
    """
    if any([isinstance(arg, np.ndarray) for arg in args]):
        # CuPy would pass an array of one element by value, and the kernel take it as an address.
        raise TypeError(f"{source}.{kernel} takes arrays on the device, got one of NumPy")
    grid, block = three(grid), three(block)
    if not math.prod(grid):
        return
    function = _function(source, kernel, np.dtype(dtype).char)
    if shared > _PLAIN_SHARED_BYTES:
        function.max_dynamic_shared_size_bytes = shared
    function(grid, block, arguments(dtype, args), shared_mem=shared)


def launch_elements(source: str, kernel: str, dtype, count: int, args) -> None:
    """Run `kernel` on one thread an element: `count` of them, and up to THREADS - 1 idle ones."""
    launch(source, kernel, dtype, blocks(count), THREADS, args)


def launch_warps(source: str, kernel: str, dtype, count: int, args) -> None:
    """Run `kernel` on `count` warps, and a few idle ones."""
    launch_elements(source, kernel, dtype, WARP * count, args)


@cache
def _function(source, kernel, dtype_char):
    return _module(source, dtype_char).get_function(kernel)


@cache
def _module(source, dtype_char):
    code = (SOURCES / f"{source}.cu").read_text(encoding="utf-8")
    return array_module().RawModule(code=code, options=compiler_options(dtype_char))
