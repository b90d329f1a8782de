// What is done element by element; the definitions stand in kernels/reference/elementwise.py, and
// that of `affine`, the second half of conv2d_affine, in kernels/reference/conv.py.

#include "channels.cuh"

extern "C" __global__ void add(const real *a, const real *b, real *y, long long size)
{
    long long i = thread_number();
    if (i < size)
        y[i] = a[i] + b[i];
}

// In place; others is null for none.
extern "C" __global__ void affine(
    real *y, const real *scale, const real *shift, const real *others, int rectified,
    int channels, int positions, long long planes)
{
    PlaneWalk here(positions, planes);
    if (!here.inside())
        return;
    int c = here.channel(channels);
    real factor = scale[c], term = shift[c];
    for (; here.inside(); here.advance()) {
        long long i = here.offset();
        real value = y[i] * factor + term;
        if (others)
            value += others[i];
        y[i] = rectified ? rectify(value) : value;
    }
}
