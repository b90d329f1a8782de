// Products on tensor cores by groups of four warps, which Hopper has (sm_90a). They take both
// operands from shared memory themselves: no thread loads them, as for products of warps, and they
// go on while the threads copy what is next.

#pragma once

#include "tiles_tf32.cuh"

// A group has 64 rows, and each of its warps 16 of them. Rows of 32 floats are what the products
// want (describe in tensor.cuh), and how deep_place lays them out.
template <int ROWS>
struct Groups {
    static const int HEIGHT = ROWS, DEPTH = 32, PADDING = 0;
    static const int WARP_HEIGHT = 16, WARP_WIDTH = WIDTH, THREADS = HEIGHT / WARP_HEIGHT * WARP;

    __device__ static int warp_row() { return threadIdx.x / WARP * WARP_HEIGHT; }
    __device__ static int warp_column() { return 0; }
};
typedef Groups<128> HighGroups;
typedef Groups<64> LowGroups;

// The first of shared memory that such a matrix can begin at. A stage is a multiple of that long.
__device__ inline float *aligned(float *memory)
{
    const unsigned long long PIECE = 1024;
    return memory + ((PIECE - (unsigned long long)memory % PIECE) % PIECE) / sizeof(float);
}

template <int ROWS, class Left, class Right>
struct Product<Groups<ROWS>, Left, Right> {
    static_assert(Left::DEEP && Left::ROUNDED && Right::DEEP && Right::ROUNDED,
                  "nothing is turned or rounded on its way to these products");
    typedef Groups<ROWS> Shape;
    int a;  // where the group's rows begin in a stage

    __device__ Product() : a(kept(threadIdx.x / (4 * WARP) * 64 * Shape::DEPTH)) {}

    __device__ void show() const { show_copies(); }

    __device__ void start(const float *stage, Sums<Shape> &sums) const
    {
        open_products();
#pragma unroll
        for (int k = 0; k < Shape::DEPTH; k += 8)
            start_product(sums.at[0], stage + a + k, stage + Stage<Shape>::LEFT + k);
        close_products();
    }

    __device__ void finish(const float *stage, Sums<Shape> &sums) const
    {
        wait_for_products(sums.at[0]);
    }
};
