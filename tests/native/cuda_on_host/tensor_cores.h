// The instructions of cuda/common/mma.cuh, on the host. Included by cuda_runtime.h.
#pragma once

#include <cstdint>

#define PE_CUDA_ON_HOST

namespace cuda_on_host {

// c += a . b of one warp: the products are exact, and each sum of 16 and c is rounded once.
void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// Refuses a row that is not on 16 bytes or not in shared memory.
void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed);

// The bytes come as late as they may: when the thread waits for their group. Until then NaN lies there. Refuses what is not on
// `bytes`, and a thread that ends before its copies.
void cp_async(void* shared, const void* global, int bytes, int present_bytes);
void cp_async_commit();
void cp_async_wait(int newest);

}  // namespace cuda_on_host
