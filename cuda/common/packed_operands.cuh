// Packed f32 matrices as operands of gemm_tile.cuh's products.
#pragma once

#include "pyengine/packed.h"

namespace pe::cuda {
namespace {

__device__ inline float packed_value(const float* data, int64_t K, int64_t n, int64_t k) {
    return data[(n / kPanel * K + k) * kPanel + n % kPanel];
}

// A packed f32 matrix (N, K), seen as (k, output).
struct PackedOutputs {
    static constexpr bool kInner = false;
    const float* data;
    int64_t K, count;

    __device__ float at(int64_t n, int64_t k) const { return packed_value(data, K, n, k); }
};

// The same as (output, k): what the gradient of x is multiplied by.
struct PackedDepths {
    static constexpr bool kInner = true;
    const float* data;
    int64_t K, count;

    __device__ float at(int64_t k, int64_t n) const { return packed_value(data, K, n, k); }
};

}  // namespace
}  // namespace pe::cuda
