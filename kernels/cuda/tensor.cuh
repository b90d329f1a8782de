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
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_PTX(...) asm volatile(__VA_ARGS__)
#else  // only Hopper has them
#define HOPPER_PTX(...) __trap()
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

// Of four matrices of 8 x 4 floats in shared memory the element [lane / 4, lane % 4], by a full
// warp. Lane i says where row i % 8 of matrix i / 8 lies: 16 bytes, on a multiple of 16.
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

// ---- products of groups of four warps, which Hopper alone has (sm_90a). They run beside
// everything else and read both operands from shared memory.

// What this thread copied to shared memory, and has waited for, can be read by such products: once
// all threads of the block have come to a barrier after this.
__device__ inline void show_copies()
{
    HOPPER_PTX("fence.proxy.async.shared::cta;" ::);
}

// Products that are started after this use the sums as they are now.
__device__ inline void open_products()
{
    HOPPER_PTX("wgmma.fence.sync.aligned;" ::: "memory");
}

// Where a matrix begins whose rows of 32 floats lie side by side, on a multiple of 1024 bytes, quad
// q of row r in place of quad q ^ r % 8. At most 24 floats into a row.
__device__ inline unsigned long long describe(const float *matrix)
{
    const unsigned long long EIGHT_ROWS = 1024, SWIZZLED = 1;  // quads by the 128 bytes of a row
    unsigned address = (unsigned)__cvta_generic_to_shared(matrix);
    return (address & 0x3FFFF) >> 4 | 1ull << 16 | (EIGHT_ROWS >> 4) << 32 | SWIZZLED << 62;
}

#define FOUR(j) "+f"(sums[j][0]), "+f"(sums[j][1]), "+f"(sums[j][2]), "+f"(sums[j][3])
#define ALL_SUMS \
    FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5), FOUR(6), FOUR(7), FOUR(8), FOUR(9), \
        FOUR(10), FOUR(11), FOUR(12), FOUR(13), FOUR(14), FOUR(15)

// Start sums += a b, by a group of four warps: a has 64 rows, of which each warp has the sums of
// 16; b is 8 x 128, and lies turned, in 128 rows. Part j of the sums is that of columns 8 j to
// 8 j + 7, as multiply_tf32 has them.
__device__ inline void start_product(float (&sums)[16][4], const float *a, const float *b)
{
    HOPPER_PTX(
        "{.reg .pred yes;"
        "setp.eq.u32 yes, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, yes, 1, 1;}"
        : ALL_SUMS
        : "l"(describe(a)), "l"(describe(b)));
}

// The products started since the last call are a group.
__device__ inline void close_products()
{
    HOPPER_PTX("wgmma.commit_group.sync.aligned;" ::);
}

// Wait for all groups of products; before that nothing may touch the sums.
__device__ inline void wait_for_products(float (&sums)[16][4])
{
    HOPPER_PTX("wgmma.wait_group.sync.aligned 0;" : ALL_SUMS :: "memory");
}
#endif
