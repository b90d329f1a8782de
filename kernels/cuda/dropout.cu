// Dropout; the definition of the mask stands in kernels/reference/dropout.py.
//
// A thread is one block of Philox: four random words, for four elements in a row.

#include "common.cuh"

struct Words {
    unsigned word[4];
};

__device__ inline Words philox(
    unsigned long long block, unsigned long long step, unsigned long long seed)
{
    unsigned x0 = (unsigned)block, x1 = (unsigned)(block >> 32);
    unsigned x2 = (unsigned)step, x3 = (unsigned)(step >> 32);
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
    for (int turn = 0; turn < 10; ++turn) {
        unsigned long long product0 = 0xD2511F53ull * x0;
        unsigned long long product1 = 0xCD9E8D57ull * x2;
        x0 = (unsigned)(product1 >> 32) ^ x1 ^ k0;
        x1 = (unsigned)product1;
        x2 = (unsigned)(product0 >> 32) ^ x3 ^ k1;
        x3 = (unsigned)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{x0, x1, x2, x3}};
}

// Where there is a `start`, it holds the seed, and what is to be added to the step: a graph that
// was recorded once draws other masks each time.
__device__ inline Words draw(
    unsigned long long block, const unsigned long long *start, unsigned long long seed,
    unsigned long long step)
{
    return start ? philox(block, start[1] + step, start[0]) : philox(block, step, seed);
}

extern "C" __global__ void set_start(
    unsigned long long *start, unsigned long long seed, unsigned long long step)
{
    start[0] = seed;
    start[1] = step;
}

extern "C" __global__ void dropout_mask(
    bool *kept, unsigned threshold, const unsigned long long *start, unsigned long long seed,
    unsigned long long step, long long size)
{
    long long first = 4 * thread_number();
    if (first >= size)
        return;
    Words random = draw(first / 4, start, seed, step);
    for (int k = 0; k < 4 && first + k < size; ++k)
        kept[first + k] = random.word[k] >= threshold;
}

extern "C" __global__ void dropout(
    const real *x, real *y, real scale, unsigned threshold, const unsigned long long *start,
    unsigned long long seed, unsigned long long step, long long size)
{
    long long first = 4 * thread_number();
    if (first >= size)
        return;
    Words random = draw(first / 4, start, seed, step);
    for (int k = 0; k < 4 && first + k < size; ++k)
        y[first + k] = random.word[k] >= threshold ? x[first + k] * scale : (real)0;
}
