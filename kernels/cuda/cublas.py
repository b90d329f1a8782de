"""Matrix products by cuBLAS, called directly.

CuPy's own calls cost more than a small product: it builds lists of pointers on the GPU where stacks
broadcast, and switches cuBLAS to TF32 and back by two calls. And they refuse to be captured in a
CUDA graph. Here a product is one call, or, for stacks that no single stride describes, a few.
"""

import ctypes
from functools import cache
from itertools import product

import numpy as np

# Of cudaDataType_t and cublasComputeType_t.
_HALF, _SINGLE, _DOUBLE = 2, 0, 1
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77
_DEFAULT_ALGORITHM = -1
# precision -> the type of operands, of sums and results, and how the products are made
_TYPES = {
    "float16": (_HALF, _SINGLE, _COMPUTE_32F),
    "float32": (_SINGLE, _SINGLE, _COMPUTE_32F),
    "tf32": (_SINGLE, _SINGLE, _COMPUTE_32F_FAST_TF32),
    "float64": (_DOUBLE, _DOUBLE, _COMPUTE_64F),
}
# 1 and 0, by which cuBLAS multiplies the product and what lies in its place, as it reads them.
_SCALARS = {
    _SINGLE: (ctypes.c_float(1), ctypes.c_float(0)),
    _DOUBLE: (ctypes.c_double(1), ctypes.c_double(0)),
}
_ADDRESSES = {kind: tuple(map(ctypes.addressof, pair)) for kind, pair in _SCALARS.items()}
_MOST = 2**31 - 1  # what an int of C holds


def gemm(cupy, a, b, out, precision: str) -> None:
    """out[...] = a @ b: matrices, or stacks of them that broadcast; `out` C-contiguous.

    precision: of float32 products, as `dispatch.precision` has it; "float64" for others.

    cuBLAS counts by columns, to which a C-contiguous matrix is its transpose: so it is told to make
    out^T = b^T a^T.
    """
    if not out.size:
        return
    if not a.shape[-1]:
        out.fill(0)
        return
    operand, result, compute = _TYPES[precision]
    if operand == _HALF:
        a, b = a.astype(np.float16), b.astype(np.float16)
    a, turn_a, step_a = _by_rows(a)
    b, turn_b, step_b = _by_rows(b)
    (m, n), k = out.shape[-2:], a.shape[-1]
    if max(m, n, k, step_a, step_b) > _MOST:
        raise OverflowError(f"cuBLAS multiplies no {a.shape} by {b.shape}: sides end at {_MOST}")
    one, zero = _ADDRESSES[result]
    library, handle = _library(cupy), cupy.cuda.device.get_cublas_handle()
    _check(library.cublasSetStream_v2(handle, cupy.cuda.get_current_stream().ptr))
    for count, (at_a, far_a), (at_b, far_b), (at_out, far_out) in _stacks(a, b, out):
        sides = handle, turn_b, turn_a, n, m, k, one
        if count == 1:
            status = library.cublasGemmEx(
                *sides, at_b, operand, step_b, at_a, operand, step_a,
                zero, at_out, result, n, compute, _DEFAULT_ALGORITHM,
            )  # fmt: skip
        else:
            status = library.cublasGemmStridedBatchedEx(
                *sides, at_b, operand, step_b, far_b, at_a, operand, step_a, far_a,
                zero, at_out, result, n, far_out, count, compute, _DEFAULT_ALGORITHM,
            )  # fmt: skip
        _check(status)


def _by_rows(x):
    """(x, whether its matrices lie by columns, how far apart rows, or then columns, lie there).

    x is copied where neither its rows nor its columns lie in one piece each.
    """
    (rows, columns), size = x.shape[-2:], x.itemsize
    down, right = x.strides[-2:]
    if (right == size or columns == 1) and (down >= columns * size or rows == 1):
        return x, 0, down // size if rows > 1 else columns
    if (down == size or rows == 1) and (right >= rows * size or columns == 1):
        return x, 1, right // size if columns > 1 else rows
    return x.copy(), 0, columns


def _stacks(a, b, out):
    """The calls that make all products: (count, place and stride of a's, of b's, of out's) each.

    Places are addresses, strides are in elements. The last two axes are left out.
    """
    if out.ndim == 2:
        return [(1, (a.data.ptr, 0), (b.data.ptr, 0), (out.data.ptr, 0))]
    arrays = a, b, out
    axes = _axes(out.shape[:-2], [_stack_strides(x, out.ndim) for x in arrays])
    count, steps = axes.pop(max(range(len(axes)), key=lambda i: axes[i][0]))
    starts = product(*[range(size) for size, _ in axes])
    return [
        (count, *(
            (
                x.data.ptr + sum(i * others[j] for i, (_, others) in zip(at, axes, strict=True)),
                steps[j] // x.itemsize,
            )
            for j, x in enumerate(arrays)
        ))
        for at in starts
    ]  # fmt: skip


def _stack_strides(x, ndim):
    """How far apart, in bytes, x's matrices lie along the axes of the stack; x broadcasts."""
    strides = [
        0 if size == 1 else stride
        for size, stride in zip(x.shape[:-2], x.strides[:-2], strict=True)
    ]
    return [0] * (ndim - x.ndim) + strides


def _axes(shape, strides):
    """[size, strides of all arrays] of the axes of a stack, neighbours made one where they can be.

    There is one at least, and none of size 1 beside others.
    """
    axes = []
    for size, *steps in zip(shape, *strides, strict=True):
        if axes and all(
            before == size * step for before, step in zip(axes[-1][1], steps, strict=True)
        ):
            axes[-1] = (axes[-1][0] * size, steps)
        elif size > 1:
            axes.append((size, steps))
    return axes or [(1, [0] * len(strides))]


@cache
def _library(cupy):
    """cuBLAS, which CuPy has loaded: its functions are found through the module that calls them."""
    library = ctypes.CDLL(cupy.cuda.cublas.__file__)
    pointer, number, far = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    operand = [pointer, number, number]
    head = [pointer, *[number] * 5, pointer]
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasGemmEx.argtypes = [*head, *operand * 2, pointer, *operand, *[number] * 2]
    library.cublasGemmStridedBatchedEx.argtypes = [
        *head, *[*operand, far] * 2, pointer, *operand, far, *[number] * 3,
    ]  # fmt: skip
    return library


def _check(status):
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status}")
