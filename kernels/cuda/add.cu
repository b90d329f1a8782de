// The sum of two arrays; the definition stands in kernels/reference/add.py.

#include "packs.cuh"

extern "C" __global__ void add(const real *a, const real *b, real *y, long long size)
{
    Elements here(size, at_pack(a) && at_pack(b) && at_pack(y));
    if (!here.inside())
        return;
    Pack sum = here.load(a), other = here.load(b);
    #pragma unroll
    for (int k = 0; k < PACK; ++k)
        sum.values[k] += other.values[k];
    here.store(y, sum);
}
