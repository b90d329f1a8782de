// Tiles of matrices in memory, for products on tensor cores (tiles_tf32.cuh).

#pragma once

#include "tiles_tf32.cuh"
#include "windows.cuh"

// How one axis of a matrix lies in memory: neighbours along it, `inner` of them; the next `inner`
// lie `outer` further. A matrix in one piece has `inner` of its size; the positions of all images
// at once are an axis with `inner` pixels and images `outer` apart.
struct Neighbours {
    int inner;
    long long outer;

    __device__ long long offset(long long number) const
    {
        int within;
        long long piece = divide(number, inner, &within);
        return piece * outer + within;
    }
};

// A matrix: `axis` has the neighbours, and from one row to the next it is `step`.
struct Matrix {
    const float *base;
    long long step;
    Neighbours axis;

    // Whether it can be copied four values at a time, up to a limit that is a multiple of 4.
    __device__ bool is_by_four(long long limit) const
    {
        bool steps = (step | axis.outer | axis.inner | limit) % 4 == 0;
        return steps && (unsigned long long)base % 16 == 0;
    }
};

// LENGTH rows of A, or columns of B, whose neighbours are along k.
template <int LENGTH, bool IS_ROUNDED>
struct DeepTile {
    static const bool DEEP = true, ROUNDED = IS_ROUNDED;
    Matrix matrix;
    bool by_four;
    int row, at;          // the thread's first value in a tile, or first of four
    int rows;             // of the matrix, from the tile's first on
    long long left, place;  // values to come along k, from the thread's next on; where that lies
    int within;             // the same in its piece

    __device__ DeepTile(const Matrix &matrix, int first, int rows, long long k, long long depth)
        : matrix(matrix), by_four(matrix.is_by_four(depth)), rows(rows - first)
    {
        row = threadIdx.x / (by_four ? DEPTH / 4 : DEPTH);
        at = by_four ? threadIdx.x % (DEPTH / 4) * 4 : threadIdx.x % DEPTH;
        left = depth - k - at;
        long long piece = divide(k + at, matrix.axis.inner, &within);
        place = piece * matrix.axis.outer + within;
        this->matrix.base += first * matrix.step;
    }

    template <int COUNT>
    __device__ void copy(float *tile) const
    {
        const int PASS = TILE_THREADS * COUNT / DEPTH;  // a multiple of 8: one order of quads
        const float *from = matrix.base + place + row * matrix.step;
#pragma unroll 4
        for (int r = 0; r < LENGTH; r += PASS) {
            bool wanted = left > 0 && row + r < rows;
            copy_later<COUNT>(tile + deep_place(row, at) + r * DEPTH,
                              wanted ? from + r * matrix.step : matrix.base, wanted);
        }
    }

    __device__ void fetch(float *tile)
    {
        if (by_four)
            copy<4>(tile);
        else
            copy<1>(tile);
        left -= DEPTH;
        place += DEPTH;
        for (within += DEPTH; within >= matrix.axis.inner; within -= matrix.axis.inner)
            place += matrix.axis.outer - matrix.axis.inner;
    }
};

// LENGTH rows of A, or columns of B, whose neighbours are among them.
template <int LENGTH, bool IS_ROUNDED>
struct WideTile {
    static const bool DEEP = false, ROUNDED = IS_ROUNDED;
    Matrix matrix;
    bool by_four, exists;  // exists: whether the thread has columns inside
    int row, at;           // the thread's first value in a tile, or first of four
    long long k, depth;    // the next tile's first row; the end

    __device__ WideTile(
        const Matrix &matrix, long long first, long long columns, long long k, long long depth)
        : matrix(matrix), by_four(matrix.is_by_four(columns)), k(k), depth(depth)
    {
        int count = by_four ? 4 : 1;
        row = threadIdx.x / (LENGTH / count);
        at = threadIdx.x % (LENGTH / count) * count;
        exists = first + at < columns;
        this->matrix.base += exists ? matrix.axis.offset(first + at) : 0;
    }

    template <int COUNT>
    __device__ void copy(float *tile) const
    {
        const int PASS = TILE_THREADS * COUNT / LENGTH;
#pragma unroll 4
        for (int r = 0; r < DEPTH; r += PASS) {
            bool wanted = exists && k + row + r < depth;
            copy_later<COUNT>(tile + (row + r) * Layout<LENGTH, false>::ROW + at,
                              matrix.base + (wanted ? (k + row + r) * matrix.step : 0), wanted);
        }
    }

    __device__ void fetch(float *tile)
    {
        if (by_four)
            copy<4>(tile);
        else
            copy<1>(tile);
        k += DEPTH;
    }
};
