// Convolution in two ways; the definitions stand in kernels/reference/conv.py.
//
// conv2d, conv2d_input_grad and conv2d_weight_grad multiply matrices that are never in memory: each
// block reads the tiles it needs out of the images (conv.cuh), and multiplies them (product.cuh).
// The others serve the way over a matrix of columns, whose products cuBLAS makes: im2col and
// col2im, and the turning of (N, O, P) to (O, N P) and back, for a stretch of positions at a time.

#include "conv.cuh"

// A block makes TILE outputs of a group at TILE positions; grid (tiles of positions x groups,
// tiles of outputs).
extern "C" __global__ void conv2d(
    const real *x, const real *weight, const real *bias, real *y, int images, int channels,
    int height, int width, int outputs, int rows, int columns, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    int group_channels = channels / groups, group_outputs = outputs / groups;
    int depth = group_channels * kernel_h * kernel_w;
    int tiles = gridDim.x / groups, group = blockIdx.x / tiles;
    int first = blockIdx.y * TILE;
    long long start = (long long)(blockIdx.x % tiles) * TILE;
    long long positions = (long long)rows * columns, count = images * positions;

    long long mine = start + threadIdx.x % TILE;
    bool inside = mine < count;
    Digits place(inside ? mine : 0, rows, columns);
    long long plane = (long long)place.high * channels + group * group_channels;
    Planes planes = {x + plane * height * width, height, width};
    Window window = {kernel_h, kernel_w, place.middle * stride_h - top, place.low * stride_w - left,
                     dilation_h, dilation_w};
    Strided filters(
        weight + (long long)group * group_outputs * depth, depth, 1, first, group_outputs, depth);
    Patches patches(planes, window, inside ? depth : 0);
    real sums[MICRO][MICRO];
    multiply(filters, patches, depth, sums);

    for (int j = 0; j < MICRO; ++j) {
        long long n = start + micro_column() + j;
        if (n >= count)
            break;
        long long image = n / positions, p = n % positions;
        for (int i = 0; i < MICRO; ++i) {
            int m = first + micro_row() + i, output = group * group_outputs + m;
            if (m < group_outputs)
                y[(image * outputs + output) * positions + p]
                    = sums[i][j] + (bias ? bias[output] : (real)0);
        }
    }
}

// A block makes TILE channels of a group at TILE pixels of one class (Residue); grid (tiles of
// pixels x groups x classes, tiles of channels). A class multiplies only the taps that reach it.
extern "C" __global__ void conv2d_input_grad(
    const real *dy, const real *weight, const real *bias, real *dx, int images, int channels,
    int height, int width, int outputs, int rows, int columns, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    int group_channels = channels / groups, group_outputs = outputs / groups;
    int classes = stride_h * stride_w;
    int tiles = gridDim.x / (groups * classes), slice = blockIdx.x / tiles;
    int group = slice / classes, number = slice % classes;
    Residue down(number / stride_w, height, top, stride_h, kernel_h, dilation_h);
    Residue across(number % stride_w, width, left, stride_w, kernel_w, dilation_w);
    int first = blockIdx.y * TILE;
    long long start = (long long)(blockIdx.x % tiles) * TILE;
    long long pixels = (long long)down.pixels * across.pixels, count = images * pixels;
    if (start >= count)
        return;

    int depth = group_outputs * down.taps * across.taps;
    long long mine = start + threadIdx.x % TILE;
    bool inside = mine < count;
    Digits place(inside ? mine : 0, down.pixels, across.pixels);
    long long plane = (long long)place.high * outputs + group * group_outputs;
    Planes planes = {dy + plane * rows * columns, rows, columns};
    Window window = {max(down.taps, 1), max(across.taps, 1), down.start + place.middle,
                     across.start + place.low, -down.back, -across.back};
    TurnedFilters filters(
        weight + (long long)group * group_outputs * group_channels * kernel_h * kernel_w, down,
        across, kernel_h, kernel_w, first, group_channels, depth);
    Patches patches(planes, window, inside ? depth : 0);
    real sums[MICRO][MICRO];
    multiply(filters, patches, depth, sums);

    for (int j = 0; j < MICRO; ++j) {
        long long n = start + micro_column() + j;
        if (n >= count)
            break;
        Digits at(n, down.pixels, across.pixels);
        int row = down.first + at.middle * stride_h, column = across.first + at.low * stride_w;
        for (int i = 0; i < MICRO; ++i) {
            int m = first + micro_row() + i, channel = group * group_channels + m;
            if (m < group_channels)
                dx[(((long long)at.high * channels + channel) * height + row) * width + column]
                    = sums[i][j] + (bias ? bias[channel] : (real)0);
        }
    }
}

// A block sums TILE outputs x TILE taps of a group over the positions of one split, `length` of
// them; grid (tiles of taps x groups x splits, tiles of outputs). parts: (splits, O, C/G kh kw).
extern "C" __global__ void conv2d_weight_grad(
    const real *dy, const real *x, real *parts, int splits, long long length, int images,
    int channels, int height, int width, int outputs, int rows, int columns, int kernel_h,
    int kernel_w, int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w,
    int groups)
{
    int group_channels = channels / groups, group_outputs = outputs / groups;
    int taps = group_channels * kernel_h * kernel_w;
    int tiles = gridDim.x / (groups * splits), slice = blockIdx.x / tiles;
    int group = slice / splits, split = slice % splits;
    int first = blockIdx.y * TILE, first_tap = blockIdx.x % tiles * TILE;
    long long positions = (long long)rows * columns, count = images * positions;
    long long start = split * length, stop = min(start + length, count);

    Walk walk(start, stop, rows, columns);
    Slopes slopes(
        walk, dy + group * group_outputs * positions, first, group_outputs, outputs * positions);
    Planes planes = {x + (long long)group * group_channels * height * width, height, width};
    Window window = {kernel_h, kernel_w, -top, -left, dilation_h, dilation_w};
    TurnedPatches patches(walk, planes, channels, stride_h, stride_w, window, first_tap, taps);
    real sums[MICRO][MICRO];
    multiply(slopes, patches, stop - start, sums);

    for (int i = 0; i < MICRO; ++i)
        for (int j = 0; j < MICRO; ++j) {
            int m = first + micro_row() + i, n = first_tap + micro_column() + j;
            long long output = (long long)split * outputs + group * group_outputs + m;
            if (m < group_outputs && n < taps)
                parts[output * taps + n] = sums[i][j];
        }
}

// The sum of all parts (splits, size), in order and in float64: the same every time.
extern "C" __global__ void sum_splits(const real *parts, real *y, int splits, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    wide total = 0;
    for (int split = 0; split < splits; ++split)
        total += parts[split * size + i];
    y[i] = (real)total;
}

// The columns (C kh kw, count) of the positions start ... start + count - 1 of all images. A thread
// copies the taps of one channel at one position.
extern "C" __global__ void im2col(
    const real *x, real *cols, long long start, int count, int channels, int height, int width,
    int rows, int columns, int kernel_h, int kernel_w, int stride_h, int stride_w, int top,
    int left, int dilation_h, int dilation_w)
{
    long long number = thread_number();
    if (number >= (long long)channels * count)
        return;
    int q;
    long long channel = divide(number, count, &q);
    Digits place(start + q, rows, columns);
    Planes planes = {x + (place.high * (long long)channels + channel) * height * width, height,
                     width};
    real *col = cols + channel * kernel_h * kernel_w * count + q;
    for (int i = 0; i < kernel_h; ++i)
        for (int j = 0; j < kernel_w; ++j, col += count)
            *col = planes.pixel(0, place.middle * stride_h - top + i * dilation_h,
                                place.low * stride_w - left + j * dilation_w);
}

// Adds the columns (C kh kw, count) of the positions start ... start + count - 1 to x, from image
// number `image` on, `images` of them; images whose first position is among these begin anew, with
// the bias. A thread adds up one pixel.
extern "C" __global__ void col2im(
    const real *cols, const real *bias, real *x, int image, int images, long long start, int count,
    int channels, int height, int width, int rows, int columns, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w)
{
    long long number = thread_number();
    if (number >= (long long)images * channels * height * width)
        return;
    int row, column, channel;
    long long rest = divide(divide(number, width, &column), height, &row);
    long long mine = image + divide(rest, channels, &channel);
    real *pixel = x + (long long)image * channels * height * width + number;
    long long first = mine * rows * columns;
    real total = first < start ? *pixel : bias ? bias[channel] : (real)0;
    for (int i = 0; i < kernel_h; ++i) {
        int v = row + top - i * dilation_h;
        if (v < 0 || v % stride_h || v / stride_h >= rows)
            continue;
        for (int j = 0; j < kernel_w; ++j) {
            int u = column + left - j * dilation_w;
            if (u < 0 || u % stride_w || u / stride_w >= columns)
                continue;
            long long q = first + (long long)(v / stride_h) * columns + u / stride_w - start;
            if (q >= 0 && q < count)
                total += cols[(((long long)channel * kernel_h + i) * kernel_w + j) * count + q];
        }
    }
    *pixel = total;
}

// Of y (N, O, P), the positions start ... start + count - 1 of all images as a matrix (O, count).
extern "C" __global__ void take_positions(
    const real *y, real *matrix, long long start, int count, int outputs, int positions)
{
    long long number = thread_number();
    if (number >= (long long)outputs * count)
        return;
    int q, p;
    long long output = divide(number, count, &q);
    long long image = divide(start + q, positions, &p);
    matrix[number] = y[(image * outputs + output) * positions + p];
}

// The way back, plus the bias.
extern "C" __global__ void put_positions(
    const real *matrix, const real *bias, real *y, long long start, int count, int outputs,
    int positions)
{
    long long number = thread_number();
    if (number >= (long long)outputs * count)
        return;
    int q, p;
    long long output = divide(number, count, &q);
    long long image = divide(start + q, positions, &p);
    y[(image * outputs + output) * positions + p]
        = matrix[number] + (bias ? bias[output] : (real)0);
}
