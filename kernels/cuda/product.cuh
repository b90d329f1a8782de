// The product of two matrices by tiles, for kernels that differ in what the matrices are.
//
// A block makes TILE x TILE results C[m, n], the sums over k of A[m, k] B[k, n], and each of its
// threads MICRO x MICRO of them in registers. DEPTH values of k at a time, tiles of A and of B pass
// through shared memory: every value read from there is used MICRO times, and every value read from
// global memory TILE times. There are two pairs of tiles: while one is multiplied, every thread
// already reads its share of the next.
//
// Where A and B come from is the business of a Left and a Right. Both read one thread's share:
//
//     Lane lane;                  // which elements of a tile these are
//     void read(real *values);    // their values in the next tile along k; 0 outside of the matrix

#pragma once

#include "common.cuh"

static const int TILE = 64;
static const int DEPTH = 16;
static const int MICRO = 4;
static const int SIDE = TILE / MICRO;            // threads along one side of a tile
static const int TILE_THREADS = SIDE * SIDE;     // in a block
static const int READS = TILE * DEPTH / TILE_THREADS;

// MICRO values, which the GPU moves at once.
struct alignas(16) Micro {
    real at[MICRO];
};

// Rows of k, of A turned and of B as it is; the last columns keep them in different banks.
struct alignas(16) Tile {
    real at[DEPTH][TILE + MICRO];
};

// The share of a thread in the reading of a tile: the elements (k + r k_step, other + r other_step)
// for r < READS, `other` being the row of A or the column of B. Neighbouring threads read
// neighbours along k where the matrix lies so in memory (`deep`), else along the other axis.
struct Lane {
    int k, other, k_step, other_step;

    __device__ explicit Lane(bool deep)
    {
        k = deep ? threadIdx.x % DEPTH : threadIdx.x / TILE;
        other = deep ? threadIdx.x / DEPTH : threadIdx.x % TILE;
        k_step = deep ? 0 : TILE_THREADS / TILE;
        other_step = deep ? TILE_THREADS / DEPTH : 0;
    }

    __device__ void put(Tile &tile, const real *values) const
    {
        for (int r = 0; r < READS; ++r)
            tile.at[k + r * k_step][other + r * other_step] = values[r];
    }
};

// What a thread of the block makes: rows and columns row ... row + MICRO - 1 of the block's tile.
__device__ inline int micro_row() { return threadIdx.x / SIDE * MICRO; }
__device__ inline int micro_column() { return threadIdx.x % SIDE * MICRO; }

__device__ inline void multiply_tiles(const Tile &a, const Tile &b, real sums[MICRO][MICRO])
{
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
        Micro left = *reinterpret_cast<const Micro *>(&a.at[k][micro_row()]);
        Micro right = *reinterpret_cast<const Micro *>(&b.at[k][micro_column()]);
#pragma unroll
        for (int i = 0; i < MICRO; ++i)
#pragma unroll
            for (int j = 0; j < MICRO; ++j)
                sums[i][j] += left.at[i] * right.at[j];
    }
}

// The thread's results, summed over `depth` values of k. All threads of the block must come here.
template <class Left, class Right>
__device__ inline void multiply(Left &left, Right &right, long long depth, real sums[MICRO][MICRO])
{
    __shared__ Tile a[2], b[2];
    real next_a[READS], next_b[READS];
    for (int i = 0; i < MICRO; ++i)
        for (int j = 0; j < MICRO; ++j)
            sums[i][j] = 0;
    int now = 0;
    for (long long done = -DEPTH; done < depth; done += DEPTH) {
        bool more = done + DEPTH < depth;
        if (more) {
            left.read(next_a);
            right.read(next_b);
        }
        if (done >= 0)
            multiply_tiles(a[now], b[now], sums);
        now = 1 - now;
        if (more) {
            // The other pair was last read before the barrier of the turn before.
            left.lane.put(a[now], next_a);
            right.lane.put(b[now], next_b);
        }
        __syncthreads();
    }
}

// A matrix in memory, as A or as B: element (k, other) at base[k k_step + other other_step].
struct Strided {
    Lane lane;
    const real *base;
    long long k_step, other_step;
    int first, others, depth;

    // `first`: the block's first row of A or column of B, of `others`.
    __device__ Strided(
        const real *base, int depth, long long k_step, int first, int others, long long other_step)
        : lane(k_step == 1), base(base), k_step(k_step), other_step(other_step), first(first),
          others(others), depth(depth)
    {
    }

    __device__ void read(real *values)
    {
        for (int r = 0; r < READS; ++r) {
            int k = lane.k + r * lane.k_step;
            long long other = first + lane.other + r * lane.other_step;
            bool inside = k < depth && other < others;
            values[r] = inside ? base[k * k_step + other * other_step] : (real)0;
        }
        depth -= DEPTH;
        base += DEPTH * k_step;
    }
};
