// Convolutions on tensor cores, for float32 in TF32's precision (sm_80 on); the definitions stand
// in kernels/reference/conv.py. Like those of conv.cu these kernels multiply matrices that are
// never in memory, and by the same algebra, but they read images with the channels last, and
// filters with them last, too: others lay them out so, and round them on the way.
//
// conv2d_tf32_* also makes the gradient by the input: every class of pixels (Residue) is a
// convolution of dy with filters turned for it.

#include "conv_tf32.cuh"

extern __shared__ float memory[];

// A block makes some outputs of a group at WIDTH positions of a class, or a split of their sums;
// grid (tiles of positions x groups x classes, tiles of outputs, splits). y (N, O, H, W): of every
// split its own. scale to rectified: see Finish. turned: 0, or the length of a row of turned
// filters; then the source is dy and the target dx.
extern "C" __global__ void __launch_bounds__(High::THREADS, 2) conv2d_tf32_high(
    const float *source, const float *filters, const float *scale, const float *shift,
    const float *others, float *y, int rectified, int turned, int images, int channels, int height,
    int width, int outputs, int rows, int columns, int kernel_h, int kernel_w, int stride_h,
    int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    Finish finish = {scale, shift, others, rectified != 0};
    convolve<High>(source, filters, finish, y, images, from, to, kernel, groups, turned, memory);
}

extern "C" __global__ void __launch_bounds__(Low::THREADS, 4) conv2d_tf32_low(
    const float *source, const float *filters, const float *scale, const float *shift,
    const float *others, float *y, int rectified, int turned, int images, int channels, int height,
    int width, int outputs, int rows, int columns, int kernel_h, int kernel_w, int stride_h,
    int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    Finish finish = {scale, shift, others, rectified != 0};
    convolve<Low>(source, filters, finish, y, images, from, to, kernel, groups, turned, memory);
}

// The same by groups of warps, on Hopper.
extern "C" __global__ void __launch_bounds__(HighGroups::THREADS, 2) conv2d_tf32_group_high(
    const float *source, const float *filters, const float *scale, const float *shift,
    const float *others, float *y, int rectified, int turned, int images, int channels, int height,
    int width, int outputs, int rows, int columns, int kernel_h, int kernel_w, int stride_h,
    int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    Finish finish = {scale, shift, others, rectified != 0};
    convolve<HighGroups>(
        source, filters, finish, y, images, from, to, kernel, groups, turned, aligned(memory));
}

extern "C" __global__ void __launch_bounds__(LowGroups::THREADS, 3) conv2d_tf32_group_low(
    const float *source, const float *filters, const float *scale, const float *shift,
    const float *others, float *y, int rectified, int turned, int images, int channels, int height,
    int width, int outputs, int rows, int columns, int kernel_h, int kernel_w, int stride_h,
    int stride_w, int top, int left, int dilation_h, int dilation_w, int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    Finish finish = {scale, shift, others, rectified != 0};
    convolve<LowGroups>(
        source, filters, finish, y, images, from, to, kernel, groups, turned, aligned(memory));
}

// A block sums some outputs x WIDTH taps of a group over the positions of one split, `length` of
// them; grid (tiles of taps x groups, tiles of outputs, splits). x: channels last, C' of them; dy:
// the same, O' of them, or where `planes` (N, O, H, W), and O' is O. parts:
// (splits, O', kh kw C'/G), taps in the order of a filter's (lay_filters).
extern "C" __global__ void __launch_bounds__(High::THREADS, 2) conv2d_weight_grad_tf32_high(
    const float *dy, const float *x, float *parts, int planes, long long length, int images,
    int channels, int height, int width, int outputs, int rows, int columns, int kernel_h,
    int kernel_w, int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w,
    int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    correlate<High>(
        dy, x, parts, planes != 0, length, images, from, to, kernel, groups, memory);
}

extern "C" __global__ void __launch_bounds__(Low::THREADS, 4) conv2d_weight_grad_tf32_low(
    const float *dy, const float *x, float *parts, int planes, long long length, int images,
    int channels, int height, int width, int outputs, int rows, int columns, int kernel_h,
    int kernel_w, int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w,
    int groups)
{
    Kernel kernel = {kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w};
    Maps from = {channels, height, width}, to = {outputs, rows, columns};
    correlate<Low>(
        dy, x, parts, planes != 0, length, images, from, to, kernel, groups, memory);
}

__device__ inline float rounded(float x)
{
    return __uint_as_float(to_tf32(x));
}

// Four floats that lie on a multiple of 16 bytes, which the GPU moves at once.
struct alignas(16) Four {
    float at[4];

    __device__ Four() : at{} {}
};

__device__ inline Four load_four(const float *at)
{
    if ((unsigned long long)at % 16 == 0)
        return *reinterpret_cast<const Four *>(at);
    Four values;
    for (int k = 0; k < 4; ++k)
        values.at[k] = at[k];
    return values;
}

__device__ inline void store_four(float *at, const Four &values)
{
    *reinterpret_cast<Four *>(at) = values;
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

// The same where pixels are a multiple of 4, by copies of 16 bytes: a block of 256 threads turns
// 128 pixels of 32 channels; grid (tiles of pixels, of C', images).
extern "C" __global__ void put_channels_last_by_four(
    const float *x, float *turned, int group_channels, int filled, int groups, int pixels)
{
    __shared__ float tile[32][129];  // an odd length keeps what a warp reads in different banks
    int all = groups * filled, pixel = blockIdx.x * 128 + threadIdx.x % 32 * 4;
    x += (long long)blockIdx.z * groups * group_channels * pixels;
#pragma unroll
    for (int r = threadIdx.x / 32; r < 32; r += 8) {
        int channel = blockIdx.y * 32 + r, group = channel / filled, c = channel % filled;
        bool exists = channel < all && c < group_channels && pixel < pixels;
        long long plane = group * group_channels + c;
        Four values = exists ? load_four(x + plane * pixels + pixel) : Four();
#pragma unroll
        for (int k = 0; k < 4; ++k)
            tile[r][threadIdx.x % 32 * 4 + k] = rounded(values.at[k]);
    }
    __syncthreads();
    turned += (long long)blockIdx.z * pixels * all;
    int within = threadIdx.x % 8 * 4, channel = blockIdx.y * 32 + within;
    if (channel >= all)
        return;
#pragma unroll
    for (int r = threadIdx.x / 8; r < 128; r += 32) {
        int place = blockIdx.x * 128 + r;
        if (place >= pixels)
            break;
        Four values;
#pragma unroll
        for (int k = 0; k < 4; ++k)
            values.at[k] = tile[within + k][r];
        store_four(turned + (long long)place * all + channel, values);
    }
}

// The same for few channels: a thread writes four of one pixel; grid
// (tiles of pixels, C' / 4, images).
extern "C" __global__ void put_few_channels_last(
    const float *x, float *turned, int group_channels, int filled, int groups, int pixels)
{
    int pixel = (int)thread_number(), channel = 4 * blockIdx.y, all = groups * filled;
    if (pixel >= pixels)
        return;
    int group = channel / filled, c = channel % filled;
    x += ((long long)blockIdx.z * groups + group) * group_channels * pixels + pixel;
    turned += ((long long)blockIdx.z * pixels + pixel) * all + channel;
    Four values;
    for (int k = 0; k < 4; ++k)
        values.at[k] = c + k < group_channels ? rounded(x[(long long)(c + k) * pixels]) : 0;
    store_four(turned, values);
}

// Filters (O, C/G, area) as (O, chunk, area, channel): the channels filled up with zeros to
// `filled`, in chunks of so many. A thread moves some taps of one of `size` channels of all
// filters: it reads neighbours, and the threads of a chunk write neighbours. Grid (channels, taps).
extern "C" __global__ void lay_filters(
    const float *weight, float *laid, int group_channels, int area, int filled, int chunk,
    long long size)
{
    const int TAPS = 9;
    long long i = thread_number();
    if (i >= size)
        return;
    int c;
    long long output = divide(i, filled, &c), channel = output * group_channels + c;
    laid += (output * filled + c / chunk * chunk) * area + c % chunk;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        int tap = blockIdx.y * TAPS + t;
        if (tap < area)
            laid[tap * chunk] = c < group_channels ? rounded(weight[channel * area + tap]) : 0;
    }
}

// Where a (channel, tap) goes: its first chunk of outputs, and how far apart the chunks lie.
struct Turned {
    long long first;
    int step;
};

// Filters as the classes of pixels of dx need them: (class, C, chunk, t, u, output), the outputs of
// a channel's group filled up with zeros to `filled`, in chunks of so many. Rows are `length` long,
// for the class with the most taps; what is behind the taps of others is not written. A block of
// 32 x 8 threads turns 32 outputs of 32 (channel, tap); grid (tiles of these, of the outputs,
// groups).
extern "C" __global__ void turn_filters(
    const float *weight, float *turned, int channels, int outputs, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int dilation_h, int dilation_w, int groups, int filled, int chunk,
    int length)
{
    __shared__ float tile[32][33];
    __shared__ Turned rows[32];
    int group_channels = channels / groups, group_outputs = outputs / groups;
    int area = kernel_h * kernel_w, all = group_channels * area, first = blockIdx.x * 32;
    if (threadIdx.y == 0) {
        Digits tap(first + threadIdx.x, kernel_h, kernel_w);
        int down_class = tap.middle * dilation_h % stride_h;
        int across_class = tap.low * dilation_w % stride_w;
        Residue down(down_class, 1, 0, stride_h, kernel_h, dilation_h);
        Residue across(across_class, 1, 0, stride_w, kernel_w, dilation_w);
        int t = (tap.middle - down.tap) / down.tap_step;
        int u = (tap.low - across.tap) / across.tap_step;
        long long row = (long long)(down_class * stride_w + across_class) * channels
            + blockIdx.z * group_channels + tap.high;
        rows[threadIdx.x].first = row * length + (t * across.taps + u) * chunk;
        rows[threadIdx.x].step = down.taps * across.taps * chunk;
    }
    weight += (long long)blockIdx.z * group_outputs * all;
    for (int r = threadIdx.y; r < 32; r += 8) {
        int o = blockIdx.y * 32 + r, n = first + threadIdx.x;
        bool exists = o < group_outputs && n < all;
        tile[r][threadIdx.x] = exists ? rounded(weight[(long long)o * all + n]) : 0;
    }
    __syncthreads();
    int o = blockIdx.y * 32 + threadIdx.x;
    if (o >= filled)
        return;
    for (int r = threadIdx.y; r < 32 && first + r < all; r += 8)
        turned[rows[r].first + o / chunk * rows[r].step + o % chunk] = tile[threadIdx.x][r];
}

// The sum of all parts (splits, O', chunk, area, channel), in order and in float64, as
// (O, C/G, area). O' and the channels are filled up, each group's to so many. A thread sums one, of
// `size`.
extern "C" __global__ void sum_weight_parts(
    const float *parts, float *dw, int splits, int group_channels, int filled_channels, int chunk,
    int group_outputs, int filled_outputs, int area, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    int within, tap, number, o;
    long long group = divide(
        divide(divide(divide(i, chunk, &within), area, &tap), filled_channels / chunk, &number),
        filled_outputs, &o);
    int c = number * chunk + within;
    if (c >= group_channels || o >= group_outputs)
        return;
    wide total = 0;
    for (int split = 0; split < splits; ++split)
        total += parts[split * size + i];
    dw[((group * group_outputs + o) * group_channels + c) * area + tap] = (float)total;
}
