// Steps of optimisers in one pass, of many parameters at once; the definitions stand in
// kernels/reference/optim.py.

#include "tables.cuh"

// Elements a thread takes, a block's width apart. All are read before one is written, so that the
// reads are on their way together. Launchers count on it.
static const int SHARE = 4;

// The elements of a row that one thread visits.
struct Share {
    long long first, size;

    template <class T>
    __device__ Share(const T &table, int row) : size(table.sizes[row])
    {
        first = (long long)table.block(row) * SHARE * blockDim.x + threadIdx.x;
    }

    __device__ long long at(int k) const { return first + k * blockDim.x; }
    __device__ bool has(int k) const { return at(k) < size; }

    __device__ void load(const real *array, real (&values)[SHARE]) const
    {
        #pragma unroll
        for (int k = 0; k < SHARE; ++k)
            values[k] = has(k) ? array[at(k)] : (real)0;
    }

    __device__ void store(real *array, const real (&values)[SHARE]) const
    {
        #pragma unroll
        for (int k = 0; k < SHARE; ++k)
            if (has(k))
                array[at(k)] = values[k];
    }
};

typedef Table<3, 110> SgdTable;  // values, gradient, velocity: null where there is no momentum
typedef Table<4, 90> AdamTable;  // values, gradient, mean, square

extern "C" __global__ void sgd_step(
    const __grid_constant__ SgdTable table, real lr, real momentum, int nesterov,
    real weight_decay)
{
    int row = table.row();
    Share mine(table, row);
    real *velocity = table.arrays[2][row];
    real values[SHARE], slopes[SHARE], speeds[SHARE];
    mine.load(table.arrays[0][row], values);
    mine.load(table.arrays[1][row], slopes);
    if (velocity)
        mine.load(velocity, speeds);
    #pragma unroll
    for (int k = 0; k < SHARE; ++k) {
        real slope = slopes[k];
        if (weight_decay != 0)
            slope += weight_decay * values[k];
        if (velocity) {
            speeds[k] = momentum * speeds[k] + slope;
            slope = nesterov ? slope + momentum * speeds[k] : speeds[k];
        }
        values[k] -= lr * slope;
    }
    if (velocity)
        mine.store(velocity, speeds);
    mine.store(table.arrays[0][row], values);
}

// rest1 = 1 - beta1, rest2 = 1 - beta2. Before all else values shrink to `shrink` times theirs.
extern "C" __global__ void adam_step(
    const __grid_constant__ AdamTable table, real rest1, real beta2, real rest2, real rate,
    real correction, real eps, real decay, real shrink)
{
    int row = table.row();
    Share mine(table, row);
    real values[SHARE], slopes[SHARE], means[SHARE], squares[SHARE];
    mine.load(table.arrays[0][row], values);
    mine.load(table.arrays[1][row], slopes);
    mine.load(table.arrays[2][row], means);
    mine.load(table.arrays[3][row], squares);
    #pragma unroll
    for (int k = 0; k < SHARE; ++k) {
        real value = values[k] * shrink;
        real slope = slopes[k] + decay * value;
        means[k] += rest1 * (slope - means[k]);
        squares[k] = squares[k] * beta2 + rest2 * slope * slope;
        values[k] = value - rate * means[k] / (sqrt(squares[k]) / correction + eps);
    }
    mine.store(table.arrays[2][row], means);
    mine.store(table.arrays[3][row], squares);
    mine.store(table.arrays[0][row], values);
}
