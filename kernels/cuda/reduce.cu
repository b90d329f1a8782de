// Sums by channel; the definition stands in kernels/reference/reduce.py.
//
// A block sums one part of a channel (channels.cuh), and a warp adds up a channel's parts where it
// has several: the result is the same every time, whatever the order in which blocks run.

#include "channels.cuh"

template <bool PACKED>
__device__ wide stretch_sum(const ChannelStretch &here, const real *x)
{
    Pack packs[SHARE];
    load_all<PACKED>(here, x, packs);
    wide total = 0;
    #pragma unroll
    for (int turn = 0; turn < SHARE; ++turn)
        total += pair_sum(packs[turn].values);
    return total;
}

// Either sums or y is null (see `put_sum`).
extern "C" __global__ void __launch_bounds__(1024) part_sums(
    const real *x, wide *sums, real *y,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelStretch here(channels, positions, length, part, parts);
    bool packed = here.whole && at_pack(x);
    wide total = packed ? stretch_sum<true>(here, x) : stretch_sum<false>(here, x);
    put_sum(block_sum(total), sums, y);
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
