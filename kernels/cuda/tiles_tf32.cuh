// The product of two matrices on tensor cores, for kernels that differ in what the matrices are.
//
// A block makes HEIGHT x WIDTH results C[m, n], the sums over k of A[m, k] B[k, n], and each of its
// warps, which lie in WARP_ROWS x WARP_COLUMNS, its part of them in registers. DEPTH values of k at
// a time, tiles of A and of B are copied to shared memory, 16 bytes at a time, while the tiles
// before them are multiplied: STAGES of them are there or under way. Operands are rounded to TF32
// on their way to the tensor cores, unless they are ROUNDED already.
//
// A tile lies in shared memory as its matrix does in global memory: `deep`, with neighbours along
// k, or not, with neighbours along m or n. What copies it is a Left or a Right:
//
//     static const bool DEEP, ROUNDED;
//     void fetch(float *tile);    // start copying the next tile along k; zeros outside the matrix

#pragma once

#include "tensor.cuh"

static const int WIDTH = 128, DEPTH = 16, STAGES = 3;
static const int WARP_ROWS = 2, WARP_COLUMNS = 2, TILE_THREADS = WARP_ROWS * WARP_COLUMNS * WARP;

// How the tile of a matrix that has LENGTH rows of A or columns of B lies in shared memory, such
// that the rows which a warp copies or reads at once are in different banks, of which there are 32.
// A wide row is a little longer for that. A deep one holds its four values at a time in an order of
// its own: quad q of row r lies in place of quad q ^ (r / 2 % 4).
template <int LENGTH, bool DEEP>
struct Layout {
    static const int ROW = DEEP ? DEPTH : LENGTH + 8;
};

__device__ inline int deep_place(int row, int k)
{
    return row * DEPTH + (k / 4 ^ row / 2 % 4) * 4 + k % 4;
}

// The room for a tile of either kind, and for a stage, in floats.
template <int LENGTH>
struct Room {
    static const int TILE = DEPTH * (LENGTH + 8);
};
template <int HEIGHT>
struct Stage {
    static const int SIZE = Room<HEIGHT>::TILE + Room<WIDTH>::TILE;
};

// A warp's results: ROWS x COLUMNS tiles of the tensor cores, each 16 x 8.
template <int HEIGHT>
struct Sums {
    static const int ROWS = HEIGHT / WARP_ROWS / 16, COLUMNS = WIDTH / WARP_COLUMNS / 8;
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
template <int HEIGHT>
__device__ inline int warp_row()
{
    return threadIdx.x / WARP / WARP_COLUMNS * (HEIGHT / WARP_ROWS);
}

__device__ inline int warp_column()
{
    return threadIdx.x / WARP % WARP_COLUMNS * (WIDTH / WARP_COLUMNS);
}

// What a warp multiplies of a tile: 16 rows of A or columns of B at a time, from `first` on, and 8 k.
// They come as multiply_tf32 takes them: `a` of A, and `b` of 8 columns, then that of the next 8.
template <int LENGTH, bool LEFT, class Tile>
struct Operands {
    static const int ROW = Layout<LENGTH, Tile::DEEP>::ROW;
    int at[Tile::DEEP ? DEPTH / 8 : 1];  // of a tile; deep ones have another order every 8 k

    __device__ explicit Operands(int first)
    {
        int lane = threadIdx.x % WARP, part = lane / 8;
        if (!Tile::DEEP)
            at[0] = kept(lane % 4 * ROW + first + lane / 4);
        else
#pragma unroll
            for (int k = 0; k < DEPTH; k += 8)
                at[k / 8] = kept(deep_place(first + eight(part) * 8 + lane % 8, k + four(part)));
    }

    // Of a lane's four values, or of the four matrices that a warp loads at once, which is of the
    // second eight rows or columns, and which of the second four k.
    __device__ static int eight(int part) { return LEFT ? part % 2 : part / 2; }
    __device__ static int four(int part) { return 4 * (LEFT ? part / 2 : part % 2); }

    __device__ void load(unsigned (&values)[4], const float *tile, int sixteen, int k) const
    {
        const float *from = Tile::DEEP ? tile + at[k / 8] + 16 * sixteen * ROW
                                       : tile + at[0] + k * ROW + 16 * sixteen;
        if (Tile::DEEP)
            load_matrices(values, from);
#pragma unroll
        for (int part = 0; part < 4; ++part) {
            if (!Tile::DEEP)
                values[part] = __float_as_uint(from[four(part) * ROW + eight(part) * 8]);
            if (!Tile::ROUNDED)
                values[part] = to_tf32(__uint_as_float(values[part]));
        }
    }
};

// Adds the product of a stage's tiles.
template <int HEIGHT, class Left, class Right>
__device__ inline void multiply_stage(
    const Operands<HEIGHT, true, Left> &a, const Operands<WIDTH, false, Right> &b,
    const float *stage, Sums<HEIGHT> &sums)
{
#pragma unroll
    for (int k = 0; k < DEPTH; k += 8) {
        unsigned left[Sums<HEIGHT>::ROWS][4], right[Sums<HEIGHT>::COLUMNS / 2][4];
#pragma unroll
        for (int i = 0; i < Sums<HEIGHT>::ROWS; ++i)
            a.load(left[i], stage, i, k);
#pragma unroll
        for (int j = 0; j < Sums<HEIGHT>::COLUMNS / 2; ++j)
            b.load(right[j], stage + Room<HEIGHT>::TILE, j, k);
#pragma unroll
        for (int i = 0; i < Sums<HEIGHT>::ROWS; ++i)
#pragma unroll
            for (int j = 0; j < Sums<HEIGHT>::COLUMNS; ++j)
                multiply_tf32(sums.at[i][j], left[i], right[j / 2] + j % 2 * 2);
    }
}

// The sums over `steps` tiles along k. All threads of the block must come here. `memory`: STAGES *
// Stage<HEIGHT>::SIZE floats of shared memory.
template <int HEIGHT, class Left, class Right>
__device__ inline void multiply(
    Left &left, Right &right, int steps, float *memory, Sums<HEIGHT> &sums)
{
    const int SIZE = Stage<HEIGHT>::SIZE, RIGHT = Room<HEIGHT>::TILE;
    Operands<HEIGHT, true, Left> a(warp_row<HEIGHT>());
    Operands<WIDTH, false, Right> b(warp_column());
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) {
            left.fetch(memory + step * SIZE);
            right.fetch(memory + step * SIZE + RIGHT);
        }
        close_copies();
    }
    int now = 0, then = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // all have this stage, and are done with the one before
        if (step + STAGES - 1 < steps) {
            left.fetch(memory + then * SIZE);
            right.fetch(memory + then * SIZE + RIGHT);
        }
        close_copies();
        multiply_stage<HEIGHT, Left, Right>(a, b, memory + now * SIZE, sums);
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

// What is done to a sum before it is stored: times the row's scale, plus its shift, plus the value
// of `others` there, and rectified. Each may be missing.
struct Finish {
    const float *scale, *shift, *others;
    bool rectified;

    // Of COUNT sums that are PASS rows apart, where rows lie `step` apart and there are `left` of
    // them. Step by step, so that a thread waits once for what it reads for all.
    template <int COUNT, int PASS>
    __device__ void apply(
        float (&values)[COUNT], int row, long long index, long long step, int left) const
    {
        if (scale)
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                values[i] *= i * PASS < left ? scale[row + i * PASS] : 0;
        if (shift)
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                values[i] += i * PASS < left ? shift[row + i * PASS] : 0;
        if (others)
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                values[i] += i * PASS < left ? others[index + i * PASS * step] : 0;
        if (rectified)
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                values[i] = rectify(values[i]);
    }
};

// The column, of the block's tile, that this thread stores.
__device__ inline int tile_column() { return threadIdx.x % WIDTH; }

// Stores the block's sums. Row m of the tile is row first + m, of `rows`; it lies that many `step`
// behind y, and is row number `before` + first + m for the finish. `column`: where the thread's
// column (tile_column) lies in a row; negative for none. The sums pass through shared memory, those
// of a row of warps at a time, so that neighbouring threads store neighbours.
template <int HEIGHT>
__device__ inline void store(
    const Sums<HEIGHT> &sums, const Finish &finish, float *y, int before, int first, int rows,
    long long step, long long column, float *memory)
{
    const int ROW = WIDTH + 8, ROWS = HEIGHT / WARP_ROWS, PASS = TILE_THREADS / WIDTH, BATCH = 8;
    for (int part = 0; part < WARP_ROWS; ++part, first += ROWS) {
        __syncthreads();
        if (warp_row<HEIGHT>() == part * ROWS) {
            float *at = memory + threadIdx.x % WARP / 4 * ROW + warp_column()
                + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < Sums<HEIGHT>::ROWS; ++i)
#pragma unroll
                for (int j = 0; j < Sums<HEIGHT>::COLUMNS; ++j)
#pragma unroll
                    for (int k = 0; k < 4; ++k)
                        at[(16 * i + k / 2 * 8) * ROW + 8 * j + k % 2] = sums.at[i][j][k];
        }
        __syncthreads();
        if (column < 0)
            continue;
        int stop = min(ROWS, rows - first);
        for (int m = threadIdx.x / WIDTH; m < stop; m += BATCH * PASS) {
            long long index = (first + m) * step + column;
            float values[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                values[i] = memory[(m + i * PASS) * ROW + tile_column()];
            finish.apply<BATCH, PASS>(values, before + first + m, index, step, stop - m);
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                if (m + i * PASS < stop)
                    y[index + i * PASS * step] = values[i];
        }
    }
}
