// Local response normalisation; the definitions stand in kernels/reference/lrn.py.
//
// A block has TILE channels of COLUMNS neighbouring pixels. What is summed over windows of channels
// is made once for every channel that they reach, and handed to the others in shared memory.

#include "common.cuh"

static const int COLUMNS = 32, ROWS = 8;  // of threads
static const int TILE = 32;
static const int CHUNK = 40;              // channels in shared memory: enough for windows of 9

// scale ^ -beta; the papers' 3/4 by two square roots, which are much faster.
__device__ inline real damp(real scale, real beta)
{
    if (beta == (real)0.75) {
        real inverse_root = rsqrt(scale);
        return inverse_root * sqrt(inverse_root);
    }
    return pow(scale, -beta);
}

// The elements of a block: channels from `channel` on, of which a thread takes every ROWS-th.
struct Tile {
    int column, row, channel, channels, position, positions;
    long long image;

    __device__ Tile(int channels, int positions) : channels(channels), positions(positions)
    {
        column = threadIdx.x;
        row = threadIdx.y;
        long long rest = divide(blockIdx.x, (positions - 1) / COLUMNS + 1, &position);
        image = divide(rest, (channels - 1) / TILE + 1, &channel);
        position = position * COLUMNS + column;
        channel *= TILE;
    }

    // Thread's channel number k; it may lie beyond the last.
    __device__ int own(int k) const { return channel + row + k * ROWS; }

    __device__ bool inside(int c) const { return position < positions && c < channels; }

    __device__ long long offset(int c) const
    {
        return (image * channels + c) * positions + position;
    }
};

// totals: the sums of term(offset) over the windows c - before ... c + after of the thread's
// channels, clipped. By all threads of the block.
template <class Term>
__device__ inline void window_sums(
    const Tile &tile, int before, int after, Term term, real (&totals)[TILE / ROWS])
{
    __shared__ real terms[CHUNK][COLUMNS];
    int low = max(tile.channel - before, 0);
    int high = min(tile.channel + TILE + after, tile.channels);
    for (int start = low; start < high; start += CHUNK) {
        int stop = min(start + CHUNK, high);
        __syncthreads();  // the chunk before may still be being read
        #pragma unroll
        for (int k = 0; k < CHUNK / ROWS; ++k) {
            int c = start + tile.row + k * ROWS;
            if (c < stop && tile.inside(c))
                terms[c - start][tile.column] = term(tile.offset(c));
        }
        __syncthreads();
        #pragma unroll
        for (int k = 0; k < TILE / ROWS; ++k) {
            int last = min(tile.own(k) + after, stop - 1);
            for (int c = max(tile.own(k) - before, start); c <= last; ++c)
                totals[k] += terms[c - start][tile.column];
        }
    }
}

extern "C" __global__ void lrn(
    const real *x, real *y, real *scale, int channels, int positions, int before, int after,
    real alpha, real beta, real k)
{
    Tile tile(channels, positions);
    real totals[TILE / ROWS] = {};
    auto square = [&](long long i) { return x[i] * x[i]; };
    window_sums(tile, before, after, square, totals);
    #pragma unroll
    for (int own = 0; own < TILE / ROWS; ++own) {
        if (!tile.inside(tile.own(own)))
            continue;
        long long i = tile.offset(tile.own(own));
        real total = k + alpha * totals[own];
        scale[i] = total;
        y[i] = x[i] * damp(total, beta);
    }
}

// before and after are those of the forward window: backward takes its mirror. factor is 2 alpha
// beta.
extern "C" __global__ void lrn_backward(
    const real *dy, const real *x, const real *scale, real *dx, int channels, int positions,
    int before, int after, real factor, real beta)
{
    Tile tile(channels, positions);
    real through[TILE / ROWS] = {};
    auto ratio = [&](long long i) { return dy[i] * damp(scale[i], beta) * x[i] / scale[i]; };
    window_sums(tile, after, before, ratio, through);
    #pragma unroll
    for (int own = 0; own < TILE / ROWS; ++own) {
        if (!tile.inside(tile.own(own)))
            continue;
        long long i = tile.offset(tile.own(own));
        dx[i] = dy[i] * damp(scale[i], beta) - factor * x[i] * through[own];
    }
}
