// Batch normalisation; the definitions stand in kernels/reference/batchnorm.py.
//
// A channel that a block can hold is read once, and all is done by one kernel. The statistics of
// longer ones are made in two steps: blocks reduce parts of a channel (channels.cuh), a warp joins
// them; a third kernel takes all elements. Results do not depend on the order in which blocks run.
//
// Nothing here is done to each element in float64. The mean is given as two numbers, `mean` and the
// `rest` that rounding took from it, so that x - mean - rest loses no digits; and the mean is found
// from the distances to one of the values, which are as small as the spread.

#include "channels.cuh"

// Packs that a thread has of a long channel, in a block of at most 512.
static const int LONG_SHARE = 13;

// A mean as two numbers of type T.
template <class T>
struct Centre {
    T mean, rest;

    __device__ Centre(T mean, T rest) : mean(mean), rest(rest) {}
    __device__ explicit Centre(wide exact) : mean((T)exact), rest((T)(exact - mean)) {}

    __device__ T distance(T x) const { return x - mean - rest; }
};

template <bool PACKED, int PACKS>
__device__ void load_all(const ChannelStretch &here, const real *x, Pack (&packs)[PACKS])
{
    #pragma unroll
    for (int turn = 0; turn < PACKS; ++turn)
        packs[turn] = here.load<PACKED>(x, turn);
}

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

// Mean and biased variance of a channel from those of its parts, by one full warp, in all its lanes.
// A part's squares about the common mean are those about its own, plus its size times the squared
// distance of the means.
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

// Sums over a block, in all threads: of dy, of dy (x - mean), and of x - mean, which tells the
// mean's rest.
struct GradientSums {
    wide plain, weighted, apart;

    template <int PACKS>
    __device__ GradientSums(
        const ChannelStretch &here, const Pack (&grads)[PACKS], const Pack (&packs)[PACKS],
        real mean)
        : plain(0), weighted(0), apart(0)
    {
        #pragma unroll
        for (int turn = 0; turn < PACKS; ++turn) {
            Pack grad = grads[turn], product, centred;
            #pragma unroll
            for (int k = 0; k < PACK; ++k) {
                centred.values[k] = here.inside(turn, k) ? packs[turn].values[k] - mean : (real)0;
                product.values[k] = grad.values[k] * centred.values[k];
            }
            plain += pair_sum(grad.values);
            weighted += pair_sum(product.values);
            apart += pair_sum(centred.values);
        }
        plain = block_sum(plain);
        weighted = block_sum(weighted);
        apart = block_sum(apart);
    }
};

// y is null where there was no rectifier.
template <bool PACKED, int PACKS>
__device__ void load_gradients(
    const ChannelStretch &here, const real *dy, const real *y, Pack (&grads)[PACKS])
{
    load_all<PACKED>(here, dy, grads);
    if (!y)
        return;
    Pack results[PACKS];
    load_all<PACKED>(here, y, results);
    #pragma unroll
    for (int turn = 0; turn < PACKS; ++turn)
        grads[turn] = passed(grads[turn], results[turn]);
}

// What the gradient of a channel's x is made of.
struct InputGradient {
    Centre<real> centre;
    real deviation, scale, plain, weighted;

    __device__ real operator()(real grad, real x) const
    {
        return scale * (grad - plain - centre.distance(x) * deviation * weighted);
    }
};

// What of a channel's sums is left to say, by one thread: dgamma, dbeta, the means of dy and of
// dy xh, and the rest of the rounded mean. In evaluation (training 0) the mean given is exact, and
// the last three are zero.
struct ChannelGradients {
    real weighted, plain, mean_plain, mean_weighted, rest;

    __device__ ChannelGradients(
        wide plain_sum, wide weighted_sum, wide apart_sum, real deviation, bool training,
        long long length)
    {
        wide apart = training ? apart_sum / length : 0;
        wide normal = (weighted_sum - apart * plain_sum) * deviation;
        weighted = (real)normal;
        plain = (real)plain_sum;
        mean_plain = training ? (real)(plain_sum / length) : (real)0;
        mean_weighted = training ? (real)(normal / length) : (real)0;
        rest = (real)apart;
    }
};

template <bool PACKED>
__device__ void gradients_of_stretch(
    const ChannelStretch &here, const real *dy, const real *x, const real *y, const real *gamma,
    const real *mean, const real *inv_std, bool training, real *dx, real *dgamma, real *dbeta)
{
    __shared__ real means[3];
    Pack grads[SHARE], packs[SHARE];
    load_all<PACKED>(here, x, packs);
    load_gradients<PACKED>(here, dy, y, grads);
    int c = here.channel;
    real centre = mean[c], deviation = inv_std[c];
    GradientSums sums(here, grads, packs, centre);
    if (threadIdx.x == 0) {
        ChannelGradients all(
            sums.plain, sums.weighted, sums.apart, deviation, training, here.count);
        dgamma[c] = all.weighted;
        dbeta[c] = all.plain;
        means[0] = all.mean_plain;
        means[1] = all.mean_weighted;
        means[2] = all.rest;
    }
    __syncthreads();
    InputGradient gradient = {
        {centre, means[2]}, deviation, deviation * gamma[c], means[0], means[1]};
    #pragma unroll
    for (int turn = 0; turn < SHARE; ++turn) {
        #pragma unroll
        for (int k = 0; k < PACK; ++k)
            grads[turn].values[k] = gradient(grads[turn].values[k], packs[turn].values[k]);
        here.store<PACKED>(dx, turn, grads[turn]);
    }
}

// All gradients, a block a channel. Threads hold two arrays, and so a block has at most 512.
extern "C" __global__ void __launch_bounds__(512) channel_gradients(
    const real *dy, const real *x, const real *y, const real *gamma, const real *mean,
    const real *inv_std, int training, real *dx, real *dgamma, real *dbeta,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelStretch here(channels, positions, length, part, parts);
    if (here.whole && at_pack(dy) && at_pack(x) && at_pack(y) && at_pack(dx))
        gradients_of_stretch<true>(
            here, dy, x, y, gamma, mean, inv_std, training, dx, dgamma, dbeta);
    else
        gradients_of_stretch<false>(
            here, dy, x, y, gamma, mean, inv_std, training, dx, dgamma, dbeta);
}

template <bool PACKED>
__device__ GradientSums part_gradients_of(
    const ChannelStretch &here, const real *dy, const real *x, const real *y, real mean)
{
    Pack grads[SHARE], packs[SHARE];
    load_all<PACKED>(here, x, packs);
    load_gradients<PACKED>(here, dy, y, grads);
    return GradientSums(here, grads, packs, mean);
}

// sums (3, C, parts), in the order of GradientSums.
extern "C" __global__ void __launch_bounds__(256) part_gradients(
    const real *dy, const real *x, const real *y, const real *mean, wide *sums,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelStretch here(channels, positions, length, part, parts);
    real centre = mean[here.channel];
    GradientSums found = here.whole && at_pack(dy) && at_pack(x) && at_pack(y)
        ? part_gradients_of<true>(here, dy, x, y, centre)
        : part_gradients_of<false>(here, dy, x, y, centre);
    if (threadIdx.x == 0) {
        long long plane = (long long)channels * parts;
        sums[blockIdx.x] = found.plain;
        sums[blockIdx.x + plane] = found.weighted;
        sums[blockIdx.x + 2 * plane] = found.apart;
    }
}

// A warp a channel.
extern "C" __global__ void gradients(
    const wide *sums, const real *inv_std, int training, real *dgamma, real *dbeta,
    real *mean_plain, real *mean_weighted, real *rest, int channels, long long length, int parts)
{
    long long channel = thread_number() / WARP;
    if (channel >= channels)
        return;
    long long plane = (long long)channels * parts;
    wide plain = sum_of_parts(sums, channel, parts);
    wide weighted = sum_of_parts(sums + plane, channel, parts);
    wide apart = sum_of_parts(sums + 2 * plane, channel, parts);
    if (threadIdx.x % WARP)
        return;
    ChannelGradients all(plain, weighted, apart, inv_std[channel], training, length);
    dgamma[channel] = all.weighted;
    dbeta[channel] = all.plain;
    mean_plain[channel] = all.mean_plain;
    mean_weighted[channel] = all.mean_weighted;
    rest[channel] = all.rest;
}

// From the last element to the first, as `normalise`.
extern "C" __global__ void input_gradient(
    const real *dy, const real *x, const real *y, const real *mean, const real *rest,
    const real *inv_std, const real *gamma, const real *mean_plain, const real *mean_weighted,
    real *dx, int channels, int positions, long long size)
{
    Elements here((size - 1) / PACK - thread_number(), size,
                  at_pack(dy) && at_pack(x) && at_pack(y) && at_pack(dx));
    if (!here.inside())
        return;
    ChannelWalk walk(here.first, channels, positions);
    auto of_channel = [&](int c) {
        return InputGradient{{mean[c], rest[c]}, inv_std[c], inv_std[c] * gamma[c],
                             mean_plain[c], mean_weighted[c]};
    };
    InputGradient gradient = of_channel(walk.channel);
    Pack grad = here.load(dy), pack = here.load(x);
    if (y)
        grad = passed(grad, here.load(y));
    #pragma unroll
    for (int k = 0; k < PACK; ++k) {
        grad.values[k] = gradient(grad.values[k], pack.values[k]);
        if (walk.advance())
            gradient = of_channel(walk.channel);
    }
    here.store(dx, grad);
}
