// The product of two matrices on tensor cores, for kernels that differ in what the matrices are.
//
// A block makes HEIGHT x WIDTH results C[m, n], the sums over k of A[m, k] B[k, n], and each of its
// warps WARP_HEIGHT x WARP_WIDTH of them, in registers, from warp_row and warp_column on. DEPTH
// values of k at a time, tiles of A and of B are copied to shared memory, 16 bytes at a time, while
// the tiles before them are multiplied: STAGES of them are there or under way. Operands are rounded
// to TF32 on their way to the tensor cores, unless they are ROUNDED already. A Shape says all this.
//
// A tile lies in shared memory as its matrix does in global memory: `deep`, with neighbours along
// k, or not, with neighbours along m or n. What copies it is a Left or a Right:
//
//     static const bool DEEP, ROUNDED;
//     void fetch(float *tile);    // start copying the next tile along k; zeros outside the matrix

#pragma once

#include "tensor.cuh"

static const int WIDTH = 128, STAGES = 3;  // of every Shape

// Warps that multiply each for itself, two by two.
template <int ROWS>
struct Warps {
    static const int HEIGHT = ROWS, DEPTH = 16, PADDING = 8;
    static const int WARP_HEIGHT = HEIGHT / 2, WARP_WIDTH = WIDTH / 2, THREADS = 4 * WARP;

    __device__ static int warp_row() { return threadIdx.x / WARP / 2 * WARP_HEIGHT; }
    __device__ static int warp_column() { return threadIdx.x / WARP % 2 * WARP_WIDTH; }
};
typedef Warps<128> High;
typedef Warps<64> Low;

// How the tile of a matrix that has LENGTH rows of A or columns of B lies in shared memory, such
// that the rows which a warp copies or reads at once are in different banks, of which there are 32.
// A wide row is a little longer for that. A deep one holds its four values at a time in an order of
// its own: quad q of row r lies in place of quad q ^ (r / 2 % 4), or of q ^ (r % 8) in longer rows.
template <class Shape, int LENGTH, bool DEEP>
struct Layout {
    static const int ROW = DEEP ? Shape::DEPTH : LENGTH + Shape::PADDING;
};

template <class Shape>
__device__ inline int deep_place(int row, int k)
{
    const int DEPTH = Shape::DEPTH;
    return row * DEPTH + (k / 4 ^ row * DEPTH / 32 % (DEPTH / 4)) * 4 + k % 4;
}

// The room for a stage, of which the first part is that of A's tile, in floats.
template <class Shape>
struct Stage {
    static const int LEFT = Shape::DEPTH * (Shape::HEIGHT + Shape::PADDING);
    static const int SIZE = LEFT + Shape::DEPTH * (WIDTH + Shape::PADDING);
};

// A warp's results: ROWS x COLUMNS tiles of the tensor cores, each 16 x 8.
template <class Shape>
struct Sums {
    static const int ROWS = Shape::WARP_HEIGHT / 16, COLUMNS = Shape::WARP_WIDTH / 8;
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

// What a warp multiplies of a tile: 16 rows of A or columns of B at a time, from `first` on, and 8
// k. They come as multiply_tf32 takes them: `a` of A, and `b` of 8 columns, then `b` of the next.
template <class Shape, int LENGTH, bool LEFT, class Tile>
struct Operands {
    static const int ROW = Layout<Shape, LENGTH, Tile::DEEP>::ROW, DEPTH = Shape::DEPTH;
    int at[Tile::DEEP ? DEPTH / 8 : 1];  // of a tile; deep ones have another order every 8 k

    __device__ explicit Operands(int first)
    {
        int lane = threadIdx.x % WARP, part = lane / 8;
        if (!Tile::DEEP)
            at[0] = kept(lane % 4 * ROW + first + lane / 4);
        else
#pragma unroll
            for (int k = 0; k < DEPTH; k += 8)
                at[k / 8] = kept(
                    deep_place<Shape>(first + eight(part) * 8 + lane % 8, k + four(part)));
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

// Adds the product of a stage's tiles: every warp its part.
template <class Shape, class Left, class Right>
__device__ inline void multiply_stage(
    const Operands<Shape, Shape::HEIGHT, true, Left> &a,
    const Operands<Shape, WIDTH, false, Right> &b, const float *stage, Sums<Shape> &sums)
{
    const int ROWS = Sums<Shape>::ROWS, COLUMNS = Sums<Shape>::COLUMNS;
#pragma unroll
    for (int k = 0; k < Shape::DEPTH; k += 8) {
        unsigned left[ROWS][4], right[COLUMNS / 2][4];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
            a.load(left[i], stage, i, k);
#pragma unroll
        for (int j = 0; j < COLUMNS / 2; ++j)
            b.load(right[j], stage + Stage<Shape>::LEFT, j, k);
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j)
                multiply_tf32(sums.at[i][j], left[i], right[j / 2] + j % 2 * 2);
    }
}

// How a block multiplies: here by warps, each for itself.
template <class Shape, class Left, class Right>
struct Product {
    Operands<Shape, Shape::HEIGHT, true, Left> a;
    Operands<Shape, WIDTH, false, Right> b;

    __device__ Product() : a(Shape::warp_row()), b(Shape::warp_column()) {}

    // Before the barrier behind which all threads have the tiles.
    __device__ void show() const {}

    // After that barrier, before the next tiles begin to be copied.
    __device__ void start(const float *stage, Sums<Shape> &sums) const {}

    // After that: the sums are to have the product.
    __device__ void finish(const float *stage, Sums<Shape> &sums) const
    {
        multiply_stage<Shape, Left, Right>(a, b, stage, sums);
    }
};

// The sums over `steps` tiles along k. All threads of the block must come here. `memory`: room for
// all stages, in shared memory.
template <class Shape, class Left, class Right>
__device__ inline void multiply(
    Left &left, Right &right, int steps, float *memory, Sums<Shape> &sums)
{
    const int SIZE = Stage<Shape>::SIZE, LEFT = Stage<Shape>::LEFT;
    Product<Shape, Left, Right> product;
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) {
            left.fetch(memory + step * SIZE);
            right.fetch(memory + step * SIZE + LEFT);
        }
        close_copies();
    }
    int now = 0, then = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<STAGES - 2>();
        product.show();
        __syncthreads();  // all have this stage, and are done with the one before
        product.start(memory + now * SIZE, sums);
        if (step + STAGES - 1 < steps) {
            left.fetch(memory + then * SIZE);
            right.fetch(memory + then * SIZE + LEFT);
        }
        close_copies();
        product.finish(memory + now * SIZE, sums);
        now = now + 1 == STAGES ? 0 : now + 1;
        then = then + 1 == STAGES ? 0 : then + 1;
    }
}

// The tiles along k of split blockIdx.z, of gridDim.z: the first, and how many.
template <class Shape>
struct Share {
    int first, steps;

    __device__ explicit Share(long long depth)
    {
        int all = (int)((depth + Shape::DEPTH - 1) / Shape::DEPTH);
        int each = (all + gridDim.z - 1) / gridDim.z;
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
// column (tile_column) lies in a row; negative for none. The sums pass through shared memory, 64
// rows at a time, so that neighbouring threads store neighbours.
template <class Shape>
__device__ inline void store(
    const Sums<Shape> &sums, const Finish &finish, float *y, int before, int first, int rows,
    long long step, long long column, float *memory)
{
    const int ROW = WIDTH + 8, ROWS = 64, PASS = Shape::THREADS / WIDTH, BATCH = 8;
    for (int part = 0; part < Shape::HEIGHT; part += ROWS, first += ROWS) {
        __syncthreads();
        int row = Shape::warp_row() - part;
        if (0 <= row && row < ROWS) {
            float *at = memory + (row + threadIdx.x % WARP / 4) * ROW + Shape::warp_column()
                + threadIdx.x % 4 * 2;
#pragma unroll
            for (int i = 0; i < Sums<Shape>::ROWS; ++i)
#pragma unroll
                for (int j = 0; j < Sums<Shape>::COLUMNS; ++j)
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
