// What all sources share: types, index arithmetic, and sums over warps and blocks.

#pragma once

typedef REAL real;    // float or double: a source is compiled once for each
typedef double wide;  // of accumulators, where float would lose digits

static const int WARP = 32;
static const unsigned ALL_LANES = 0xFFFFFFFFu;

// The number of this thread in a grid of one axis. Sizes may pass 2^31, so it has 64 bits.
__device__ inline long long thread_number()
{
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// The quotient of a >= 0 and b > 0; remainder = a % b. GPUs divide 64 bits much slower than 32.
__device__ inline long long divide(long long a, int b, int *remainder)
{
    long long quotient = a >> 32 ? a / b : (long long)((unsigned)a / (unsigned)b);
    *remainder = (int)(a - quotient * b);
    return quotient;
}

// The sum over a full warp, in all its lanes.
__device__ inline wide warp_sum(wide value)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

// The sum over a block of one axis and full warps, in all its threads.
__device__ inline wide block_sum(wide value)
{
    __shared__ wide sums[WARP];
    int lane = threadIdx.x % WARP;
    value = warp_sum(value);
    __syncthreads();  // an earlier call's sums may still be being read
    if (lane == 0)
        sums[threadIdx.x / WARP] = value;
    __syncthreads();
    return warp_sum(lane < blockDim.x / WARP ? sums[lane] : 0);
}

__device__ inline real rectify(real value)
{
    return value < 0 ? (real)0 : value;  // a NaN is not below 0: it stays
}
