// Gradients of batch normalisation; the definitions stand in kernels/reference/batchnorm.py.
//
// As in batchnorm.cu: one kernel does all to a channel that a block can hold; for longer ones
// blocks sum parts, a warp joins them, and a third kernel takes all elements.

#include "batchnorm.cuh"

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
