// Memory in packs of 16 bytes, the most that a thread moves by one access.
//
// A pack can be moved at once where its address is a multiple of 16. Kernels look at the addresses
// they get (CuPy's arrays have such, but not all views of them) and take elements one by one
// elsewhere; what they do with the elements, and in which order, is the same.

#pragma once

#include "common.cuh"

static const int PACK = 16 / sizeof(real);

struct alignas(16) Pack {
    real values[PACK];
};

// Null is, too.
__device__ inline bool at_pack(const void *address)
{
    return (unsigned long long)address % sizeof(Pack) == 0;
}

// Of PACK numbers: pairs first.
template <class T>
__device__ inline T pair_sum(T *values)
{
    #pragma unroll
    for (int half = PACK / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k)
            values[k] += values[k + half];
    return values[0];
}

// The gradient behind the rectifier that made y.
__device__ inline Pack passed(Pack dy, const Pack &y)
{
    #pragma unroll
    for (int k = 0; k < PACK; ++k)
        dy.values[k] = y.values[k] > 0 ? dy.values[k] : (real)0;
    return dy;
}

// One pack of arrays taken as they lie, with fewer elements at the end.
struct Elements {
    long long first;
    int count;
    bool together;

    // Pack `number` of `size` elements, by default the thread's.
    __device__ Elements(long long number, long long size, bool aligned)
    {
        first = number * PACK;
        count = (int)min(size - first, (long long)PACK);
        together = aligned && count == PACK;
    }

    __device__ Elements(long long size, bool aligned) : Elements(thread_number(), size, aligned) {}

    __device__ bool inside() const { return first >= 0 && count > 0; }

    __device__ Pack load(const real *x) const
    {
        if (together)
            return *(const Pack *)(x + first);
        Pack pack;
        #pragma unroll
        for (int k = 0; k < PACK; ++k)
            pack.values[k] = k < count ? x[first + k] : (real)0;
        return pack;
    }

    __device__ void store(real *y, const Pack &pack) const
    {
        if (together)
            *(Pack *)(y + first) = pack;
        else
            #pragma unroll
            for (int k = 0; k < PACK; ++k)
                if (k < count)
                    y[first + k] = pack.values[k];
    }
};

// The channels of neighbouring elements of x (N, C, positions), from element `first` on.
struct ChannelWalk {
    int channel, position, channels, positions;

    __device__ ChannelWalk(long long first, int channels, int positions)
        : channels(channels), positions(positions)
    {
        divide(divide(first, positions, &position), channels, &channel);
    }

    // Step to the next element; whether its channel is another.
    __device__ bool advance()
    {
        if (++position < positions)
            return false;
        position = 0;
        channel = channel + 1 < channels ? channel + 1 : 0;
        return true;
    }
};
