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

__device__ inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

__device__ inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// e^x: exp of csrc/include/pyengine/simd.h, one lane of it.
__device__ inline float exp_f32(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const float shifted = fmaf(x, 1.44269504088896341f, magic);
    const float n = shifted - magic;
    float r = fmaf(n, -0.693359375f, x);
    r = fmaf(n, 2.12194440e-4f, r);
    float p = 1.378872082568705e-3f;
    p = fmaf(p, r, 8.368685841560364e-3f);
    p = fmaf(p, r, 4.166889935731888e-2f);
    p = fmaf(p, r, 1.666652113199234e-1f);
    p = fmaf(p, r, 4.9999991059303284e-1f);
    const float s = 1.0f + r;
    const float lost = (1.0f - s) + r;
    const int32_t k = static_cast<int32_t>(bits_of(shifted) - bits_of(magic));
    const int32_t half = k >> 1;
    const float a = float_of(static_cast<uint32_t>(half + 127) << 23);
    const float b = float_of(static_cast<uint32_t>(k - half + 127) << 23);
    return (s + fmaf(r * r, p, lost)) * a * b;
}

// ln x: log of csrc/include/pyengine/simd.h, one lane of it.
__device__ inline float log_f32(float x) {
    const bool tiny = x < 0x1.0p-126f;
    const uint32_t bits = bits_of(tiny ? x * 0x1.0p23f : x);
    const uint32_t shifted = bits + (0x3f800000u - 0x3f3504f3u);  // 0x3f3504f3: sqrt(1/2)
    const int32_t exponent = static_cast<int32_t>(shifted >> 23) - 127 - (tiny ? 23 : 0);
    const float k = static_cast<float>(exponent);
    const float f = float_of((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    float p = -0.07648979127407074f;
    p = fmaf(p, f, 0.12878599762916565f);
    p = fmaf(p, f, -0.13218429684638977f);
    p = fmaf(p, f, 0.1418505609035492f);
    p = fmaf(p, f, -0.16612623631954193f);
    p = fmaf(p, f, 0.20001843571662903f);
    p = fmaf(p, f, -0.25001412630081177f);
    p = fmaf(p, f, 0.333333283662796f);
    p = fmaf(p, f, -0.49999991059303284f);
    const float k_ln2 = k * 0.693359375f;  // exact
    const float s = k_ln2 + f;
    const float lost = fmaf(k, -2.12194440e-4f, (k_ln2 - s) + f);
    if (x == infinity()) return x;
    if (x == 0.0f) return -infinity();
    return x >= 0.0f ? s + fmaf(f * f, p, lost) : infinity() - infinity();
}

// x / (1 + e^-z), z >= -150: times_sigmoid of simd.h, one lane of it.
__device__ inline float times_sigmoid(float x, float z) {
    const bool far = z < -64.0f;
    const float unit = far ? 1.6038108905486378e-28f : 1.0f;
    const float e = exp_f32((far ? -64.0f : 0.0f) - z);
    return x / (unit + e) * unit;
}

__device__ inline float silu_f32(float x) {
    x = max_of(-150.0f, x);
    return times_sigmoid(x, x);
}

__device__ inline float gelu_tanh_f32(float x) {
    x = max_of(-15.0f, x);
    const float z = x * fmaf(x * x, 0.07135481627f, 1.5957691216f);
    return times_sigmoid(x, max_of(-150.0f, z));
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
