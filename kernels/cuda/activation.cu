// Rectification; the definitions stand in kernels/reference/activation.py.

#include "channels.cuh"

extern "C" __global__ void relu(const real *x, real *y, long long size)
{
    long long i = thread_number();
    if (i < size)
        y[i] = rectify(x[i]);
}

extern "C" __global__ void relu_backward(const real *dy, const real *y, real *dx, long long size)
{
    long long i = thread_number();
    if (i < size)
        dx[i] = y[i] > 0 ? dy[i] : (real)0;
}

extern "C" __global__ void bias_relu(
    const real *x, const real *bias, real *y, int channels, int positions, long long planes)
{
    PlaneWalk here(positions, planes);
    if (!here.inside())
        return;
    real shift = bias[here.channel(channels)];
    for (; here.inside(); here.advance()) {
        long long i = here.offset();
        y[i] = rectify(x[i] + shift);
    }
}

// Also the sums of dx over the parts of each channel, of which the bias's gradient is made.
extern "C" __global__ void bias_relu_backward(
    const real *dy, const real *y, real *dx, wide *sums,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelPart here(channels, positions, length, part, parts);
    wide total = 0;
    for (; here.inside(); here.advance()) {
        long long i = here.offset();
        real value = y[i] > 0 ? dy[i] : (real)0;
        dx[i] = value;
        total += value;
    }
    total = block_sum(total);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = total;
}

// The second half of conv2d_affine (kernels/reference/conv.py), in place; others is null for none.
extern "C" __global__ void affine(
    real *y, const real *scale, const real *shift, const real *others, int rectified,
    int channels, int positions, long long planes)
{
    PlaneWalk here(positions, planes);
    if (!here.inside())
        return;
    int c = here.channel(channels);
    real factor = scale[c], term = shift[c];
    for (; here.inside(); here.advance()) {
        long long i = here.offset();
        real value = y[i] * factor + term;
        if (others)
            value += others[i];
        y[i] = rectified ? rectify(value) : value;
    }
}
