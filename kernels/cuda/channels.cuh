// Walks over the values of one channel of x (N, C, P), for reductions by channel.

#pragma once

#include "common.cuh"

// How many values part k has: all `part`, but for the last.
__device__ inline long long part_size(long long length, int part, int parts, int k)
{
    return k < parts - 1 ? part : length - (long long)(parts - 1) * part;
}

// That of this block.
__device__ inline long long part_size(long long length, int part, int parts)
{
    return part_size(length, part, parts, (int)(blockIdx.x % parts));
}

// The values of x (N, C, P) that one thread visits: block number c * parts + k takes part k of
// channel c, the values [k part, (k + 1) part) of its N P, and its threads take turns.
struct ChannelPart {
    int channel;
    long long image, left;  // left: how many values there are from this one to the part's end
    int position, image_step, position_step, channels, positions;

    __device__ ChannelPart(int channels, int positions, long long length, int part, int parts)
        : channels(channels), positions(positions)
    {
        int number;
        channel = (int)divide(blockIdx.x, parts, &number);
        long long start = (long long)number * part;
        left = part_size(length, part, parts, number) - threadIdx.x;
        image = divide(start + threadIdx.x, positions, &position);
        image_step = (int)divide(blockDim.x, positions, &position_step);
    }

    __device__ bool inside() const { return left > 0; }

    __device__ long long offset() const
    {
        return (image * channels + channel) * positions + position;
    }

    // Division is slow, so it is done once, and steps carry over instead.
    __device__ void advance()
    {
        left -= blockDim.x;
        image += image_step;
        if (position < positions - position_step) {
            position += position_step;
        } else {
            position -= positions - position_step;
            ++image;
        }
    }
};

// The sum of a channel's parts, by one full warp, in all its lanes.
__device__ inline wide sum_of_parts(const wide *sums, long long channel, int parts)
{
    wide total = 0;
    for (int k = threadIdx.x % WARP; k < parts; k += WARP)
        total += sums[channel * parts + k];
    return warp_sum(total);
}
