// Rectification; the definitions stand in kernels/reference/activation.py.

#include "common.cuh"

__device__ inline real rectify(real value)
{
    return value < 0 ? (real)0 : value;  // a NaN is not below 0: it stays
}

extern "C" __global__ void relu(const real *x, real *y, long long size)
{
    long long i = thread_number();
    if (i < size)
        y[i] = rectify(x[i]);
}

extern "C" __global__ void relu_backward(const real *dy, const real *y, real *dx, long long size)
{
    long long i = thread_number();
    if (i < size)
        dx[i] = y[i] > 0 ? dy[i] : (real)0;
}
