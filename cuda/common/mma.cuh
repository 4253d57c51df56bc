// The tensor cores' bf16 product of a warp, and what brings its operands: one small function an
// instruction, each with a twin in tests/native/cuda_on_host that does on the host what the PTX
// manual says of it. Kernels that use these functions, and no instruction beside them, run whole on
// a CPU.
//
// Fragments of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type").
// With g = lane / 4 and q = lane % 4, a lane holds, two bf16 a register with the lower index in the
// lower half:
//   A (16 x 16)  a[0] (g, 2q..)  a[1] (g + 8, 2q..)  a[2] (g, 2q + 8..)  a[3] (g + 8, 2q + 8..)
//   B (16 x 8)   b[0] (2q.., g)  b[1] (2q + 8.., g)
//   C (16 x 8)   c[0] (g, 2q)    c[1] (g, 2q + 1)    c[2] (g + 8, 2q)    c[3] (g + 8, 2q + 1)
//
// A step adds its 16 products to c at once. In which order and with how many bits a tensor core does
// so is its own affair, but not where in a tile a row or column stands, nor what stands beside it:
// an output that walks K in steps of 16 from one accumulator has the same bits in every kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pyengine/dtype.h"

namespace pe::cuda {
namespace {

constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaDepth = 16;

struct FragmentA {
    uint32_t a[4];
};

struct FragmentB {
    uint32_t b[2];
};

struct FragmentC {
    float c[4];
};

// Row and column, within its tile, of c[i] of a lane.
__device__ inline int mma_row(int lane, int i) { return lane / 4 + (i / 2) * 8; }
__device__ inline int mma_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

#if defined(PE_CUDA_ON_HOST)

inline uint32_t pair_of_bf16(float low, float high) {
    return to_bf16(low).bits | uint32_t{to_bf16(high).bits} << 16;
}

inline void mma_bf16(FragmentC& c, const FragmentA& a, const FragmentB& b) {
    cuda_on_host::mma_m16n8k16_bf16(c.c, a.a, b.b);
}

inline void load_matrices(uint32_t (&r)[4], const void* row) {
    cuda_on_host::ldmatrix_x4(r, row, false);
}

inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    cuda_on_host::ldmatrix_x4(r, row, true);
}

inline void copy_async_16(void* shared, const void* global, bool present) {
    cuda_on_host::cp_async(shared, global, 16, present ? 16 : 0);
}

inline void commit_copies() { cuda_on_host::cp_async_commit(); }

template <int NEWEST>
inline void wait_for_copies() {
    cuda_on_host::cp_async_wait(NEWEST);
}

#else

// Both rounded to nearest even, the first in the lower half.
__device__ inline uint32_t pair_of_bf16(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// c += a . b
__device__ inline void mma_bf16(FragmentC& c, const FragmentA& a, const FragmentB& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.c[0]), "+f"(c.c[1]), "+f"(c.c[2]), "+f"(c.c[3])
        : "r"(a.a[0]), "r"(a.a[1]), "r"(a.a[2]), "r"(a.a[3]), "r"(b.b[0]), "r"(b.b[1]));
}

__device__ inline uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices of bf16 in shared memory. Lane l gives the start of row l % 8 of matrix l / 8: 16 bytes, on 16. A lane
// gets of matrix i, in r[i], the elements (lane / 4, 2 (lane % 4)) and the one after it.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Of each matrix its transpose.
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Begins to copy 16 bytes, both places on 16; zeros where not present, and then `global` is not read.
__device__ inline void copy_async_16(void* shared, const void* global, bool present) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(present ? 16 : 0)
                 : "memory");
}

// Ends a group of this thread's copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of this thread's groups have arrived but for the NEWEST; other threads see them after a barrier.
template <int NEWEST>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
}

#endif

// Of two results next to each other the left operand of a further product, rounded: a lane's elements are where they have to be.
__device__ inline FragmentA left_of(const FragmentC& low, const FragmentC& high) {
    return {{pair_of_bf16(low.c[0], low.c[1]), pair_of_bf16(low.c[2], low.c[3]),
             pair_of_bf16(high.c[0], high.c[1]), pair_of_bf16(high.c[2], high.c[3])}};
}

}  // namespace
}  // namespace pe::cuda
