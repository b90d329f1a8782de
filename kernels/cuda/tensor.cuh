// Instructions that C++ has no names for, of GPUs from sm_80 on: products on tensor cores, and
// copies to shared memory that run beside everything else. The tests' emulator gives the same names
// meaning.

#pragma once

#include "common.cuh"

#if defined(__CUDACC__)
#if __CUDA_ARCH__ >= 800
#define PTX(...) asm(__VA_ARGS__)
#define ORDERED_PTX(...) asm volatile(__VA_ARGS__)
#else  // the launchers ask older GPUs for none of these
#define PTX(...) __trap()
#define ORDERED_PTX(...) __trap()
#endif

// `value`, which the compiler is to keep in a register: what it could compute again from the number
// of the thread, it would rather compute again each time.
__device__ inline int kept(int value)
{
    ORDERED_PTX("" : "+r"(value));
    return value;
}

// The TF32 number nearest to x: 8 bits of exponent, 10 of mantissa. Halves round away from zero.
__device__ inline unsigned to_tf32(float x)
{
    unsigned bits = 0;
    PTX("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// sums += a b, by a full warp. Of a (16 x 8), b (8 x 8) and sums (16 x 8) a thread has, with row
// r = lane / 4 and column c = lane % 4: a[r, c], a[r + 8, c], a[r, c + 4], a[r + 8, c + 4];
// b[c, r], b[c + 4, r]; sums[r, 2 c], sums[r, 2 c + 1], sums[r + 8, 2 c], sums[r + 8, 2 c + 1].
__device__ inline void multiply_tf32(
    float (&sums)[4], const unsigned (&a)[4], const unsigned *b)
{
    PTX("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Of four matrices of 8 x 4 floats in shared memory the element [lane / 4, lane % 4], by a full warp.
// Lane i says where row i % 8 of matrix i / 8 lies: 16 bytes, on a multiple of 16.
__device__ inline void load_matrices(unsigned (&elements)[4], const float *row)
{
    unsigned source = (unsigned)__cvta_generic_to_shared(row);
    ORDERED_PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                : "=r"(elements[0]), "=r"(elements[1]), "=r"(elements[2]), "=r"(elements[3])
                : "r"(source));
}

// Start copying COUNT floats, 1 or 4 that lie on a multiple of their size, from global memory to
// shared memory; zeros instead of them unless `wanted`. AGAIN: they will be, by this block.
template <int COUNT, bool AGAIN = false>
__device__ inline void copy_later(float *shared, const float *global, bool wanted)
{
    unsigned target = (unsigned)__cvta_generic_to_shared(shared);
    int bytes = wanted ? 4 * COUNT : 0;
    if (COUNT == 4 && AGAIN)
        ORDERED_PTX("cp.async.ca.shared.global [%0], [%1], 16, %2;"
                    :: "r"(target), "l"(global), "r"(bytes));
    else if (COUNT == 4)
        ORDERED_PTX("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                    :: "r"(target), "l"(global), "r"(bytes));
    else
        ORDERED_PTX("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                    :: "r"(target), "l"(global), "r"(bytes));
}

// The copies started since the last call are a group.
__device__ inline void close_copies()
{
    ORDERED_PTX("cp.async.commit_group;" ::);
}

// Wait until of this thread's groups of copies only the last OPEN may still run.
template <int OPEN>
__device__ inline void wait_for_copies()
{
    ORDERED_PTX("cp.async.wait_group %0;" :: "n"(OPEN) : "memory");
}
#endif
