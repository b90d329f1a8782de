// Convolutions on tensor cores, for float32 in TF32's precision (sm_80 on); the definitions stand in
// kernels/reference/conv.py. Like those of conv.cu these kernels multiply matrices that are never in
// memory, and by the same algebra; what is copied to shared memory comes straight from the images.
//
// conv2d_tf32_* also makes the gradient by the input: every class of pixels (Residue) is a
// convolution of dy with the filters that turn_filters has laid out for it.

#include "conv_tf32.cuh"

extern __shared__ float memory[];

// A block makes SIDE outputs of a group at SIDE positions of a class, or a split of their sums; grid
// (tiles of positions x groups x classes, tiles of outputs, splits). y: of every split its own. scale
// to rectified: see Finish. turned: 0, or the length of a row of turned filters; then the source is
// dy and the target dx.
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
// grid (tiles of taps x groups, tiles of outputs, splits). parts: (splits, O, C/G kh kw).
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

// The filters (O, C/G, kh, kw) as the classes of pixels of dx need them: (class, C, `capacity`), row
// c with the taps (o, t, u) of the outputs o of its group. A thread moves one weight.
extern "C" __global__ void turn_filters(
    const float *weight, float *turned, int channels, int outputs, int kernel_h, int kernel_w,
    int stride_h, int stride_w, int dilation_h, int dilation_w, int groups, int capacity)
{
    long long number = thread_number();
    int group_channels = channels / groups, group_outputs = outputs / groups;
    if (number >= (long long)outputs * group_channels * kernel_h * kernel_w)
        return;
    int i, j, c;
    long long rest = divide(divide(number, kernel_w, &j), kernel_h, &i);
    int output = (int)divide(rest, group_channels, &c);
    int group = output / group_outputs, o = output % group_outputs;
    int down_class = i * dilation_h % stride_h, across_class = j * dilation_w % stride_w;
    Residue down(down_class, 1, 0, stride_h, kernel_h, dilation_h);
    Residue across(across_class, 1, 0, stride_w, kernel_w, dilation_w);
    long long row = (long long)(down_class * stride_w + across_class) * channels
        + group * group_channels + c;
    int tap = (o * down.taps + (i - down.tap) / down.tap_step) * across.taps
        + (j - across.tap) / across.tap_step;
    turned[row * capacity + tap] = weight[number];
}

// The sum of all parts (splits, size), in order and in float64, finished. y: (N, C, positions).
extern "C" __global__ void finish_splits(
    const float *parts, const float *scale, const float *shift, const float *others, float *y,
    int rectified, int splits, int channels, int positions, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    wide total = 0;
    for (int split = 0; split < splits; ++split)
        total += parts[split * size + i];
    int position, channel;
    divide(divide(i, positions, &position), channels, &channel);
    Finish finish = {scale, shift, others, rectified != 0};
    y[i] = finish((float)total, channel, i);
}
