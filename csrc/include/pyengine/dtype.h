// Element types that cross the kernel boundary, and bf16 <-> f32 for one value.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PE_HOST_DEVICE __host__ __device__
#else
#define PE_HOST_DEVICE
#endif

namespace pe {

enum class DType : int { kF32, kBF16, kF64, kI32, kI64, kU8 };

constexpr int64_t dtype_bytes(DType dtype) {
    switch (dtype) {
        case DType::kF32: return 4;
        case DType::kBF16: return 2;
        case DType::kI32: return 4;
        case DType::kU8: return 1;
        case DType::kF64:
        case DType::kI64: return 8;
    }
    return 0;
}

// Storage only; arithmetic is in float.
struct bf16 {
    uint16_t bits;
};

namespace {  // internal linkage: a copy for each instruction set, never merged by the linker

PE_HOST_DEVICE inline float to_float(float x) { return x; }

PE_HOST_DEVICE inline float to_float(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

// Round to nearest even; NaN stays NaN (quiet).
PE_HOST_DEVICE inline bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return {static_cast<uint16_t>(bits >> 16)};
}

PE_HOST_DEVICE inline void store_float(float* p, float x) { *p = x; }
PE_HOST_DEVICE inline void store_float(bf16* p, float x) { *p = to_bf16(x); }

// Calls f with a typed null pointer for each floating dtype that kernels read and write.
template <typename F>
inline void dispatch_dtype(DType dtype, F&& f) {
    if (dtype == DType::kBF16) {
        f(static_cast<bf16*>(nullptr));
    } else {
        f(static_cast<float*>(nullptr));
    }
}

}  // namespace
}  // namespace pe
