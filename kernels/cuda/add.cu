// The sum of two arrays; the definition stands in kernels/reference/add.py.

#include "common.cuh"

extern "C" __global__ void add(const real *a, const real *b, real *y, long long size)
{
    long long i = thread_number();
    if (i < size)
        y[i] = a[i] + b[i];
}
