// Batch normalisation; the definitions stand in kernels/reference/batchnorm.py.
//
// A channel that a block can hold is read once, and all is done by one kernel. The statistics of
// longer ones are made in two steps: blocks reduce parts of a channel (channels.cuh), a warp joins
// them; a third kernel takes all elements. Results do not depend on the order in which blocks run.
//
// Nothing is done to each element in float64 (see Centre in batchnorm.cuh): the mean is found from
// the distances to one of the values, which are as small as the spread.

#include "batchnorm.cuh"

// Packs that a thread has of a long channel, in a block of at most 512.
static const int LONG_SHARE = 13;

// The sum of the block's values, or of their squares, taken from a centre.
template <class T, int PACKS>
__device__ wide block_sum_about(
    const Centre<T> &centre, bool squared, const ChannelStretch &here, const Pack (&packs)[PACKS])
{
    wide total = 0;
    #pragma unroll
    for (int turn = 0; turn < PACKS; ++turn) {
        T apart[PACK];
        #pragma unroll
        for (int k = 0; k < PACK; ++k) {
            T distance = centre.distance((T)packs[turn].values[k]);
            distance = squared ? distance * distance : distance;
            apart[k] = here.inside(turn, k) ? distance : (T)0;
        }
        total += pair_sum(apart);
    }
    return block_sum(total);
}

// The mean of a block's values, and the sum of squares about it; in all threads.
struct Moments {
    wide mean, squares;

    // Arithmetic is done in T. pivot: one of the values.
    template <class T, int PACKS>
    __device__ Moments(
        const ChannelStretch &here, const Pack (&packs)[PACKS], T pivot)
    {
        pivot = pivot - pivot == 0 ? pivot : (T)0;  // from infinity all is NaN
        mean = pivot + block_sum_about(Centre<T>(pivot, 0), false, here, packs) / here.count;
        squares = block_sum_about(Centre<T>(mean), true, here, packs);
    }
};

template <class T, bool PACKED>
__device__ inline Moments part_moments_of(const ChannelStretch &here, const real *x)
{
    Pack packs[SHARE];
    load_all<PACKED>(here, x, packs);
    return Moments(here, packs, (T)here.first(x));
}

template <class T>
__device__ inline void put_part_moments(
    const ChannelStretch &here, const real *x, wide *means, wide *squares)
{
    Moments found = here.whole && at_pack(x)
        ? part_moments_of<T, true>(here, x) : part_moments_of<T, false>(here, x);
    if (threadIdx.x == 0) {
        means[blockIdx.x] = found.mean;
        squares[blockIdx.x] = found.squares;
    }
}

// The mean of every part and the sum of squares about it.
extern "C" __global__ void __launch_bounds__(1024) part_moments(
    const real *x, wide *means, wide *squares,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelStretch here(channels, positions, length, part, parts);
    put_part_moments<real>(here, x, means, squares);
}

// The same in float64, value by value.
extern "C" __global__ void __launch_bounds__(1024) exact_part_moments(
    const real *x, wide *means, wide *squares,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelStretch here(channels, positions, length, part, parts);
    put_part_moments<wide>(here, x, means, squares);
}

// Mean and biased variance of a channel from those of its parts, by one full warp, in all its
// lanes. A part's squares about the common mean are those about its own, plus its size times the
// squared distance of the means.
__device__ inline wide joined_moments(
    const wide *means, const wide *squares, long long channel, long long length, int part,
    int parts, wide *var)
{
    means += channel * parts;
    squares += channel * parts;
    wide total = 0, square = 0;
    for (int k = threadIdx.x % WARP; k < parts; k += WARP)
        total += means[k] * part_size(length, part, parts, k);
    wide common = warp_sum(total) / length;
    for (int k = threadIdx.x % WARP; k < parts; k += WARP) {
        wide apart = means[k] - common;
        square += squares[k] + apart * apart * part_size(length, part, parts, k);
    }
    *var = warp_sum(square) / length;
    return common;
}

// Where the statistics of a batch go. The running ones, null for none, move towards it.
struct Statistics {
    real *mean, *var, *inv_std, *running_mean, *running_var, kept, momentum;
    wide eps;

    // Of a channel with `length` values, by one thread; 1 / sqrt(square + eps).
    __device__ real put(long long channel, wide common, wide square, long long length) const
    {
        real deviation = (real)(1 / sqrt(square + eps));
        mean[channel] = (real)common;
        var[channel] = (real)square;
        inv_std[channel] = deviation;
        if (running_mean) {
            real unbiased = (real)square * (real)((wide)length / (length - 1));
            running_mean[channel] = kept * running_mean[channel] + momentum * (real)common;
            running_var[channel] = kept * running_var[channel] + momentum * unbiased;
        }
        return deviation;
    }
};

// A warp a channel.
extern "C" __global__ void moments(
    const wide *means, const wide *squares, real *rest, real *mean, real *var, real *inv_std,
    real *running_mean, real *running_var, real kept, real momentum, wide eps,
    int channels, long long length, int part, int parts)
{
    long long channel = thread_number() / WARP;
    if (channel >= channels)
        return;
    Statistics batch = {mean, var, inv_std, running_mean, running_var, kept, momentum, eps};
    wide square, common = joined_moments(means, squares, channel, length, part, parts, &square);
    if (threadIdx.x % WARP == 0) {
        batch.put(channel, common, square, length);
        rest[channel] = Centre<real>(common).rest;
    }
}

// A warp a channel; without rounding.
extern "C" __global__ void statistics(
    const wide *means, const wide *squares, wide *mean, wide *var,
    int channels, long long length, int part, int parts)
{
    long long channel = thread_number() / WARP;
    if (channel >= channels)
        return;
    wide square, common = joined_moments(means, squares, channel, length, part, parts, &square);
    if (threadIdx.x % WARP == 0) {
        mean[channel] = common;
        var[channel] = square;
    }
}

extern "C" __global__ void inverse_deviation(
    const real *var, real *inv_std, wide eps, int channels)
{
    int c = (int)thread_number();
    if (c < channels)
        inv_std[c] = (real)(1 / sqrt(var[c] + eps));
}

// (scale, shift) with which normalisation by var and mean is x scale + shift.
extern "C" __global__ void affine(
    const real *gamma, const real *beta, const real *mean, const real *var, real *scale,
    real *shift, wide eps, int channels)
{
    int c = (int)thread_number();
    if (c >= channels)
        return;
    wide factor = gamma[c] / sqrt(var[c] + eps);
    scale[c] = (real)factor;
    shift[c] = (real)(beta[c] - mean[c] * factor);
}

// What normalisation does to the values of a channel.
struct Normalise {
    Centre<real> centre;
    real scale, shift;

    __device__ real operator()(real x) const { return centre.distance(x) * scale + shift; }
};

__device__ inline void normalise_pack(
    Pack &pack, int k, const Normalise &normalise, const Pack &added, bool adds, bool rectified)
{
    real value = normalise(pack.values[k]);
    if (adds)
        value += added.values[k];
    pack.values[k] = rectified ? rectify(value) : value;
}

template <bool PACKED, int PACKS>
__device__ void normalise_stretch(
    const ChannelStretch &here, const real *x, const real *gamma, const real *beta,
    const real *others, bool rectified, real *y, const Statistics &batch)
{
    __shared__ real deviation;
    Pack packs[PACKS];
    load_all<PACKED>(here, x, packs);
    Moments found(here, packs, here.first(x));
    if (threadIdx.x == 0)
        deviation = batch.put(here.channel, found.mean, found.squares / here.count, here.count);
    __syncthreads();
    Normalise normalise = {
        Centre<real>(found.mean), deviation * gamma[here.channel], beta[here.channel]};
    #pragma unroll
    for (int turn = 0; turn < PACKS; ++turn) {
        Pack added = {};
        if (others)
            added = here.load<PACKED>(others, turn);
        #pragma unroll
        for (int k = 0; k < PACK; ++k)
            normalise_pack(packs[turn], k, normalise, added, others, rectified);
        here.store<PACKED>(y, turn, packs[turn]);
    }
}

template <int PACKS>
__device__ inline void normalise_any_stretch(
    const ChannelStretch &here, const real *x, const real *gamma, const real *beta,
    const real *others, bool rectified, real *y, const Statistics &batch)
{
    if (here.whole && at_pack(x) && at_pack(others) && at_pack(y))
        normalise_stretch<true, PACKS>(here, x, gamma, beta, others, rectified, y, batch);
    else
        normalise_stretch<false, PACKS>(here, x, gamma, beta, others, rectified, y, batch);
}

// All of a batch normalisation, a block a channel; others is null for none.
extern "C" __global__ void __launch_bounds__(1024) normalise_channels(
    const real *x, const real *gamma, const real *beta, const real *others, int rectified, real *y,
    real *mean, real *var, real *inv_std, real *running_mean, real *running_var, real kept,
    real momentum, wide eps, int channels, int positions, long long length, int part, int parts)
{
    ChannelStretch here(channels, positions, length, part, parts);
    Statistics batch = {mean, var, inv_std, running_mean, running_var, kept, momentum, eps};
    normalise_any_stretch<SHARE>(here, x, gamma, beta, others, rectified, y, batch);
}

// The same for longer channels.
extern "C" __global__ void __launch_bounds__(512) normalise_long_channels(
    const real *x, const real *gamma, const real *beta, const real *others, int rectified, real *y,
    real *mean, real *var, real *inv_std, real *running_mean, real *running_var, real kept,
    real momentum, wide eps, int channels, int positions, long long length, int part, int parts)
{
    ChannelStretch here(channels, positions, length, part, parts);
    Statistics batch = {mean, var, inv_std, running_mean, running_var, kept, momentum, eps};
    normalise_any_stretch<LONG_SHARE>(here, x, gamma, beta, others, rectified, y, batch);
}

// rest is null where the mean is exact, others for none. From the last element to the first: the
// last were read last, and may still be in the cache.
extern "C" __global__ void normalise(
    const real *x, const real *mean, const real *rest, const real *inv_std, const real *gamma,
    const real *beta, const real *others, int rectified, real *y,
    int channels, int positions, long long size)
{
    Elements here((size - 1) / PACK - thread_number(), size,
                  at_pack(x) && at_pack(others) && at_pack(y));
    if (!here.inside())
        return;
    ChannelWalk walk(here.first, channels, positions);
    auto of_channel = [&](int c) {
        return Normalise{{mean[c], rest ? rest[c] : (real)0}, inv_std[c] * gamma[c], beta[c]};
    };
    Normalise normalise = of_channel(walk.channel);
    Pack pack = here.load(x), added = {};
    if (others)
        added = here.load(others);
    #pragma unroll
    for (int k = 0; k < PACK; ++k) {
        normalise_pack(pack, k, normalise, added, others, rectified);
        if (walk.advance())
            normalise = of_channel(walk.channel);
    }
    here.store(y, pack);
}
