// Several arrays in one launch: a table of them that a kernel takes by value (runtime.Table).
//
// So nothing is copied to the GPU before the launch, and a launch that a CUDA graph has captured
// keeps its table. Types of tables end before the 4096 bytes that all parameters of a kernel may
// have.

#pragma once

#include "common.cuh"

// A row has COLUMNS arrays of one size, null where there is none, and blocks for itself.
template <int COLUMNS, int ROWS>
struct Table {
    real *arrays[COLUMNS][ROWS];
    long long sizes[ROWS];
    int ends[ROWS];  // how many blocks there are up to the end of a row

    // The row of this block: the first that ends behind it.
    __device__ int row() const
    {
        int low = 0, high = ROWS - 1;
        while (low < high) {
            int middle = (low + high) / 2;
            if (ends[middle] > (int)blockIdx.x)
                high = middle;
            else
                low = middle + 1;
        }
        return low;
    }

    // The block's number in its row.
    __device__ int block(int row) const { return blockIdx.x - (row ? ends[row - 1] : 0); }
};
