// Softmax and cross-entropy; the definitions stand in kernels/reference/loss.py.
//
// A warp has a sample for itself; its lanes take turns along the classes.

#include "common.cuh"

__device__ inline real warp_max(real value)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        real other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value ? other : value;
    }
    return value;
}

// One sample of logits (N, C, P), as its warp sees it.
struct Sample {
    long long number, start;  // its loss's place, and its first logit's
    int classes, positions;

    __device__ Sample(int classes, int positions) : classes(classes), positions(positions)
    {
        int position;
        number = thread_number() / WARP;
        long long image = divide(number, positions, &position);
        start = image * classes * positions + position;
    }

    __device__ long long at(int c) const { return start + (long long)c * positions; }
};

// max z, and total = sum exp(z - max z), in all lanes. A NaN gets lost in the maximum, but not in
// the total.
__device__ inline real largest_and_total(const real *logits, const Sample &sample, wide *total)
{
    real largest = logits[sample.start];
    for (int c = threadIdx.x % WARP; c < sample.classes; c += WARP) {
        real value = logits[sample.at(c)];
        largest = value > largest ? value : largest;
    }
    largest = warp_max(largest);
    wide sum = 0;
    for (int c = threadIdx.x % WARP; c < sample.classes; c += WARP)
        sum += exp(logits[sample.at(c)] - largest);
    *total = warp_sum(sum);
    return largest;
}

extern "C" __global__ void softmax_cross_entropy(
    const real *logits, const real *target, real *losses, int classes, int positions,
    long long samples)
{
    Sample sample(classes, positions);
    if (sample.number >= samples)
        return;
    wide total, loss = 0;
    real largest = largest_and_total(logits, sample, &total);
    real log_total = (real)log(total);
    for (int c = threadIdx.x % WARP; c < classes; c += WARP) {
        real weight = target[sample.at(c)];
        if (weight != 0)  // 0 times -inf is 0 here
            loss += weight * (log_total - (logits[sample.at(c)] - largest));
    }
    loss = warp_sum(loss);
    if (threadIdx.x % WARP == 0)
        losses[sample.number] = (real)loss;
}

extern "C" __global__ void softmax_cross_entropy_backward(
    const real *grad, const real *logits, const real *target, real *dlogits, int classes,
    int positions, long long samples)
{
    Sample sample(classes, positions);
    if (sample.number >= samples)
        return;
    wide total, weights = 0;
    real largest = largest_and_total(logits, sample, &total);
    for (int c = threadIdx.x % WARP; c < classes; c += WARP)
        weights += target[sample.at(c)];
    real share = (real)(warp_sum(weights) / total);
    for (int c = threadIdx.x % WARP; c < classes; c += WARP) {
        long long i = sample.at(c);
        dlogits[i] = grad[sample.number] * (exp(logits[i] - largest) * share - target[i]);
    }
}
