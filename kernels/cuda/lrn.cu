// Local response normalisation; the definitions stand in kernels/reference/lrn.py.
//
// A thread is one element. Threads of a warp are neighbours in the plane, so that each step through
// the window of channels reads a stretch of memory, which the cache holds for the next channels.

#include "common.cuh"

// scale ^ -beta; the papers' 3/4 by two square roots, which are much faster.
__device__ inline real damp(real scale, real beta)
{
    if (beta == (real)0.75) {
        real root = sqrt(scale);
        return 1 / (root * sqrt(root));
    }
    return pow(scale, -beta);
}

// The window of an element's channel, clipped, as offsets from x to its channels' elements here.
struct Window {
    long long start;  // of channel 0 here
    int first, stop;

    __device__ Window(long long i, int channels, int positions, int before, int after)
    {
        int position, channel;
        long long image = divide(divide(i, positions, &position), channels, &channel);
        start = image * channels * positions + position;
        first = channel > before ? channel - before : 0;
        stop = after < channels - channel ? channel + after + 1 : channels;
    }
};

extern "C" __global__ void lrn(
    const real *x, real *y, real *scale, int channels, int positions, int before, int after,
    real alpha, real beta, real k, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    Window window(i, channels, positions, before, after);
    real total = 0;
    for (int c = window.first; c < window.stop; ++c) {
        real value = x[window.start + (long long)c * positions];
        total += value * value;
    }
    total = k + alpha * total;
    scale[i] = total;
    y[i] = x[i] * damp(total, beta);
}

// before and after are those of the forward window: backward takes its mirror. factor is 2 alpha
// beta.
extern "C" __global__ void lrn_backward(
    const real *dy, const real *x, const real *scale, real *dx, int channels, int positions,
    int before, int after, real factor, real beta, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    Window window(i, channels, positions, after, before);
    real through = 0;
    for (int c = window.first; c < window.stop; ++c) {
        long long j = window.start + (long long)c * positions;
        through += dy[j] * damp(scale[j], beta) * x[j] / scale[j];
    }
    dx[i] = dy[i] * damp(scale[i], beta) - factor * x[i] * through;
}
