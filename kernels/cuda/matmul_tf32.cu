// Products of matrices on tensor cores, for float32 in TF32's precision (sm_80 on). 1x1
// convolutions and their gradients are such products, whose matrices lie in the images as they are
// (kernels/cuda/conv_tf32.py).

#include "matrix_tf32.cuh"

extern __shared__ float memory[];

// A matrix of every group, `group` apart.
struct Stack {
    const float *base;
    bool deep;
    long long step, inner, outer, group;

    __device__ Matrix matrix(int number) const
    {
        return {base + number * group, step, {(int)inner, outer}};
    }
};

// Results of every group, and of every split `split` further.
struct Results {
    float *base;
    long long step, inner, outer, group, split;
};

template <class Shape, class Left, class Right>
__device__ inline void multiply_tile(
    const Stack &a, const Stack &b, const Finish &finish, const Results &y, int m, long long n,
    long long k, int groups)
{
    int tiles = gridDim.x / groups, group = blockIdx.x / tiles;
    long long first_column = (long long)(blockIdx.x % tiles) * WIDTH;
    int first = blockIdx.y * Shape::HEIGHT;
    Share<Shape> share(k);
    long long start = (long long)share.first * Shape::DEPTH;
    Left left(a.matrix(group), first, m, start, k);
    Right right(b.matrix(group), first_column, n, start, k);
    Sums<Shape> sums;
    multiply<Shape>(left, right, share.steps, memory, sums);
    long long mine = first_column + tile_column();
    Neighbours columns = {(int)y.inner, y.outer};
    long long column = mine < n ? group * y.group + columns.offset(mine) : -1;
    float *part = y.base + blockIdx.z * y.split;
    store<Shape>(sums, finish, part, group * m, first, m, y.step, column, memory);
}

template <class Shape>
__device__ inline void multiply_matrices(
    const Stack &a, const Stack &b, const Finish &finish, const Results &y, int m, long long n,
    long long k, int groups)
{
    typedef DeepTile<Shape, Shape::HEIGHT, false> DeepRows;
    typedef WideTile<Shape, Shape::HEIGHT, false> WideRows;
    typedef DeepTile<Shape, WIDTH, false> DeepColumns;
    typedef WideTile<Shape, WIDTH, false> WideColumns;
    if (a.deep && b.deep)  // a gradient by weights
        multiply_tile<Shape, DeepRows, DeepColumns>(a, b, finish, y, m, n, k, groups);
    else if (a.deep)  // a convolution
        multiply_tile<Shape, DeepRows, WideColumns>(a, b, finish, y, m, n, k, groups);
    else  // a gradient by the input
        multiply_tile<Shape, WideRows, WideColumns>(a, b, finish, y, m, n, k, groups);
}

// A block makes a tile of y = A B of a group, or a split of its sums; grid (tiles of columns x
// groups, tiles of rows, splits). A (m, k), B (k, n): `deep` where neighbours are along k; see
// Matrix and Stack. scale to rectified: see Finish, whose rows are those of all groups.
extern "C" __global__ void __launch_bounds__(High::THREADS, 2) multiply_tf32_high(
    const float *a, const float *b, const float *scale, const float *shift, const float *others,
    float *y, int rectified, int m, long long n, long long k, int groups, int a_deep,
    long long a_step, long long a_inner, long long a_outer, long long a_group, int b_deep,
    long long b_step, long long b_inner, long long b_outer, long long b_group, long long y_step,
    long long y_inner, long long y_outer, long long y_group, long long y_split)
{
    Stack left = {a, a_deep != 0, a_step, a_inner, a_outer, a_group};
    Stack right = {b, b_deep != 0, b_step, b_inner, b_outer, b_group};
    Results results = {y, y_step, y_inner, y_outer, y_group, y_split};
    Finish finish = {scale, shift, others, rectified != 0};
    multiply_matrices<High>(left, right, finish, results, m, n, k, groups);
}

extern "C" __global__ void __launch_bounds__(Low::THREADS, 4) multiply_tf32_low(
    const float *a, const float *b, const float *scale, const float *shift, const float *others,
    float *y, int rectified, int m, long long n, long long k, int groups, int a_deep,
    long long a_step, long long a_inner, long long a_outer, long long a_group, int b_deep,
    long long b_step, long long b_inner, long long b_outer, long long b_group, long long y_step,
    long long y_inner, long long y_outer, long long y_group, long long y_split)
{
    Stack left = {a, a_deep != 0, a_step, a_inner, a_outer, a_group};
    Stack right = {b, b_deep != 0, b_step, b_inner, b_outer, b_group};
    Results results = {y, y_step, y_inner, y_outer, y_group, y_split};
    Finish finish = {scale, shift, others, rectified != 0};
    multiply_matrices<Low>(left, right, finish, results, m, n, k, groups);
}

// The sum of all parts (splits, size), in order and in float64, finished. Rows of `length` values,
// `rows` of them before the first comes again.
extern "C" __global__ void finish_splits(
    const float *parts, const float *scale, const float *shift, const float *others, float *y,
    int rectified, int splits, int rows, int length, long long size)
{
    long long i = thread_number();
    if (i >= size)
        return;
    wide total = 0;
    for (int split = 0; split < splits; ++split)
        total += parts[split * size + i];
    int at, row;
    divide(divide(i, length, &at), rows, &row);
    Finish finish = {scale, shift, others, rectified != 0};
    float value[] = {(float)total};
    finish.apply<1, 1>(value, row, i, 0, 1);
    y[i] = value[0];
}
