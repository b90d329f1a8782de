"""The emulator itself: what it must catch, planted in small kernels."""

import numpy as np
import pytest

from tests.emulator import HAS_COMPILER, NO_COMPILER, EmulationError, launch

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason=NO_COMPILER)

# Every value plus its right neighbour in the block, which passes it on through shared memory.
NEIGHBOURS = """
#include "common.cuh"

extern "C" __global__ void neighbours(const real *x, real *y, int size)
{
    __shared__ real tile[65];
    int i = blockIdx.x * 64 + threadIdx.x;
    tile[threadIdx.x] = i < size ? x[i] : (real)0;
    if (threadIdx.x == 0)
        tile[64] = 0;
    __syncthreads();
    if (i < size)
        y[i] = tile[threadIdx.x] + tile[threadIdx.x + 1];
}
"""


def run(text, kernel, block, *args, grid=1, shared=0, dtype=np.float32):
    launch("planted", kernel, dtype, grid, block, args, shared, text)


def neighbours(text, size=150, pass_size=None):
    x, y = np.arange(size, dtype=np.float32), np.full(size, np.nan, np.float32)
    passed = np.int32(size if pass_size is None else pass_size)
    run(text, "neighbours", 64, x, y, passed, grid=-(-size // 64))
    return x, y


def test_barriers_and_shared_memory():
    x, y = neighbours(NEIGHBOURS)
    right = np.append(x[1:], 0)
    right[63::64] = 0
    np.testing.assert_array_equal(y, x + right)


def planted(old, new):
    assert old in NEIGHBOURS
    return NEIGHBOURS.replace(old, new)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("? x[i]", "? x[i + 1]", r"neighbours of planted.cu: thread .* reads `x\[150\]`"),
        ("? x[i]", "? x[i - 1]", r"reads `x\[-1\]`, which has 150 elements"),
        ("y[i] =", "y[i + 1] =", r"writes `y\[150\]`, which has 150"),
        ("y[i] =", "y[i - 1] =", "writes outside of `y`"),
        ("y[i] =", "y[i - 100] =", "writes outside of `y`"),
        ("i < size)", "i <= size)", r"writes `y\[150\]`"),
        ("__syncthreads();", "", "`y` depends on the order of its threads"),
        ("__syncthreads();", "if (i < size) __syncthreads();", None),
        ("__syncthreads();", "if (threadIdx.x < 63) __syncthreads(); else __syncwarp();",
         "waits in __sync.* for threads that never come there"),
        ("tile[64] = 0", "tile[65] = 0", "an index outside of a shared or local array"),
        ("y[i] =", "((real *)x)[i] = y[i] =", "changes `x`, which it takes as const"),
        ("y[i] =", "(&y[i])[1 << 30] =", "writes memory at 0x|writes `"),
        ("blockIdx.x * 64", "(int)(blockIdx.x + 65536) * 65536", "integer overflow"),
    ],
)  # fmt: skip
def test_planted_errors_are_caught(old, new, message):
    text = planted(old, new)
    if message is None:  # a thread that has returned is not waited for
        np.testing.assert_array_equal(neighbours(text)[1], neighbours(NEIGHBOURS)[1])
        return
    with pytest.raises(EmulationError, match=message):
        neighbours(text)
    neighbours(NEIGHBOURS)  # the emulator lives on


def test_a_barrier_in_a_loop_is_needed_twice():
    """The second barrier keeps a fast thread from writing what a slow one has yet to read."""
    text = """
    #include "common.cuh"
    extern "C" __global__ void rotate(const real *x, real *y, int rounds)
    {
        __shared__ real tile[64];
        real value = x[threadIdx.x];
        for (int i = 0; i < rounds; ++i) {
            tile[threadIdx.x] = value;
            __syncthreads();
            value = tile[(threadIdx.x + 1) % 64];
            __syncthreads(/* second */);
        }
        y[threadIdx.x] = value;
    }
    """
    x, y = np.arange(64.0), np.empty(64)
    run(text, "rotate", 64, x, y, np.int32(5), dtype=np.float64)
    np.testing.assert_array_equal(y, np.roll(x, -5))
    racing = text.replace("__syncthreads(/* second */);", "")
    with pytest.raises(EmulationError, match="depends on the order"):
        run(racing, "rotate", 64, x, y, np.int32(5), dtype=np.float64)


def test_warp_functions():
    text = """
    #include "common.cuh"
    extern "C" __global__ void warps(const int *x, int *y)
    {
        int i = threadIdx.x, lane = i % 32, value = x[i];
        y[i] = __shfl_down_sync(ALL_LANES, value, 3);
        y[i + 64] = __shfl_xor_sync(ALL_LANES, value, 1);
        y[i + 128] = __shfl_sync(ALL_LANES, value, 7);
        y[i + 192] = (int)__ballot_sync(ALL_LANES, value % 2);
        y[i + 256] = (int)__match_any_sync(ALL_LANES, value % 3);
        y[i + 320] = (int)warp_sum(value);
        y[i + 384] = __shfl_up_sync(ALL_LANES, value, 1, 8);
        if (lane < 16)
            value = __shfl_xor_sync(0xFFFFu, value, 8);
        __syncwarp();
        y[i + 448] = value;
    }
    """
    x = np.random.default_rng(0).integers(0, 100, 64).astype(np.int32)
    y = np.empty((8, 2, 32), np.int32)
    run(text, "warps", 64, x, y)
    rows = x.reshape(2, 32)
    lanes = np.arange(32)
    bits = 1 << lanes.astype(np.int64)
    expected = [
        rows[:, np.where(lanes + 3 < 32, lanes + 3, lanes)],
        rows[:, lanes ^ 1],
        np.repeat(rows[:, 7:8], 32, 1),
        np.repeat(((rows % 2) * bits).sum(1, keepdims=True), 32, 1),
        ((rows[:, :, None] % 3 == rows[:, None, :] % 3) * bits).sum(2),
        np.repeat(rows.sum(1, keepdims=True), 32, 1),
        rows[:, np.where(lanes % 8, lanes - 1, lanes)],
        np.where(lanes < 16, rows[:, lanes ^ 8], rows),
    ]
    np.testing.assert_array_equal(y, np.array(expected).astype(np.int32))


@pytest.mark.parametrize(
    "line, message",
    [
        ("__shfl_sync(0xFFFFu, 1, 3);", "lane 16 is not in the mask"),
        ("if (threadIdx.x < 16) __shfl_sync(0xFFFFu, 1, 20);", "reads lane 20, which takes no"),
        ("if (threadIdx.x) __syncwarp(); else __syncthreads();", "never come there"),
    ],
)
def test_misuse_of_warp_functions(line, message):
    text = f'extern "C" __global__ void misuse(int *y) {{ {line} y[threadIdx.x] = 0; }}'
    with pytest.raises(EmulationError, match=message):
        run(text, "misuse", 32, np.zeros(32, np.int32))


def test_dynamic_shared_memory():
    text = """
    #include "common.cuh"
    extern "C" __global__ void reversed(const real *x, real *y, int beyond)
    {
        extern __shared__ real tile[];
        tile[threadIdx.x + beyond] = x[threadIdx.x];
        __syncthreads();
        y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
    }
    """
    x, y = np.arange(40, dtype=np.float32), np.empty(40, np.float32)
    run(text, "reversed", 40, x, y, np.int32(0), shared=160)
    np.testing.assert_array_equal(y, x[::-1])
    with pytest.raises(EmulationError, match="byte 160 of its dynamic shared memory, of which it"):
        run(text, "reversed", 40, x, y, np.int32(1), shared=160)


def test_local_arrays_beyond_a_threads_stack():
    text = """
    extern "C" __global__ void local(int *y, int count)
    {
        volatile int values[50000];
        for (int i = 0; i < count; ++i)
            values[i] = i;
        y[threadIdx.x] = values[count - 1];
    }
    """
    with pytest.raises(EmulationError, match="writes memory at .* none of its arrays"):
        run(text, "local", 2, np.zeros(2, np.int32), np.int32(50000))


def test_atomics():
    text = """
    extern "C" __global__ void count(const int *x, int *counts, int *largest)
    {
        atomicAdd(counts + x[threadIdx.x] % 3, 1);
        atomicMax(largest, x[threadIdx.x]);
    }
    """
    x = np.random.default_rng(0).integers(0, 100, 500).astype(np.int32)
    counts, largest = np.zeros(3, np.int32), np.zeros(1, np.int32)
    run(text, "count", 500, x, counts, largest)
    assert counts.tolist() == np.bincount(x % 3).tolist() and largest[0] == x.max()


def test_sums_of_floats_by_atomics_depend_on_the_order():
    text = """
    extern "C" __global__ void total(const float *x, float *y) { atomicAdd(y, x[threadIdx.x]); }
    """
    x = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    with pytest.raises(EmulationError, match="`y` depends on the order"):
        run(text, "total", 500, x, np.zeros(1, np.float32))


def test_packs_that_lie_between_two():
    """An array is copied for each run, and keeps its place there."""
    text = """
    struct alignas(16) Pack { float values[4]; };
    extern "C" __global__ void first(const float *x, float *y)
    {
        *y = ((const Pack *)x)->values[threadIdx.x];
    }
    """
    x, y = np.arange(17, dtype=np.float32), np.zeros(1, np.float32)
    whole = x[-x.ctypes.data % 16 // 4 :]
    run(text, "first", 1, whole[:4], y)
    with pytest.raises(EmulationError, match="an address that is no multiple"):
        run(text, "first", 1, whole[1:9], y)


def test_launches_that_do_not_fit_the_kernel():
    x, y, size = np.zeros(8, np.float32), np.zeros(8, np.float32), np.int32(8)
    cases = [
        ((x, y), {}, "takes 3 arguments, got 2"),
        ((x, size, y), {}, "`y` must be an array"),
        ((x, y, 8), {}, "`size` must be int32, got int64"),
        ((x, y.astype(np.float64), size), {}, "`y` must be float32, got float64"),
        ((x[::2], y, size), {}, "`x` is not C-contiguous"),
        ((x[1:], x[:-1], size), {}, "overlap"),
        ((x, y, size), {"grid": (1, 70000)}, "no GPU runs a grid of"),
        ((x, y, size), {"block": (64, 32)}, "more than 1024 threads"),
        ((x, y, size), {"shared": 1 << 20}, "bytes of shared memory"),
        ((x, y, size), {"kernel": "neighbors"}, "kernel neighbors of planted.cu does not exist"),
    ]
    for args, options, message in cases:
        settings = {"kernel": "neighbours", "block": 64, **options}
        with pytest.raises(EmulationError, match=message):
            run(NEIGHBOURS, settings.pop("kernel"), settings.pop("block"), *args, **settings)


def test_a_source_that_does_not_compile():
    with pytest.raises(AssertionError, match=r"(?s)g\+\+ refuses.*kernel.cu:1:.*nothing"):
        run('extern "C" __global__ void broken(int *y) { nothing; }', "broken", 1, np.zeros(1))
