// Rectification; the definitions stand in kernels/reference/activation.py.

#include "channels.cuh"

extern "C" __global__ void relu(const real *x, real *y, long long size)
{
    Elements here(size, at_pack(x) && at_pack(y));
    if (!here.inside())
        return;
    Pack pack = here.load(x);
    #pragma unroll
    for (int k = 0; k < PACK; ++k)
        pack.values[k] = rectify(pack.values[k]);
    here.store(y, pack);
}

extern "C" __global__ void relu_backward(const real *dy, const real *y, real *dx, long long size)
{
    Elements here(size, at_pack(dy) && at_pack(y) && at_pack(dx));
    if (here.inside())
        here.store(dx, passed(here.load(dy), here.load(y)));
}

extern "C" __global__ void bias_relu(
    const real *x, const real *bias, real *y, int channels, int positions, long long size)
{
    Elements here(size, at_pack(x) && at_pack(y));
    if (!here.inside())
        return;
    ChannelWalk walk(here.first, channels, positions);
    Pack pack = here.load(x);
    real shift = bias[walk.channel];
    #pragma unroll
    for (int k = 0; k < PACK; ++k) {
        pack.values[k] = rectify(pack.values[k] + shift);
        if (walk.advance())
            shift = bias[walk.channel];
    }
    here.store(y, pack);
}

template <bool PACKED>
__device__ wide pass_stretch(
    const ChannelStretch &here, const real *dy, const real *y, real *dx)
{
    Pack grads[SHARE], results[SHARE];
    load_all<PACKED>(here, dy, grads);
    load_all<PACKED>(here, y, results);
    wide total = 0;
    #pragma unroll
    for (int turn = 0; turn < SHARE; ++turn) {
        Pack grad = passed(grads[turn], results[turn]);
        here.store<PACKED>(dx, turn, grad);
        total += pair_sum(grad.values);
    }
    return total;
}

// Also the sums of dx over the parts of each channel, of which the bias's gradient is made: they
// are it where a channel is one part, and sums is null then, and otherwise dbias is.
extern "C" __global__ void __launch_bounds__(1024) bias_relu_backward(
    const real *dy, const real *y, real *dx, wide *sums, real *dbias,
    int channels, int positions, long long length, int part, int parts)
{
    ChannelStretch here(channels, positions, length, part, parts);
    bool packed = here.whole && at_pack(dy) && at_pack(y) && at_pack(dx);
    wide total = packed ? pass_stretch<true>(here, dy, y, dx)
                        : pass_stretch<false>(here, dy, y, dx);
    put_sum(block_sum(total), sums, dbias);
}

// The second half of conv2d_affine (kernels/reference/conv.py), in place; scale is null for 1,
// others for none.
extern "C" __global__ void affine(
    real *y, const real *scale, const real *shift, const real *others, int rectified,
    int channels, int positions, long long size)
{
    Elements here(size, at_pack(y) && at_pack(others));
    if (!here.inside())
        return;
    ChannelWalk walk(here.first, channels, positions);
    Pack pack = here.load(y), added = {};
    if (others)
        added = here.load(others);
    real factor = scale ? scale[walk.channel] : (real)1, term = shift[walk.channel];
    #pragma unroll
    for (int k = 0; k < PACK; ++k) {
        real value = pack.values[k] * factor + term;
        if (others)
            value += added.values[k];
        pack.values[k] = rectified ? rectify(value) : value;
        if (walk.advance()) {
            factor = scale ? scale[walk.channel] : (real)1;
            term = shift[walk.channel];
        }
    }
    here.store(y, pack);
}
