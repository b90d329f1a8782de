// Sums by channel; the definition stands in kernels/reference/reduce.py.
//
// A channel of x (N, C, P) has `length` = N P values, cut into `parts` of `part` values. A block
// sums one part in float64, and a warp adds up a channel's parts: the result is the same every
// time, whatever the order in which blocks run.

#include "channels.cuh"

extern "C" __global__ void part_sums(
    const real *x, wide *sums, int channels, int positions, long long length, int part, int parts)
{
    ChannelPart here(channels, positions, length, part, parts);
    wide total = 0;
    for (; here.inside(); here.advance())
        total += x[here.offset()];
    total = block_sum(total);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = total;
}

extern "C" __global__ void channel_sums(const wide *sums, real *y, int channels, int parts)
{
    long long channel = thread_number() / WARP;
    if (channel >= channels)
        return;
    wide total = sum_of_parts(sums, channel, parts);
    if (threadIdx.x % WARP == 0)
        y[channel] = (real)total;
}
