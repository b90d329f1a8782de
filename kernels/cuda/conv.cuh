// Convolutions as products of matrices that are never in memory: how the kernels of
// conv.cu read them. The names are those of kernels/reference/conv.py.

#pragma once

#include "product.cuh"
#include "windows.cuh"

// Planes of `rows` x `columns` pixels, zero outside.
struct Planes {
    const real *base;
    int rows, columns;

    __device__ real pixel(int plane, int row, int column) const
    {
        bool inside = row >= 0 && row < rows && column >= 0 && column < columns;
        return inside ? base[((long long)plane * rows + row) * columns + column] : (real)0;
    }
};

// The taps of a window: (plane, i, j) is pixel (row + i row_step, column + j column_step) of plane
// number `plane`, for i < height, j < width.
struct Window {
    int height, width, row, column, row_step, column_step;
};

// As B, the columns of im2col: k counts the taps of the window at one place, which the thread's
// column of B stands for. A place outside of the images has no taps.
struct Patches {
    Lane lane;
    Planes planes;
    Window window;
    int taps;  // still to come, counted from the first this thread reads
    Digits tap, step;

    __device__ Patches(const Planes &planes, const Window &window, int depth)
        : lane(false), planes(planes), window(window), taps(depth - lane.k),
          tap(lane.k, window.height, window.width), step(lane.k_step, window.height, window.width)
    {
    }

    __device__ void read(real *values)
    {
        for (int r = 0; r < READS; ++r) {
            values[r] = taps > 0 ? planes.pixel(
                tap.high, window.row + tap.middle * window.row_step,
                window.column + tap.low * window.column_step) : (real)0;
            tap.add(step, window.height, window.width);
            taps -= lane.k_step;
        }
    }
};

// As A, the filters turned: row c, and k counts the taps (o, t, u) of one class of pixels.
struct TurnedFilters {
    Lane lane;
    const real *base;
    const Residue &down, &across;
    int kernel_h, kernel_w, first, channels, left;
    Digits tap, step;

    // `first`: the block's first channel, of `channels`; `depth`: the number of taps.
    __device__ TurnedFilters(
        const real *base, const Residue &down, const Residue &across, int kernel_h, int kernel_w,
        int first, int channels, int depth)
        : lane(true), base(base), down(down), across(across), kernel_h(kernel_h),
          kernel_w(kernel_w), first(first), channels(channels), left(depth - lane.k),
          tap(lane.k, max(down.taps, 1), max(across.taps, 1)),
          step(DEPTH, max(down.taps, 1), max(across.taps, 1))
    {
    }

    __device__ void read(real *values)
    {
        int area = kernel_h * kernel_w;
        int place = (down.tap + tap.middle * down.tap_step) * kernel_w
            + across.tap + tap.low * across.tap_step;
        for (int r = 0; r < READS; ++r) {
            int c = first + lane.other + r * lane.other_step;
            bool inside = left > 0 && c < channels;
            long long plane = (long long)tap.high * channels + c;
            values[r] = inside ? base[plane * area + place] : (real)0;
        }
        tap.add(step, down.taps, across.taps);
        left -= DEPTH;
    }
};

// The output positions that a thread visits, DEPTH apart, when k counts those of many images.
struct Walk {
    Lane lane;
    int rows, columns;
    long long left;
    Digits at, step;

    // Those of [start, stop) where images have rows x columns positions.
    __device__ Walk(long long start, long long stop, int rows, int columns)
        : lane(true), rows(rows), columns(columns), left(stop - start - lane.k),
          at(start + lane.k, rows, columns), step(DEPTH, rows, columns)
    {
    }

    __device__ void advance()
    {
        at.add(step, rows, columns);
        left -= DEPTH;
    }
};

// As A, dy: row o, and k counts positions.
struct Slopes {
    Lane lane;
    Walk walk;
    const real *base;
    int first, outputs;
    long long image_step;

    // `base`: the first of the group's outputs; `first`: the block's first one, of `outputs`.
    __device__ Slopes(
        const Walk &walk, const real *base, int first, int outputs, long long image_step)
        : lane(true), walk(walk), base(base), first(first), outputs(outputs),
          image_step(image_step)
    {
    }

    __device__ void read(real *values)
    {
        long long positions = (long long)walk.rows * walk.columns;
        const real *here = base + walk.at.high * image_step
            + (long long)walk.at.middle * walk.columns + walk.at.low;
        for (int r = 0; r < READS; ++r) {
            int o = first + lane.other + r * lane.other_step;
            values[r] = walk.left > 0 && o < outputs ? here[o * positions] : (real)0;
        }
        walk.advance();
    }
};

// As B, the columns of im2col turned: k counts positions, and column (c, i, j) reads that tap.
struct TurnedPatches {
    Lane lane;
    Walk walk;
    Planes planes;
    int channels, stride_h, stride_w;  // channels: from one image to the next
    int plane[READS], row[READS], column[READS];
    bool inside[READS];

    // `planes`: the group's of the first image; `first`: the block's first column, of `taps`.
    __device__ TurnedPatches(
        const Walk &walk, const Planes &planes, int channels, int stride_h, int stride_w,
        const Window &window, int first, int taps)
        : lane(true), walk(walk), planes(planes), channels(channels), stride_h(stride_h),
          stride_w(stride_w)
    {
        for (int r = 0; r < READS; ++r) {
            int number = first + lane.other + r * lane.other_step;
            Digits tap(number, window.height, window.width);
            inside[r] = number < taps;
            plane[r] = tap.high;
            row[r] = window.row + tap.middle * window.row_step;
            column[r] = window.column + tap.low * window.column_step;
        }
    }

    __device__ void read(real *values)
    {
        Planes image = planes;
        image.base += (long long)walk.at.high * channels * planes.rows * planes.columns;
        int down = walk.at.middle * stride_h, across = walk.at.low * stride_w;
        for (int r = 0; r < READS; ++r)
            values[r] = walk.left > 0 && inside[r]
                ? image.pixel(plane[r], row[r] + down, column[r] + across) : (real)0;
        walk.advance();
    }
};
