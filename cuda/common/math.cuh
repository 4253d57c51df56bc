// Device arithmetic that gives the CPU's bits: the same operations in the same order. The build
// turns nvcc's own contraction off (-fmad=false), so a multiply-add is fused where the source says
// fmaf and nowhere else.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "pyengine/dtype.h"

namespace pe::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float infinity() { return to_float(bf16{0x7f80}); }

// Keeps b when a is NaN, as the CPU's does; the sum that follows brings the NaN back.
__device__ inline float max_of(float a, float b) { return a > b ? a : b; }

// e^x: the reduction and polynomial of exp in csrc/include/pyengine/simd.h, one lane of it.
__device__ inline float exp_f32(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float magic =
        12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    const float shifted = fmaf(x, 1.44269504088896341f, magic);
    const float n = shifted - magic;
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p * r, r, r) + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    const int32_t k = static_cast<int32_t>(bits - 0x4b400000u);  // 0x4b400000: magic's bits
    const int32_t half = k >> 1;
    const uint32_t a_bits = static_cast<uint32_t>(half + 127) << 23;
    const uint32_t b_bits = static_cast<uint32_t>(k - half + 127) << 23;
    float a, b;
    memcpy(&a, &a_bits, sizeof a);
    memcpy(&b, &b_bits, sizeof b);
    return p * a * b;
}

// Each group of 16 lanes gets its own total, in the order of the CPU's sum(vec16): lane i with i+8,
// then i+4, i+2, i+1.
__device__ inline float fold16(float x) {
    for (int width = 8; width > 0; width /= 2) x = x + __shfl_xor_sync(kAllLanes, x, width);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int width = 16; width > 0; width /= 2) x = max_of(x, __shfl_xor_sync(kAllLanes, x, width));
    return x;
}

}  // namespace
}  // namespace pe::cuda
