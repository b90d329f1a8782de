"""A stand-in for cuBLAS, called as the library is: by addresses, on matrices that lie by columns.

It makes C (m, n) = A (m, k) B (k, n), of operands turned or not, in float32 or float64. TF32 rounds
its operands.
"""

import ctypes

import numpy as np

HANDLE, STREAM = 4711, 1234
TYPES = {2: np.float16, 0: np.float32, 1: np.float64}
# cublasComputeType_t -> the type of sums, of results and of the two factors
SUMS = {68: np.float32, 77: np.float32, 70: np.float64}
TF32 = 77


class Cublas:
    """`calls`: how many products, or stacks of them, were asked for. `act` makes them, or keeps
    them for later.
    """

    def __init__(self, act=lambda call: call()):
        self.act = act
        self.stream = None
        self.calls = 0

    def cublasSetStream_v2(self, handle, stream):
        assert handle == HANDLE
        self.stream = stream
        return 0

    def cublasGemmEx(
        self, handle, turn_a, turn_b, m, n, k, alpha, a, a_type, a_step, b, b_type, b_step, beta,
        c, c_type, c_step, compute, algorithm,
    ):  # fmt: skip
        """One product."""
        return self.cublasGemmStridedBatchedEx(
            handle, turn_a, turn_b, m, n, k, alpha, a, a_type, a_step, 0, b, b_type, b_step, 0,
            beta, c, c_type, c_step, 0, 1, compute, algorithm,
        )  # fmt: skip

    def cublasGemmStridedBatchedEx(
        self, handle, turn_a, turn_b, m, n, k, alpha, a, a_type, a_step, a_far, b, b_type, b_step,
        b_far, beta, c, c_type, c_step, c_far, count, compute, algorithm,
    ):  # fmt: skip
        """`count` products, of operands `far` elements apart."""
        assert (handle, self.stream, algorithm) == (HANDLE, STREAM, -1)
        assert a_type == b_type and TYPES[c_type] == SUMS[compute]
        factors = [columns(x, 1, 1, 1, SUMS[compute]).item() for x in (alpha, beta)]
        assert factors == [1, 0] and count >= 1 and (count == 1 or c_far >= m * n)
        self.calls += 1

        def multiply():
            for i in range(count):
                left = operand(a, i * a_far, (m, k), a_step, turn_a, a_type, compute)
                right = operand(b, i * b_far, (k, n), b_step, turn_b, b_type, compute)
                place = c + i * c_far * np.dtype(TYPES[c_type]).itemsize
                columns(place, m, n, c_step, TYPES[c_type])[...] = left @ right

        self.act(multiply)
        return 0


def operand(address, offset, shape, step, turned, kind, compute):
    """The matrix `offset` elements from an address, as the product takes it."""
    height, width = shape[::-1] if turned else shape
    kind = TYPES[kind]
    place = address + offset * np.dtype(kind).itemsize
    matrix = columns(place, height, width, step, kind).astype(SUMS[compute])
    if compute == TF32:
        matrix = tf32(matrix)
    return matrix.T if turned else matrix


def columns(address, height, width, step, dtype):
    """The matrix of columns `step` elements apart at an address."""
    assert step >= max(1, height)
    length = step * (width - 1) + height
    size = np.dtype(dtype).itemsize * length
    memory = np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(
        memory, (height, width), (memory.itemsize, step * memory.itemsize)
    )


def tf32(matrix):
    """float32 numbers rounded to 10 bits of mantissa, halves away from zero."""
    bits = np.ascontiguousarray(matrix).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
