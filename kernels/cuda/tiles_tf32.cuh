// The product of two matrices on tensor cores, for kernels that differ in what the matrices are.
//
// A block of four warps makes SIDE x SIDE results C[m, n], the sums over k of A[m, k] B[k, n], and
// each warp a quarter of them in registers. DEPTH values of k at a time, tiles of A and of B are
// copied to shared memory, 16 bytes at a time, while the tiles before them are multiplied: STAGES of
// them are there or under way. Operands are rounded to TF32 on their way to the tensor cores, unless
// they are ROUNDED already.
//
// A tile lies in shared memory as its matrix does in global memory: `deep`, with neighbours along k,
// or not, with neighbours along m or n. What copies it is a Left or a Right:
//
//     static const bool DEEP, ROUNDED;
//     void fetch(float *tile);    // start copying the next tile along k; zeros outside the matrix

#pragma once

#include "tensor.cuh"

static const int DEPTH = 16, STAGES = 4, TILE_THREADS = 128;

// Rows of tiles in shared memory. The paddings keep what a warp reads at once in different banks, and
// copies on multiples of 16 bytes.
template <int SIDE>
struct Layout {
    static const int DEEP_ROW = DEPTH + 4;
    static const int WIDE_ROW = SIDE + 8;
    static const int TILE = SIDE * DEEP_ROW;  // the room for a tile of either kind, in floats
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
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
                for (int part = 0; part < 4; ++part)
                    at[i][j][part] = 0;
    }
};

// The first row and column, of the block's tile, that are this warp's.
template <int SIDE>
__device__ inline int warp_row() { return threadIdx.x / (2 * WARP) * (SIDE / 2); }
template <int SIDE>
__device__ inline int warp_column() { return threadIdx.x / WARP % 2 * (SIDE / 2); }

template <bool ROUNDED>
__device__ inline unsigned operand(float x)
{
    return ROUNDED ? __float_as_uint(x) : to_tf32(x);
}

// Adds the product of a stage's tiles.
template <int SIDE, class Left, class Right>
__device__ inline void multiply_stage(const float *stage, Sums<SIDE> &sums)
{
    typedef Layout<SIDE> L;
    const int next_m = Left::DEEP ? L::DEEP_ROW : 1, a_next_k = Left::DEEP ? 1 : L::WIDE_ROW;
    const int next_n = Right::DEEP ? L::DEEP_ROW : 1, b_next_k = Right::DEEP ? 1 : L::WIDE_ROW;
    int r = threadIdx.x % WARP / 4, c = threadIdx.x % 4;
    const float *a = stage + (warp_row<SIDE>() + r) * next_m + c * a_next_k;
    const float *b = stage + L::TILE + (warp_column<SIDE>() + r) * next_n + c * b_next_k;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
        unsigned left[Sums<SIDE>::ROWS][4], right[Sums<SIDE>::COLUMNS][2];
#pragma unroll
        for (int i = 0; i < Sums<SIDE>::ROWS; ++i)
#pragma unroll
            for (int part = 0; part < 4; ++part)
                left[i][part] = operand<Left::ROUNDED>(
                    a[(16 * i + part % 2 * 8) * next_m + (k + part / 2 * 4) * a_next_k]);
#pragma unroll
        for (int j = 0; j < Sums<SIDE>::COLUMNS; ++j)
#pragma unroll
            for (int part = 0; part < 2; ++part)
                right[j][part] = operand<Right::ROUNDED>(
                    b[8 * j * next_n + (k + 4 * part) * b_next_k]);
#pragma unroll
        for (int i = 0; i < Sums<SIDE>::ROWS; ++i)
#pragma unroll
            for (int j = 0; j < Sums<SIDE>::COLUMNS; ++j)
                multiply_tf32(sums.at[i][j], left[i], right[j]);
    }
}

// The sums over `steps` tiles along k. All threads of the block must come here. `memory`: STAGES *
// Layout<SIDE>::STAGE floats of shared memory.
template <int SIDE, class Left, class Right>
__device__ inline void multiply(
    Left &left, Right &right, int steps, float *memory, Sums<SIDE> &sums)
{
    typedef Layout<SIDE> L;
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) {
            left.fetch(memory + step * L::STAGE);
            right.fetch(memory + step * L::STAGE + L::TILE);
        }
        close_copies();
    }
    int now = 0, then = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // all have this stage, and are done with the one before
        if (step + STAGES - 1 < steps) {
            left.fetch(memory + then * L::STAGE);
            right.fetch(memory + then * L::STAGE + L::TILE);
        }
        close_copies();
        multiply_stage<SIDE, Left, Right>(memory + now * L::STAGE, sums);
        now = now + 1 == STAGES ? 0 : now + 1;
        then = then + 1 == STAGES ? 0 : then + 1;
    }
}

// The tiles along k of split blockIdx.z, of gridDim.z: the first, and how many.
struct Share {
    int first, steps;

    __device__ explicit Share(long long depth)
    {
        int all = (int)((depth + DEPTH - 1) / DEPTH), each = (all + gridDim.z - 1) / gridDim.z;
        first = min(all, (int)blockIdx.z * each);
        steps = min(each, all - first);
    }
};

// What is done to a sum before it is stored: times the row's scale, plus its shift, plus the value of
// `others` there, and rectified. Each may be missing.
struct Finish {
    const float *scale, *shift, *others;
    bool rectified;

    __device__ float operator()(float value, int row, long long index) const
    {
        if (scale)
            value *= scale[row];
        if (shift)
            value += shift[row];
        if (others)
            value += others[index];
        return rectified ? rectify(value) : value;
    }
};

// Stores the block's sums. Row m of the tile is row first + m, of `rows`; it lies that many `step`
// behind y, and is row number `before` + first + m for the finish. `column`: where this thread's
// column, number threadIdx.x % SIDE, lies in a row; negative for none. The sums pass through shared
// memory, a half of the rows at a time, so that neighbouring threads store neighbours.
template <int SIDE>
__device__ inline void store(
    const Sums<SIDE> &sums, const Finish &finish, float *y, int before, int first, int rows,
    long long step, long long column, float *memory)
{
    const int ROW = Layout<SIDE>::WIDE_ROW, HALF = SIDE / 2;
    for (int half = 0; half < 2; ++half, first += HALF) {
        __syncthreads();
        if (warp_row<SIDE>() == half * HALF) {
            float *at = memory + threadIdx.x % WARP / 4 * ROW + warp_column<SIDE>()
                + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < Sums<SIDE>::ROWS; ++i)
#pragma unroll
                for (int j = 0; j < Sums<SIDE>::COLUMNS; ++j)
#pragma unroll
                    for (int part = 0; part < 4; ++part)
                        at[(16 * i + part / 2 * 8) * ROW + 8 * j + part % 2] = sums.at[i][j][part];
        }
        __syncthreads();
        if (column < 0)
            continue;
        int stop = min(HALF, rows - first);
#pragma unroll 4
        for (int m = threadIdx.x / SIDE; m < stop; m += TILE_THREADS / SIDE) {
            long long index = (first + m) * step + column;
            y[index] = finish(memory[m * ROW + threadIdx.x % SIDE], before + first + m, index);
        }
    }
}
