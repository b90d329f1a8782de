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

// LENGTH rows of A, or columns of B, whose neighbours are along k. Rounded ones have been laid out so
// that they can be copied four values at a time; others may lie anyhow.
template <class Shape, int LENGTH, bool IS_ROUNDED>
struct DeepTile {
    static const bool DEEP = true, ROUNDED = IS_ROUNDED;
    static const int DEPTH = Shape::DEPTH;
    bool by_four;
    int place;          // what the thread writes first of a tile
    int rows, left;     // of the matrix, from there on: rows, and values along k
    const float *from;  // what lies there of the next tile,
    long long step;     // and how far it is to the row that the thread copies next
    int within, inner;  // where it is in its piece; a piece's length
    long long skip;     // between pieces

    __device__ DeepTile(const Matrix &matrix, int first, int rows, long long k, long long depth)
        : by_four(IS_ROUNDED || matrix.is_by_four(depth)), inner(matrix.axis.inner),
          skip(matrix.axis.outer - matrix.axis.inner)
    {
        int count = by_four ? 4 : 1;
        int row = threadIdx.x / (DEPTH / count), at = threadIdx.x % (DEPTH / count) * count;
        place = kept(deep_place<Shape>(row, at));
        this->rows = rows - first - row;
        left = (int)(depth - k - at);
        long long piece = divide(k + at, inner, &within);
        from = matrix.base + (first + row) * matrix.step + piece * matrix.axis.outer + within;
        step = Shape::THREADS * count / DEPTH * matrix.step;
    }

    template <int COUNT>
    __device__ void copy(float *tile) const
    {
        const int PASS = Shape::THREADS * COUNT / DEPTH;
        static_assert(PASS % 8 == 0, "a thread's rows must have one order of quads");
        const float *next = from;
#pragma unroll COUNT
        for (int r = 0; r < LENGTH; r += PASS, next += step)
            copy_later<COUNT>(tile + place + r * DEPTH, next, left > 0 && r < rows);
    }

    __device__ void fetch(float *tile)
    {
        if (by_four)
            copy<4>(tile);
        else
            copy<IS_ROUNDED ? 4 : 1>(tile);
        left -= DEPTH;
        from += DEPTH;
        for (within += DEPTH; within >= inner; within -= inner)
            from += skip;
    }
};

// LENGTH rows of A, or columns of B, whose neighbours are among them.
template <class Shape, int LENGTH, bool IS_ROUNDED>
struct WideTile {
    static const bool DEEP = false, ROUNDED = IS_ROUNDED;
    static const int DEPTH = Shape::DEPTH, ROW = Layout<Shape, LENGTH, false>::ROW;
    bool by_four;
    int place;          // what the thread writes first of a tile
    int left;           // rows of the matrix from there on, if its columns are inside
    const float *from;  // what lies there of the next tile,
    long long step;     // and how far it is to the next row, which is one k further

    __device__ WideTile(
        const Matrix &matrix, long long first, long long columns, long long k, long long depth)
        : by_four(IS_ROUNDED || matrix.is_by_four(columns)), step(matrix.step)
    {
        int count = by_four ? 4 : 1;
        int row = threadIdx.x / (LENGTH / count), at = threadIdx.x % (LENGTH / count) * count;
        place = kept(row * ROW + at);
        bool exists = first + at < columns;
        left = exists ? (int)(depth - k - row) : 0;
        from = matrix.base + (exists ? matrix.axis.offset(first + at) : 0) + (k + row) * step;
    }

    template <int COUNT>
    __device__ void copy(float *tile) const
    {
        const int PASS = Shape::THREADS * COUNT / LENGTH;
        const float *next = from;
#pragma unroll COUNT
        for (int r = 0; r < DEPTH; r += PASS, next += PASS * step)
            copy_later<COUNT>(tile + place + r * ROW, next, r < left);
    }

    __device__ void fetch(float *tile)
    {
        if (by_four)
            copy<4>(tile);
        else
            copy<IS_ROUNDED ? 4 : 1>(tile);
        left -= DEPTH;
        from += DEPTH * step;
    }
};
