// Batch normalisation; the definitions stand in kernels/reference/batchnorm.py.
//
// A channel's statistics are made in two steps, in float64: blocks reduce parts of it (channels.cuh)
// and a warp joins the parts. Results do not depend on the order in which blocks run. What is done
// to each element takes no float64: the mean is given as two numbers, `mean` and the `rest` that
// rounding took from it, so that x - mean - rest loses no digits.

#include "channels.cuh"

// The mean of every part and the sum of squares about it. The part is read twice, the second time
// from the cache: E[x^2] - E[x]^2 would cancel where the mean is large.
extern "C" __global__ void part_moments(
    const real *x, wide *means, wide *squares,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelPart first(channels, positions, length, part, parts), second = first;
    wide total = 0, square = 0;
    for (; first.inside(); first.advance())
        total += x[first.offset()];
    wide mean = block_sum(total) / part_size(length, part, parts);
    for (; second.inside(); second.advance()) {
        wide centred = x[second.offset()] - mean;
        square += centred * centred;
    }
    square = block_sum(square);
    if (threadIdx.x == 0) {
        means[blockIdx.x] = mean;
        squares[blockIdx.x] = square;
    }
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

// A warp a channel.
extern "C" __global__ void moments(
    const wide *means, const wide *squares, real *mean, real *rest, real *var, real *inv_std,
    wide eps, int channels, long long length, int part, int parts)
{
    long long channel = thread_number() / WARP;
    if (channel >= channels)
        return;
    wide square, common = joined_moments(means, squares, channel, length, part, parts, &square);
    if (threadIdx.x % WARP == 0) {
        mean[channel] = (real)common;
        rest[channel] = (real)(common - (real)common);
        var[channel] = (real)square;
        inv_std[channel] = (real)(1 / sqrt(square + eps));
    }
}

// A warp a channel; the same without rounding.
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

// rest is null where the mean is exact, others for none.
extern "C" __global__ void normalise(
    const real *x, const real *mean, const real *rest, const real *inv_std, const real *gamma,
    const real *beta, const real *others, int rectified, real *y,
    int channels, int positions, long long planes)
{
    PlaneWalk here(positions, planes);
    if (!here.inside())
        return;
    int c = here.channel(channels);
    real centre = mean[c], correction = rest ? rest[c] : (real)0;
    real scale = inv_std[c] * gamma[c], shift = beta[c];
    for (; here.inside(); here.advance()) {
        long long i = here.offset();
        real value = (x[i] - centre - correction) * scale + shift;
        if (others)
            value += others[i];
        y[i] = rectified ? rectify(value) : value;
    }
}

// The gradient behind the rectifier that made y; y is null where there was none.
__device__ inline real passed(real grad, const real *y, long long i)
{
    return !y || y[i] > 0 ? grad : (real)0;
}

// sums (3, C, parts): of dy, of dy (x - mean), and of x - mean, which tells the mean's rest.
extern "C" __global__ void part_gradients(
    const real *dy, const real *x, const real *y, const real *mean, wide *sums,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelPart here(channels, positions, length, part, parts);
    wide plain = 0, weighted = 0, apart = 0;
    real centre = mean[here.channel];
    for (; here.inside(); here.advance()) {
        long long i = here.offset();
        wide grad = passed(dy[i], y, i), centred = (wide)x[i] - centre;
        plain += grad;
        weighted += grad * centred;
        apart += centred;
    }
    plain = block_sum(plain);
    weighted = block_sum(weighted);
    apart = block_sum(apart);
    if (threadIdx.x == 0) {
        long long plane = (long long)channels * parts;
        sums[blockIdx.x] = plain;
        sums[blockIdx.x + plane] = weighted;
        sums[blockIdx.x + 2 * plane] = apart;
    }
}

// A warp a channel: dgamma, dbeta, the means of dy and of dy xh, and the rest of the rounded mean.
// In evaluation (training 0) the mean given is exact, and the last three are zero.
extern "C" __global__ void gradients(
    const wide *sums, const real *inv_std, real *dgamma, real *dbeta, real *mean_plain,
    real *mean_weighted, real *rest, int training, int channels, long long length, int parts)
{
    long long channel = thread_number() / WARP;
    if (channel >= channels)
        return;
    long long plane = (long long)channels * parts;
    wide plain = sum_of_parts(sums, channel, parts);
    wide weighted = sum_of_parts(sums + plane, channel, parts);
    wide apart = sum_of_parts(sums + 2 * plane, channel, parts) / length;
    if (!training)
        apart = 0;
    weighted = (weighted - apart * plain) * inv_std[channel];
    if (threadIdx.x % WARP == 0) {
        dgamma[channel] = (real)weighted;
        dbeta[channel] = (real)plain;
        mean_plain[channel] = training ? (real)(plain / length) : (real)0;
        mean_weighted[channel] = training ? (real)(weighted / length) : (real)0;
        rest[channel] = (real)apart;
    }
}

extern "C" __global__ void input_gradient(
    const real *dy, const real *x, const real *y, const real *mean, const real *rest,
    const real *inv_std, const real *gamma, const real *mean_plain, const real *mean_weighted,
    real *dx, int channels, int positions, long long planes)
{
    PlaneWalk here(positions, planes);
    if (!here.inside())
        return;
    int c = here.channel(channels);
    real centre = mean[c], correction = rest[c], deviation = inv_std[c];
    real scale = deviation * gamma[c], plain = mean_plain[c], weighted = mean_weighted[c];
    for (; here.inside(); here.advance()) {
        long long i = here.offset();
        real normal = (x[i] - centre - correction) * deviation;
        dx[i] = scale * (passed(dy[i], y, i) - plain - normal * weighted);
    }
}
