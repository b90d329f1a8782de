// Convolutions as products on tensor cores: how the kernels of conv_tf32.cu read images.
//
// Images lie there with the channels last (N, H, W, C), each group's channels filled up with zeros
// to a multiple of 4: four channels of a pixel are a copy of 16 bytes. All numbers are rounded to
// TF32.
//
// Products sum over taps of the kernel and channels. A few channels at a time, a chunk of 4, 8 or
// 16, pass all taps: neighbouring taps read the same pixels, which the first level of cache keeps
// so long.

#pragma once

#include "groups_tf32.cuh"
#include "matrix_tf32.cuh"

struct Kernel {
    int height, width, stride_h, stride_w, top, left, dilation_h, dilation_w;
};

// Images' channels, in all groups, and their planes.
struct Maps {
    int channels, rows, columns;

    __device__ int pixels() const { return rows * columns; }

    // Of a pixel, with the channels last. Unsigned: where quads outside of the images would lie may
    // be more than an int holds.
    __device__ unsigned quads() const { return channels / 4; }

    // The number of a pixel, or of where it would be.
    __device__ unsigned pixel(int image, int row, int column) const
    {
        return ((unsigned)image * rows + row) * columns + column;
    }

    __device__ bool holds(int row, int column) const
    {
        return (unsigned)row < (unsigned)rows && (unsigned)column < (unsigned)columns;
    }
};

// Along one axis, what a product's positions read and where they lie: position p, of `positions`,
// is pixel first + p step of the target, and its tap t pixel start + p stride + t tap_step of the
// source.
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

    // Bit t: whether the source, which has `extent` pixels, has tap t of what begins at `begin`.
    __device__ unsigned taps_inside(int begin, int extent) const
    {
        unsigned bits = 0;
        for (int t = 0; t < taps; ++t)
            bits |= (unsigned)((unsigned)(begin + t * tap_step) < (unsigned)extent) << t;
        return bits;
    }
};

static const int FAR = 1 << 29;  // a row that no image has, nor its padding

// Which channels of a pixel a thread copies, and which taps: quads of channels are numbered by
// (chunk, tap, quad of the chunk), and from one of a thread's to its next it is a multiple of a
// chunk.
struct Channels {
    int quads;  // of a chunk

    __device__ explicit Channels(int filled) : quads(filled % 16 == 0 ? 4 : filled % 8 ? 1 : 2) {}

    // (chunk, row and column of the tap) of quad number `quad`.
    __device__ Digits tap(int quad, int height, int width) const
    {
        return Digits(quad / quads, height, width);
    }

    // The first of the quad's channels.
    __device__ int first(int quad, const Digits &tap) const
    {
        return 4 * (tap.high * quads + quad % quads);
    }
};

// The columns of im2col: a column is a position, and k counts (chunk, tap, channel). A thread
// copies four channels at a time, of the same taps for all its positions.
template <class Shape>
struct WindowTile {
    static const bool DEEP = true, ROUNDED = true;
    static const int DEPTH = Shape::DEPTH, QUADS = DEPTH / 4;
    static const int PASS = Shape::THREADS / QUADS, READS = WIDTH / PASS;
    const float *source;
    int place;                             // what the thread writes first of a tile
    unsigned at[READS];                    // where a position's window begins, in quads,
    unsigned rows[READS], columns[READS];  // and which rows of taps, and columns, are in its plane
    unsigned chunk, row, column;           // how far apart these are, in quads
    int chunks, height, width;             // how many there are
    Digits tap, step;

    // Positions first ... positions - 1 of a group, of whose channels there are `filled`.
    __device__ WindowTile(
        const float *source, const Maps &from, int group, int filled, const Axis &down,
        const Axis &across, long long first, long long positions, int k)
        : WindowTile(source, from, group, filled, down, across, first, positions, Channels(filled),
                     k / 4 + threadIdx.x % QUADS)
    {
    }

    __device__ WindowTile(
        const float *source, const Maps &from, int group, int filled, const Axis &down,
        const Axis &across, long long first, long long positions, const Channels &channels,
        int quad)
        : source(source),
          place(kept(deep_place<Shape>(threadIdx.x / QUADS, threadIdx.x % QUADS * 4))),
          chunk(channels.quads),
          row(from.quads() * from.columns * down.tap_step), column(from.quads() * across.tap_step),
          chunks(filled / (4 * channels.quads)), height(max(down.taps, 1)),
          width(max(across.taps, 1)), tap(channels.tap(quad, height, width)),
          step(QUADS / channels.quads, height, width)
    {
#pragma unroll
        for (int r = 0; r < READS; ++r) {
            long long position = first + threadIdx.x / QUADS + r * PASS;
            bool exists = position < positions;
            Digits number(exists ? position : 0, down.positions, across.positions);
            int y = down.start + number.middle * down.stride;
            int x = across.start + number.low * across.stride;
            at[r] = from.quads() * from.pixel(number.high, y, x)
                + group * filled / 4 + quad % channels.quads;
            rows[r] = exists ? down.taps_inside(y, from.rows) : 0;
            columns[r] = across.taps_inside(x, from.columns);
        }
    }

    __device__ void fetch(float *tile)
    {
        unsigned this_row = tap.high < chunks ? 1u << tap.middle : 0, this_column = 1u << tap.low;
        unsigned by = tap.high * chunk + tap.middle * row + tap.low * column;
#pragma unroll
        for (int r = 0; r < READS; ++r)
            copy_later<4, true>(
                tile + place + r * PASS * DEPTH, source + 4ll * (int)(at[r] + by),
                (rows[r] & this_row) && (columns[r] & this_column));
        tap.add(step, height, width);
    }
};

// The columns of im2col turned: a column is a (chunk, tap, channel), and k counts positions. A
// thread copies channels of several taps for one position at a time.
template <class Shape>
struct CorrelationTile {
    static const bool DEEP = false, ROUNDED = true;
    static const int DEPTH = Shape::DEPTH;
    static const int ROW = Layout<Shape, WIDTH, DEEP>::ROW;
    static const int PASS = Shape::THREADS / DEPTH, READS = WIDTH / 4 / PASS;
    const float *source;
    Maps from, to;
    int stride_h, stride_w;
    int place;                      // what the thread writes first of a tile
    int row[READS], column[READS];  // of what is read, beside the position's own,
    unsigned at[READS];             // and where it lies, in quads
    int left;  // positions to come, from the thread's next on
    Digits position, step;

    // Positions start ... stop - 1 of a group, of whose channels there are `filled`.
    __device__ CorrelationTile(
        const float *source, const Maps &from, const Maps &to, int group, int filled,
        const Kernel &kernel, int first, long long start, long long stop)
        : source(source), from(from), to(to), stride_h(kernel.stride_h), stride_w(kernel.stride_w),
          place(kept(threadIdx.x / PASS * ROW + threadIdx.x % PASS * 4)),
          left((int)(stop - start) - threadIdx.x / PASS),
          position(start + threadIdx.x / PASS, to.rows, to.columns),
          step(DEPTH, to.rows, to.columns)
    {
        Channels channels(filled);
#pragma unroll
        for (int r = 0; r < READS; ++r) {
            int quad = first / 4 + threadIdx.x % PASS + r * PASS;
            Digits tap = channels.tap(quad, kernel.height, kernel.width);
            int channel = channels.first(quad, tap);
            row[r] = tap.middle * kernel.dilation_h - kernel.top;
            column[r] = tap.low * kernel.dilation_w - kernel.left;
            at[r] = from.quads() * from.pixel(0, row[r], column[r])
                + (group * filled + channel) / 4;
            if (channel >= filled)
                row[r] = FAR;
        }
    }

    __device__ void fetch(float *tile)
    {
        int y = position.middle * stride_h, x = position.low * stride_w;
        unsigned pixel = from.pixel(position.high, y, x);
        if (left <= 0)
            y = FAR;
#pragma unroll
        for (int r = 0; r < READS; ++r)
            copy_later<4, true>(tile + place + 4 * r * PASS,
                                source + 4ll * (int)(pixel * from.quads() + at[r]),
                                from.holds(y + row[r], x + column[r]));
        position.add(step, to.rows, to.columns);
        left -= DEPTH;
    }
};

// The kernels conv2d_tf32_*.
template <class Shape>
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
        down = Axis::forward(
            to.rows, kernel.top, kernel.stride_h, kernel.height, kernel.dilation_h);
        across = Axis::forward(
            to.columns, kernel.left, kernel.stride_w, kernel.width, kernel.dilation_w);
    }
    long long start = (long long)(blockIdx.x % tiles) * WIDTH;
    long long count = (long long)images * down.positions * across.positions;
    if (start >= count)
        return;

    int group_channels = from.channels / groups, group_outputs = to.channels / groups;
    int depth = group_channels * down.taps * across.taps;
    int row_step = turned ? turned : depth;
    filters += ((long long)number * to.channels + group * group_outputs) * row_step;
    Matrix matrix = {filters, row_step, {max(depth, 1), 0}};
    Share<Shape> share(depth);
    int first = blockIdx.y * Shape::HEIGHT, k = share.first * Shape::DEPTH;
    DeepTile<Shape, Shape::HEIGHT, true> left(matrix, first, group_outputs, k, depth);
    WindowTile<Shape> right(
        source, from, group, group_channels, down, across, start, count, k);
    Sums<Shape> sums;
    multiply<Shape>(left, right, share.steps, memory, sums);

    long long mine = start + tile_column(), column = -1;
    if (mine < count) {
        Digits at(mine, down.positions, across.positions);
        int row = down.first + at.middle * down.step;
        column = ((long long)at.high * to.channels + group * group_outputs) * to.pixels()
            + row * to.columns + across.first + at.low * across.step;
    }
    y += blockIdx.z * (long long)images * to.channels * to.pixels();
    store<Shape>(sums, finish, y, group * group_outputs, first, group_outputs, to.pixels(),
                  column, memory);
}

// A block's tile of dW, for the tiles `left` of dy.
template <class Shape, class Left>
__device__ inline void correlate_tile(
    Left &left, const float *x, float *parts, long long start, long long stop, const Maps &from,
    const Maps &to, const Kernel &kernel, int groups, float *memory)
{
    int group_channels = from.channels / groups, group_outputs = to.channels / groups;
    int taps = group_channels * kernel.height * kernel.width;
    int tiles = gridDim.x / groups, group = blockIdx.x / tiles;
    int first_tap = blockIdx.x % tiles * WIDTH, tap = first_tap + tile_column();
    CorrelationTile<Shape> right(
        x, from, to, group, group_channels, kernel, first_tap, start, stop);
    Sums<Shape> sums;
    int steps = (int)((stop - start + Shape::DEPTH - 1) / Shape::DEPTH);
    multiply<Shape>(left, right, steps, memory, sums);
    long long row = (long long)blockIdx.z * to.channels + group * group_outputs;
    store<Shape>(sums, Finish(), parts + row * taps, 0, blockIdx.y * Shape::HEIGHT, group_outputs,
                 taps, tap < taps ? tap : -1, memory);
}

// The kernels conv2d_weight_grad_tf32_*.
template <class Shape>
__device__ inline void correlate(
    const float *dy, const float *x, float *parts, bool planes, long long length, int images,
    const Maps &from, const Maps &to, const Kernel &kernel, int groups, float *memory)
{
    int group_outputs = to.channels / groups, group = blockIdx.x / (gridDim.x / groups);
    int first = blockIdx.y * Shape::HEIGHT, pixels = to.pixels();
    long long start = blockIdx.z * length, stop = min(start + length, (long long)images * pixels);
    if (planes) {
        dy += (long long)group * group_outputs * pixels;
        Matrix matrix = {dy, pixels, {pixels, (long long)to.channels * pixels}};
        DeepTile<Shape, Shape::HEIGHT, false> left(matrix, first, group_outputs, start, stop);
        correlate_tile<Shape>(
            left, x, parts, start, stop, from, to, kernel, groups, memory);
    } else {
        Matrix matrix = {dy + group * group_outputs, to.channels, {group_outputs, 0}};
        WideTile<Shape, Shape::HEIGHT, true> left(matrix, first, group_outputs, start, stop);
        correlate_tile<Shape>(
            left, x, parts, start, stop, from, to, kernel, groups, memory);
    }
}
