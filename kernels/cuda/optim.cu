// Steps of optimisers in one pass; the definitions stand in kernels/reference/optim.py.

#include "common.cuh"

// velocity is null where there is no momentum.
extern "C" __global__ void sgd_step(
    real *values, const real *gradient, real *velocity, real lr, real momentum, int nesterov,
    real weight_decay, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    real value = values[i], slope = gradient[i];
    if (weight_decay != 0)
        slope += weight_decay * value;
    if (velocity) {
        real speed = momentum * velocity[i] + slope;
        velocity[i] = speed;
        slope = nesterov ? slope + momentum * speed : speed;
    }
    values[i] = value - lr * slope;
}

// rest1 = 1 - beta1, rest2 = 1 - beta2. Before all else values shrink to `shrink` times theirs.
extern "C" __global__ void adam_step(
    real *values, const real *gradient, real *means, real *squares, real rest1, real beta2,
    real rest2, real rate, real correction, real eps, real decay, real shrink, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    real value = values[i] * shrink;
    real slope = gradient[i] + decay * value;
    real mean = means[i] + rest1 * (slope - means[i]);
    real square = squares[i] * beta2 + rest2 * slope * slope;
    means[i] = mean;
    squares[i] = square;
    values[i] = value - rate * mean / (sqrt(square) / correction + eps);
}
