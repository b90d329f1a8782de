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

// What the classes of a sample weigh: weights (N, C, P), or, where those are null, labels (N, P),
// of which the ignored ones weigh nothing, and any that is no class NaN: it must not go unnoticed.
// Smoothing included.
struct Weights {
    const real *weights;
    const Sample &sample;
    long long label;
    wide mass;
    real rest, even;

    __device__ Weights(
        const real *weights, const long long *labels, const Sample &sample, real smoothing,
        long long ignored)
        : weights(weights), sample(sample), label(-1)
    {
        if (weights) {
            mass = 0;
            for (int c = threadIdx.x % WARP; c < sample.classes; c += WARP)
                mass += weights[sample.at(c)];
            mass = warp_sum(mass);
        } else {
            label = labels[sample.number];
            mass = 0 <= label && label < sample.classes ? 1 : nan("");
            if (label == ignored) {
                label = -1;
                mass = 0;
            }
        }
        rest = 1 - smoothing;
        even = (real)(smoothing * mass / sample.classes);
    }

    __device__ real of(int c) const
    {
        return rest * (weights ? weights[sample.at(c)] : (real)(c == label)) + even;
    }
};

extern "C" __global__ void softmax_cross_entropy(
    const real *logits, const real *weights, const long long *labels, real *losses, int classes,
    int positions, real smoothing, long long ignored, long long samples)
{
    Sample sample(classes, positions);
    if (sample.number >= samples)
        return;
    wide total, loss = 0;
    real largest = largest_and_total(logits, sample, &total);
    Weights target(weights, labels, sample, smoothing, ignored);
    real log_total = (real)log(total);
    for (int c = threadIdx.x % WARP; c < classes; c += WARP) {
        real weight = target.of(c);
        if (weight != 0)  // 0 times -inf is 0 here
            loss += weight * (log_total - (logits[sample.at(c)] - largest));
    }
    loss = warp_sum(loss);
    if (threadIdx.x % WARP == 0)
        losses[sample.number] = (real)loss;
}

// How many of the labels are none to ignore, counted by one block, in all its threads.
__device__ inline wide counted(const long long *labels, long long ignored, long long samples)
{
    long long count = 0;
    for (long long i = threadIdx.x; i < samples; i += blockDim.x)
        count += labels[i] != ignored;
    return block_sum((wide)count);
}

// In one block: the sum of all losses, or its part for each sample that counts. That is `samples`,
// or, where there are labels, those of them that are not to ignore.
extern "C" __global__ void total_loss(
    const real *losses, const long long *labels, real *y, int mean, long long ignored,
    long long samples)
{
    wide total = 0, count = samples;
    for (long long i = threadIdx.x; i < samples; i += blockDim.x)
        total += losses[i];
    total = block_sum(total);
    if (mean && labels)
        count = counted(labels, ignored, samples);
    if (threadIdx.x == 0)
        *y = (real)(mean ? total / count : total);
}

// In one block: the gradient by the mean as that by the sum.
extern "C" __global__ void mean_grad(
    const real *grad, const long long *labels, real *y, long long ignored, long long samples)
{
    wide count = samples;
    if (labels)
        count = counted(labels, ignored, samples);
    if (threadIdx.x == 0)
        *y = (real)(*grad / count);
}

// grad: one number a sample, or, `shared`, one for all.
extern "C" __global__ void softmax_cross_entropy_backward(
    const real *grad, int shared, const real *logits, const real *weights, const long long *labels,
    real *dlogits, int classes, int positions, real smoothing, long long ignored,
    long long samples)
{
    Sample sample(classes, positions);
    if (sample.number >= samples)
        return;
    wide total;
    real largest = largest_and_total(logits, sample, &total);
    Weights target(weights, labels, sample, smoothing, ignored);
    real share = (real)(target.mass / total);
    real slope = grad[shared ? 0 : sample.number];
    for (int c = threadIdx.x % WARP; c < classes; c += WARP) {
        long long i = sample.at(c);
        dlogits[i] = slope * (exp(logits[i] - largest) * share - target.of(c));
    }
}
