// The product of two matrices; the definition stands in kernels/reference/matmul.py.

#include "product.cuh"

// y (M, N), from a (M, K) and b (K, N) with any strides, in elements. A block a tile of y; rows,
// of which there may be the more, go along the grid's longer axis.
extern "C" __global__ void matmul(
    const real *a, const real *b, real *y, int rows, int depth, int columns, long long a_row,
    long long a_column, long long b_row, long long b_column)
{
    int row = blockIdx.x * TILE, column = blockIdx.y * TILE;
    Strided left(a, depth, a_column, row, rows, a_row);
    Strided right(b, depth, b_row, column, columns, b_column);
    real sums[MICRO][MICRO];
    multiply(left, right, depth, sums);
    for (int i = 0; i < MICRO; ++i)
        for (int j = 0; j < MICRO; ++j) {
            long long m = row + micro_row() + i, n = column + micro_column() + j;
            if (m < rows && n < columns)
                y[m * columns + n] = sums[i][j];
        }
}
