// Convolutions as products on tensor cores: how the kernels of conv_tf32.cu read and write images.

#pragma once

#include "tiles_tf32.cuh"
#include "windows.cuh"

struct Kernel {
    int height, width, stride_h, stride_w, top, left, dilation_h, dilation_w;
};

// Images' channels, in all groups, and their planes.
struct Maps {
    int channels, rows, columns;

    __device__ int pixels() const { return rows * columns; }
};

// Along one axis, what a product's positions read and where they lie: position p, of `positions`, is
// pixel first + p step of the target, and its tap t pixel start + p stride + t tap_step of the source.
struct Axis {
    int positions, first, step, start, stride, tap_step, taps;

    __device__ static Axis forward(int positions, int before, int stride, int kernel, int dilation)
    {
        return {positions, 0, 1, -before, stride, dilation, kernel};
    }

    __device__ static Axis backward(const Residue &to, int stride)
    {
        return {to.pixels, to.first, stride, to.start, 1, -to.back, to.taps};
    }
};

// What is done to a sum before it is stored: times the output's scale, plus its shift, plus the value
// of `others` there, and rectified. Each may be missing.
struct Finish {
    const float *scale, *shift, *others;
    bool rectified;

    __device__ float operator()(float value, int output, long long index) const
    {
        if (scale)
            value *= scale[output];
        if (shift)
            value += shift[output];
        if (others)
            value += others[index];
        return rectified ? rectify(value) : value;
    }
};

// A tap as an offset from where the window of a position begins. A tap or a position that does not
// exist is far below every image, so that its pixel is outside.
struct alignas(16) Tap {
    int offset, row, column, unused;
};

static const int FAR = 1 << 29;

__device__ inline bool is_inside(int row, int column, const Maps &maps)
{
    return (unsigned)row < (unsigned)maps.rows && (unsigned)column < (unsigned)maps.columns;
}

// SIDE rows of A, DEPTH values of k of each: rows `first` ... of a matrix (rows, depth) that lies in
// memory, row after row `row_step` apart, from k on. Four values at a time, where `by_four`.
template <int SIDE>
__device__ inline void fetch_rows(
    float *tile, const float *matrix, long long row_step, int first, int rows, int k, int depth,
    bool by_four)
{
    if (by_four) {
#pragma unroll
        for (int r = 0; r < SIDE * DEPTH / 4 / TILE_THREADS; ++r) {
            int number = threadIdx.x + r * TILE_THREADS;
            int row = number / (DEPTH / 4), at = number % (DEPTH / 4) * 4;
            bool wanted = first + row < rows && k + at < depth;
            copy_later<4>(tile + row * Layout<SIDE>::DEEP_ROW + at,
                          wanted ? matrix + (first + row) * row_step + k + at : matrix, wanted);
        }
    } else {
#pragma unroll 4
        for (int r = 0; r < SIDE * DEPTH / TILE_THREADS; ++r) {
            int number = threadIdx.x + r * TILE_THREADS;
            int row = number / DEPTH, at = number % DEPTH;
            bool wanted = first + row < rows && k + at < depth;
            copy_later<1>(tile + row * Layout<SIDE>::DEEP_ROW + at,
                          wanted ? matrix + (first + row) * row_step + k + at : matrix, wanted);
        }
    }
}

// Whether rows of this matrix can be copied four values at a time.
__device__ inline bool lies_by_four(const float *matrix, long long row_step)
{
    return row_step % 4 == 0 && (unsigned long long)matrix % 16 == 0;
}

// The tiles of a convolution: A is the filters (outputs, depth), B the columns of im2col. The taps of
// the next tile are written to a table in shared memory, which all threads read.
template <int SIDE>
struct ConvTiles {
    const float *source, *filters;
    Tap *table;  // two of DEPTH taps
    Maps from;
    Axis down, across;
    long long window;  // where that of the thread's position begins in the source
    int row, column;   // the same in its plane
    int row_step, first, outputs, k, depth;
    Digits tap, step;  // of the table's next entry
    bool by_four;
    int turn;

    // `position`: the thread's, -1 for none.
    __device__ ConvTiles(
        const float *source, const Maps &from, int first_channel, const float *filters,
        int row_step, int first, int outputs, int depth, const Axis &down, const Axis &across,
        long long position, int k, float *memory)
        : source(source), filters(filters), table((Tap *)memory), from(from), down(down), across(across),
          row_step(row_step), first(first), outputs(outputs), k(k), depth(depth),
          tap(k + threadIdx.x % DEPTH, max(down.taps, 1), max(across.taps, 1)),
          step(DEPTH, max(down.taps, 1), max(across.taps, 1)),
          by_four(depth % 4 == 0 && lies_by_four(filters, row_step)), turn(0)
    {
        Digits place(max(position, 0LL), down.positions, across.positions);
        row = down.start + place.middle * down.stride;
        column = across.start + place.low * across.stride;
        long long plane = (long long)place.high * from.channels + first_channel;
        window = (plane * from.rows + row) * from.columns + column;
        if (position < 0)
            row = FAR;
        prepare();
    }

    // The table of the tile after the next to be fetched, or at first of the first.
    __device__ void prepare()
    {
        if (threadIdx.x < DEPTH) {
            int down_by = tap.middle * down.tap_step, across_by = tap.low * across.tap_step;
            int offset = (tap.high * from.rows + down_by) * from.columns + across_by;
            bool exists = k + turn * DEPTH + (int)threadIdx.x < depth;
            Tap entry = {exists ? offset : 0, exists ? down_by : FAR, across_by, 0};
            table[turn % 2 * DEPTH + threadIdx.x] = entry;
            tap.add(step, max(down.taps, 1), max(across.taps, 1));
        }
        ++turn;
    }

    __device__ void fetch(float *stage)
    {
        const Tap *taps = table + (turn - 1) % 2 * DEPTH;
        int done = k + (turn - 1) * DEPTH;
        fetch_rows<SIDE>(stage, filters, row_step, first, outputs, done, depth, by_four);
        float *b = stage + Layout<SIDE>::TILE + threadIdx.x % SIDE;
#pragma unroll
        for (int r = 0; r < SIDE * DEPTH / TILE_THREADS; ++r) {
            int at = threadIdx.x / SIDE + r * (TILE_THREADS / SIDE);
            Tap here = taps[at];
            bool wanted = is_inside(row + here.row, column + here.column, from);
            copy_later<1>(b + at * Layout<SIDE>::WIDE_ROW,
                          wanted ? source + window + here.offset : source, wanted);
        }
    }
};

// Stores sums at the pixels of the target that their positions stand for.
struct ConvResults {
    float *target;
    const Finish &finish;
    Maps to;
    Axis down, across;
    long long start, count;
    int first, outputs, first_output;  // of the tile, of a group, of the group
    long long pixel;                   // of the present column, in the group's first plane
    bool wanted;

    __device__ void column(int n)
    {
        long long position = start + n;
        wanted = position < count;
        Digits at(wanted ? position : 0, down.positions, across.positions);
        long long plane = (long long)at.high * to.channels + first_output;
        pixel = plane * to.pixels() + (down.first + at.middle * down.step) * to.columns
            + across.first + at.low * across.step;
    }

    __device__ void row(int m, float sum)
    {
        int output = first + m;
        if (!wanted || output >= outputs)
            return;
        long long index = pixel + (long long)output * to.pixels();
        target[index] = finish(sum, first_output + output, index);
    }
};

// The kernels conv2d_tf32_*.
template <int SIDE>
__device__ inline void convolve(
    const float *source, const float *filters, const Finish &finish, float *y, int images,
    const Maps &from, const Maps &to, const Kernel &kernel, int groups, int turned, float *memory)
{
    int classes = turned ? kernel.stride_h * kernel.stride_w : 1;
    int tiles = gridDim.x / (groups * classes), slice = blockIdx.x / tiles;
    int group = slice / classes, number = slice % classes;
    Axis down, across;
    if (turned) {
        Residue to_down(number / kernel.stride_w, to.rows, kernel.top, kernel.stride_h,
                        kernel.height, kernel.dilation_h);
        Residue to_across(number % kernel.stride_w, to.columns, kernel.left, kernel.stride_w,
                          kernel.width, kernel.dilation_w);
        down = Axis::backward(to_down, kernel.stride_h);
        across = Axis::backward(to_across, kernel.stride_w);
    } else {
        down = Axis::forward(to.rows, kernel.top, kernel.stride_h, kernel.height, kernel.dilation_h);
        across = Axis::forward(
            to.columns, kernel.left, kernel.stride_w, kernel.width, kernel.dilation_w);
    }
    long long start = (long long)(blockIdx.x % tiles) * SIDE;
    long long count = (long long)images * down.positions * across.positions;
    if (start >= count)
        return;

    int group_channels = from.channels / groups, group_outputs = to.channels / groups;
    int depth = group_channels * down.taps * across.taps;
    int steps = (depth + DEPTH - 1) / DEPTH, each = (steps + gridDim.z - 1) / gridDim.z;
    int first_step = min(steps, (int)blockIdx.z * each);
    int first = blockIdx.y * SIDE, first_output = group * group_outputs;
    int row_step = turned ? turned : depth;
    filters += ((long long)number * to.channels + first_output) * row_step;
    long long mine = start + threadIdx.x % SIDE;
    ConvTiles<SIDE> product(
        source, from, group * group_channels, filters, row_step, first, group_outputs, depth, down,
        across, mine < count ? mine : -1, first_step * DEPTH,
        memory + STAGES * Layout<SIDE>::STAGE);
    Sums<SIDE> sums;
    multiply<SIDE, false>(product, min(each, steps - first_step), memory, sums);
    ConvResults results = {
        y + blockIdx.z * (long long)images * to.channels * to.pixels(), finish, to, down, across,
        start, count, first, group_outputs, first_output, 0, false};
    sums.each(results);
}

// The tiles of a gradient by the weight: A is dy (outputs, positions), B the columns of im2col
// turned (taps, positions). A thread reads the same of every DEPTH positions of all its rows.
template <int SIDE>
struct CorrelationTiles {
    const float *dy, *x;
    Tap *table;  // of the block's taps
    Maps from, to;
    Kernel kernel;
    int first, outputs;
    long long left, left_by_four;  // positions to come, from the thread's own one on
    Digits at, at_by_four, step;
    bool by_four;

    __device__ CorrelationTiles(
        const float *dy, const float *x, const Maps &from, const Maps &to, const Kernel &kernel,
        int first, int outputs, int first_tap, int taps, long long start, long long stop,
        float *memory)
        : dy(dy), x(x), table((Tap *)memory), from(from), to(to), kernel(kernel), first(first),
          outputs(outputs), left(stop - start - threadIdx.x % DEPTH),
          left_by_four(stop - start - threadIdx.x % (DEPTH / 4) * 4),
          at(start + threadIdx.x % DEPTH, to.rows, to.columns),
          at_by_four(start + threadIdx.x % (DEPTH / 4) * 4, to.rows, to.columns),
          step(DEPTH, to.rows, to.columns), by_four(lies_by_four(dy, to.pixels()))
    {
        if (threadIdx.x >= SIDE)
            return;
        Digits tap(first_tap + threadIdx.x, kernel.height, kernel.width);
        int down = tap.middle * kernel.dilation_h, across = tap.low * kernel.dilation_w;
        int offset = (tap.high * from.rows + down) * from.columns + across;
        bool exists = first_tap + (int)threadIdx.x < taps;
        Tap entry = {exists ? offset : 0, exists ? down : FAR, across, 0};
        table[threadIdx.x] = entry;
    }

    __device__ void prepare() {}

    __device__ void fetch(float *stage)
    {
        fetch_dy(stage);
        fetch_x(stage + Layout<SIDE>::TILE);
        at.add(step, to.rows, to.columns);
        at_by_four.add(step, to.rows, to.columns);
        left -= DEPTH;
        left_by_four -= DEPTH;
    }

    __device__ void fetch_dy(float *tile)
    {
        const Digits &here = by_four ? at_by_four : at;
        const float *pixel = dy + (long long)here.high * to.channels * to.pixels()
            + here.middle * to.columns + here.low;
        if (by_four) {
            int place = threadIdx.x % (DEPTH / 4) * 4;
#pragma unroll
            for (int r = 0; r < SIDE * DEPTH / 4 / TILE_THREADS; ++r) {
                int row = threadIdx.x / (DEPTH / 4) + r * (TILE_THREADS / (DEPTH / 4));
                bool wanted = left_by_four > 0 && first + row < outputs;
                copy_later<4>(
                    tile + row * Layout<SIDE>::DEEP_ROW + place,
                    wanted ? pixel + (long long)(first + row) * to.pixels() : dy, wanted);
            }
        } else {
#pragma unroll 4
            for (int r = 0; r < SIDE * DEPTH / TILE_THREADS; ++r) {
                int row = threadIdx.x / DEPTH + r * (TILE_THREADS / DEPTH);
                bool wanted = left > 0 && first + row < outputs;
                copy_later<1>(
                    tile + row * Layout<SIDE>::DEEP_ROW + threadIdx.x % DEPTH,
                    wanted ? pixel + (long long)(first + row) * to.pixels() : dy, wanted);
            }
        }
    }

    __device__ void fetch_x(float *tile)
    {
        int row = left > 0 ? at.middle * kernel.stride_h - kernel.top : FAR;
        int column = at.low * kernel.stride_w - kernel.left;
        long long window = ((long long)at.high * from.channels * from.rows + row) * from.columns
            + column;
        tile += threadIdx.x % DEPTH;
#pragma unroll
        for (int r = 0; r < SIDE * DEPTH / TILE_THREADS; ++r) {
            int n = threadIdx.x / DEPTH + r * (TILE_THREADS / DEPTH);
            Tap here = table[n];
            bool wanted = is_inside(row + here.row, column + here.column, from);
            copy_later<1>(tile + n * Layout<SIDE>::DEEP_ROW,
                          wanted ? x + window + here.offset : x, wanted);
        }
    }
};

// Stores sums of (output, tap).
struct CorrelationResults {
    float *parts;  // from the group's first output on
    int first, outputs, first_tap, taps, tap;

    __device__ void column(int n) { tap = first_tap + n; }

    __device__ void row(int m, float sum)
    {
        if (first + m < outputs && tap < taps)
            parts[(long long)(first + m) * taps + tap] = sum;
    }
};

// The kernels conv2d_weight_grad_tf32_*.
template <int SIDE>
__device__ inline void correlate(
    const float *dy, const float *x, float *parts, long long length, int images, const Maps &from,
    const Maps &to, const Kernel &kernel, int groups, float *memory)
{
    int group_channels = from.channels / groups, group_outputs = to.channels / groups;
    int taps = group_channels * kernel.height * kernel.width;
    int tiles = gridDim.x / groups, group = blockIdx.x / tiles;
    int first = blockIdx.y * SIDE, first_tap = blockIdx.x % tiles * SIDE;
    long long count = (long long)images * to.pixels();
    long long start = blockIdx.z * length, stop = min(start + length, count);
    CorrelationTiles<SIDE> product(
        dy + (long long)group * group_outputs * to.pixels(),
        x + (long long)group * group_channels * from.pixels(), from, to, kernel, first,
        group_outputs, first_tap, taps, start, stop, memory + STAGES * Layout<SIDE>::STAGE);
    Sums<SIDE> sums;
    multiply<SIDE, true>(product, (int)((stop - start + DEPTH - 1) / DEPTH), memory, sums);
    long long row = (long long)blockIdx.z * to.channels + group * group_outputs;
    CorrelationResults results = {
        parts + row * taps, first, group_outputs, first_tap, taps, 0};
    sums.each(results);
}
