// The product of two matrices on tensor cores, for kernels that differ in what the matrices are.
//
// A block of four warps makes SIDE x SIDE results C[m, n], the sums over k of A[m, k] B[k, n], and
// each warp a quarter of them in registers. DEPTH values of k at a time, tiles of A and of B are
// copied to shared memory while the tiles before them are multiplied: STAGES of them are there or
// under way. Operands are rounded to TF32 on their way from shared memory to the tensor cores.

#pragma once

#include "tensor.cuh"

static const int DEPTH = 16, STAGES = 3, TILE_THREADS = 128;

// Where in shared memory what lies. The paddings keep the rows that a warp reads at once in
// different banks, and 16-byte copies on multiples of 16 bytes.
template <int SIDE>
struct Layout {
    static const int DEEP_ROW = DEPTH + 4;  // of a tile with k along its rows: A, or B turned
    static const int WIDE_ROW = SIDE + 8;   // of a tile with n along its rows: B as it is
    static const int TILE = SIDE * DEEP_ROW;  // room for a tile of either kind
    static const int STAGE = 2 * TILE;
};

// A warp's results: ROWS x COLUMNS tiles of the tensor cores, each 16 x 8.
template <int SIDE>
struct Sums {
    static const int ROWS = SIDE / 32, COLUMNS = SIDE / 16;
    float at[ROWS][COLUMNS][4];

    __device__ Sums()
    {
#pragma unroll
        for (int i = 0; i < ROWS * COLUMNS * 4; ++i)
            (&at[0][0][0])[i] = 0;
    }

    // Row and column, in the block's tile, of at[0][0][0].
    __device__ static int row()
    {
        return threadIdx.x / (2 * WARP) * (SIDE / 2) + threadIdx.x % WARP / 4;
    }

    __device__ static int column()
    {
        return threadIdx.x / WARP % 2 * (SIDE / 2) + threadIdx.x % 4 * 2;
    }

    // Calls take(m, n, value) for all of them.
    template <class Take>
    __device__ void each(Take &take) const
    {
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                take.column(column() + 8 * j + e);
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
#pragma unroll
                    for (int h = 0; h < 2; ++h)
                        take.row(row() + 16 * i + 8 * h, at[i][j][2 * h + e]);
            }
    }
};

// Adds the product of a stage's tiles; TURNED: B's tile has k along its rows.
template <int SIDE, bool TURNED>
__device__ inline void multiply_stage(const float *stage, Sums<SIDE> &sums)
{
    typedef Layout<SIDE> L;
    int r = threadIdx.x % WARP / 4, c = threadIdx.x % 4;
    const float *a = stage + Sums<SIDE>::row() * L::DEEP_ROW + c, *b = stage + L::TILE;
    int n = threadIdx.x / WARP % 2 * (SIDE / 2) + r;
    b += TURNED ? n * L::DEEP_ROW + c : c * L::WIDE_ROW + n;
    const int next_n = 8 * (TURNED ? L::DEEP_ROW : 1), next_k = TURNED ? 1 : L::WIDE_ROW;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
        unsigned left[Sums<SIDE>::ROWS][4], right[Sums<SIDE>::COLUMNS][2];
#pragma unroll
        for (int i = 0; i < Sums<SIDE>::ROWS; ++i)
#pragma unroll
            for (int part = 0; part < 4; ++part)
                left[i][part]
                    = to_tf32(a[(16 * i + part % 2 * 8) * L::DEEP_ROW + k + part / 2 * 4]);
#pragma unroll
        for (int j = 0; j < Sums<SIDE>::COLUMNS; ++j)
#pragma unroll
            for (int part = 0; part < 2; ++part)
                right[j][part] = to_tf32(b[j * next_n + (k + 4 * part) * next_k]);
#pragma unroll
        for (int i = 0; i < Sums<SIDE>::ROWS; ++i)
#pragma unroll
            for (int j = 0; j < Sums<SIDE>::COLUMNS; ++j)
                multiply_tf32(sums.at[i][j], left[i], right[j]);
    }
}

// The sums over `steps` tiles along k. `tiles` starts the copies of a stage (`fetch`), and is told
// after every barrier to prepare what the next call of `fetch` needs (`prepare`). All threads of the
// block must come here. `memory`: STAGES * Layout<SIDE>::STAGE floats of shared memory.
template <int SIDE, bool TURNED, class Tiles>
__device__ inline void multiply(Tiles &tiles, int steps, float *memory, Sums<SIDE> &sums)
{
    for (int step = 0; step < STAGES - 1; ++step) {
        __syncthreads();
        if (step < steps)
            tiles.fetch(memory + step * Layout<SIDE>::STAGE);
        close_copies();
        tiles.prepare();
    }
    int now = 0, then = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps)
            tiles.fetch(memory + then * Layout<SIDE>::STAGE);
        close_copies();
        tiles.prepare();
        multiply_stage<SIDE, TURNED>(memory + now * Layout<SIDE>::STAGE, sums);
        now = now + 1 == STAGES ? 0 : now + 1;
        then = then + 1 == STAGES ? 0 : then + 1;
    }
}
