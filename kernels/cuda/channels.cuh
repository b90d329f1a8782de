// Shares of the values of one channel of x (N, C, P), for reductions by channel.
//
// A channel has `length` = N P values, cut into `parts` of `part` values: block number
// c * parts + k takes part k of channel c. The part, of less than 2^15 values, is small enough for
// the registers of the block's threads: whatever is done with it, it is read once. Values are added
// up in packs of 16 bytes first, in their own type; sums of packs are float64.

#pragma once

#include "packs.cuh"

// How many packs of a part a thread has.
static const int SHARE = 4;

// How many values part k has: all `part`, but for the last.
__device__ inline int part_size(long long length, int part, int parts, int k)
{
    return k < parts - 1 ? part : (int)(length - (long long)(parts - 1) * part);
}

// The part of this block. Its threads take packs of values in turns. Values of a pack are
// neighbours where a plane is made of whole packs; elsewhere a pack is made of values that are a
// block apart, so that those of neighbouring threads are neighbours.
struct ChannelStretch {
    int channel, count, positions, position;  // position: in its plane, of the first value
    unsigned reciprocal;                      // 2^31 / positions, rounded up; 0 for large planes
    bool whole;
    long long origin, image_step;  // offsets: of that plane, and from image to image

    __device__ ChannelStretch(int channels, int positions, long long length, int part, int parts)
        : positions(positions)
    {
        int number;
        channel = (int)divide(blockIdx.x, parts, &number);
        count = part_size(length, part, parts, number);
        long long image = divide((long long)number * part, positions, &position);
        image_step = (long long)channels * positions;
        origin = image * image_step + (long long)channel * positions;
        whole = positions % PACK == 0;
        reciprocal = positions < 1 << 15 ? 0x7FFFFFFFu / positions + 1 : 0;
    }

    // The number of a value in the part.
    __device__ int value(int turn, int k) const
    {
        int first = turn * PACK * blockDim.x;
        return first + (whole ? threadIdx.x * PACK + k : k * blockDim.x + threadIdx.x);
    }

    __device__ bool inside(int turn, int k) const { return value(turn, k) < count; }

    // The plane is told by a product, as division is slow: it is exact for less than 2^15 positions
    // and values. In larger planes a part meets the next one at most.
    __device__ long long offset(int value) const
    {
        unsigned place = (unsigned)position + value;
        unsigned image = reciprocal ? (unsigned)((unsigned long long)place * reciprocal >> 31)
                                    : place >= (unsigned)positions;
        return origin + image * image_step + (place - image * positions);
    }

    // The first value of the part.
    __device__ real first(const real *x) const { return x[origin + position]; }

    // PACKED: planes are made of whole packs, and x begins at one. Beyond the part lies 0.
    template <bool PACKED>
    __device__ Pack load(const real *x, int turn) const
    {
        Pack pack = {};
        if (PACKED) {
            int number = (turn * blockDim.x + threadIdx.x) * PACK;
            if (number < count)
                pack = *(const Pack *)(x + offset(number));
        } else {
            #pragma unroll
            for (int k = 0; k < PACK; ++k)
                if (inside(turn, k))
                    pack.values[k] = x[offset(value(turn, k))];
        }
        return pack;
    }

    template <bool PACKED>
    __device__ void store(real *y, int turn, const Pack &pack) const
    {
        if (PACKED) {
            int number = (turn * blockDim.x + threadIdx.x) * PACK;
            if (number < count)
                *(Pack *)(y + offset(number)) = pack;
        } else {
            #pragma unroll
            for (int k = 0; k < PACK; ++k)
                if (inside(turn, k))
                    y[offset(value(turn, k))] = pack.values[k];
        }
    }
};

// All packs that a thread has of its part, which are on their way together.
template <bool PACKED, int PACKS>
__device__ void load_all(const ChannelStretch &here, const real *x, Pack (&packs)[PACKS])
{
    #pragma unroll
    for (int turn = 0; turn < PACKS; ++turn)
        packs[turn] = here.load<PACKED>(x, turn);
}

// Leave a block's sum where it belongs: among those of all parts, or, where each channel is one
// part and sums is null, in the result.
__device__ inline void put_sum(wide total, wide *sums, real *y)
{
    if (threadIdx.x)
        return;
    if (sums)
        sums[blockIdx.x] = total;
    else
        y[blockIdx.x] = (real)total;
}

// The sum of a channel's parts, by one full warp, in all its lanes.
__device__ inline wide sum_of_parts(const wide *sums, long long channel, int parts)
{
    wide total = 0;
    for (int k = threadIdx.x % WARP; k < parts; k += WARP)
        total += sums[channel * parts + k];
    return warp_sum(total);
}
