// Convolutions on tensor cores, for float32 in TF32's precision (sm_80 on); the definitions stand in
// kernels/reference/conv.py. Like those of conv.cu these kernels multiply matrices that are never in
// memory, and by the same algebra, but they read images with the channels last, and filters with them
// last, too: others lay them out so, and round them on the way.
//
// conv2d_tf32_* also makes the gradient by the input: every class of pixels (Residue) is a
// convolution of dy with filters turned for it.

#include "conv_tf32.cuh"

extern __shared__ float memory[];

// A block makes SIDE outputs of a group at SIDE positions of a class, or a split of their sums; grid
// (tiles of positions x groups x classes, tiles of outputs, splits). y (N, O, H, W): of every split
// its own. scale to rectified: see Finish. turned: 0, or the length of a row of turned filters; then
// the source is dy and the target dx.
extern "C" __global__ void __launch_bounds__(128, 2) conv2d_tf32_128(
    const float *source, const float *filters, const float *scale, const float *shift,
    const float *others, float *y, int rectified, int turned, int images, int channels, int height,
    int width, int outputs, int rows, int columns, int kernel_h, int kernel_w, int stride_h,
    int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    Finish finish = {scale, shift, others, rectified != 0};
    convolve<128>(source, filters, finish, y, images, from, to, kernel, groups, turned, memory);
}

extern "C" __global__ void __launch_bounds__(128, 4) conv2d_tf32_64(
    const float *source, const float *filters, const float *scale, const float *shift,
    const float *others, float *y, int rectified, int turned, int images, int channels, int height,
    int width, int outputs, int rows, int columns, int kernel_h, int kernel_w, int stride_h,
    int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    Finish finish = {scale, shift, others, rectified != 0};
    convolve<64>(source, filters, finish, y, images, from, to, kernel, groups, turned, memory);
}

// A block sums SIDE outputs x SIDE taps of a group over the positions of one split, `length` of them;
// grid (tiles of taps x groups, tiles of outputs, splits). dy, x: channels last, C' and O' of them.
// parts: (splits, O', kh kw C'/G).
extern "C" __global__ void __launch_bounds__(128, 2) conv2d_weight_grad_tf32_128(
    const float *dy, const float *x, float *parts, long long length, int images, int channels,
    int height, int width, int outputs, int rows, int columns, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    correlate<128>(dy, x, parts, length, images, from, to, kernel, groups, memory);
}

extern "C" __global__ void __launch_bounds__(128, 4) conv2d_weight_grad_tf32_64(
    const float *dy, const float *x, float *parts, long long length, int images, int channels,
    int height, int width, int outputs, int rows, int columns, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    correlate<64>(dy, x, parts, length, images, from, to, kernel, groups, memory);
}

__device__ inline float rounded(float x)
{
    return __uint_as_float(to_tf32(x));
}

// Images (N, C, pixels) as (N, pixels, C'), each group's channels filled up with zeros to `filled`.
// A block of 32 x 8 threads turns 32 pixels of 32 channels; grid (tiles of pixels, of C', images).
extern "C" __global__ void put_channels_last(
    const float *x, float *turned, int group_channels, int filled, int groups, int pixels)
{
    __shared__ float tile[32][33];
    int all = groups * filled, pixel = blockIdx.x * 32 + threadIdx.x;
    x += (long long)blockIdx.z * groups * group_channels * pixels;
    for (int r = threadIdx.y; r < 32; r += 8) {
        int channel = blockIdx.y * 32 + r, group = channel / filled, c = channel % filled;
        bool exists = channel < all && c < group_channels && pixel < pixels;
        long long plane = group * group_channels + c;
        tile[r][threadIdx.x] = exists ? rounded(x[plane * pixels + pixel]) : 0;
    }
    __syncthreads();
    turned += (long long)blockIdx.z * pixels * all;
    int channel = blockIdx.y * 32 + threadIdx.x;
    for (int r = threadIdx.y; r < 32; r += 8) {
        int place = blockIdx.x * 32 + r;
        if (place < pixels && channel < all)
            turned[(long long)place * all + channel] = tile[threadIdx.x][r];
    }
}

// Filters (O, C/G, kh, kw) as (O, kh, kw, C'), filled up with zeros to `filled`. A thread writes one.
extern "C" __global__ void lay_filters(
    const float *weight, float *laid, int group_channels, int area, int filled, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    int c, tap;
    long long output = divide(divide(i, filled, &c), area, &tap);
    bool exists = c < group_channels;
    laid[i] = exists ? rounded(weight[(output * group_channels + c) * area + tap]) : 0;
}

// Filters as the classes of pixels of dx need them: (class, C, t, u, O'), the outputs of a channel's
// group filled up with zeros to `filled`. Rows have room for the taps of the class with the most of
// them, `capacity`; what is behind the taps of others is not written. A thread writes one.
extern "C" __global__ void turn_filters(
    const float *weight, float *turned, int channels, int outputs, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int dilation_h, int dilation_w, int groups, int filled,
    int capacity, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    int o, place, channel;
    long long number = divide(divide(divide(i, filled, &o), capacity, &place), channels, &channel);
    Residue down((int)number / stride_w, 1, 0, stride_h, kernel_h, dilation_h);
    Residue across((int)number % stride_w, 1, 0, stride_w, kernel_w, dilation_w);
    if (place >= down.taps * across.taps)
        return;
    int row = down.tap + place / across.taps * down.tap_step;
    int column = across.tap + place % across.taps * across.tap_step;
    int group_channels = channels / groups, group_outputs = outputs / groups;
    long long output = channel / group_channels * group_outputs + o;
    long long filter = output * group_channels + channel % group_channels;
    bool exists = o < group_outputs;
    turned[i] = exists ? rounded(weight[(filter * kernel_h + row) * kernel_w + column]) : 0;
}

// The sum of all parts (splits, O', kh kw, C'/G), in order and in float64, as (O, C/G, kh kw). O' and
// C' are filled up, each group's to so many. A thread sums one, of `size`.
extern "C" __global__ void sum_weight_parts(
    const float *parts, float *dw, int splits, int groups, int group_channels, int filled_channels,
    int group_outputs, int filled_outputs, int area, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    int tap, c, o;
    long long group = divide(divide(divide(i, area, &tap), group_channels, &c), group_outputs, &o);
    long long output = group * filled_outputs + o;
    const float *part = parts + (output * area + tap) * filled_channels + c;
    long long step = (long long)groups * filled_outputs * area * filled_channels;
    wide total = 0;
    for (int split = 0; split < splits; ++split)
        total += part[split * step];
    dw[i] = (float)total;
}
