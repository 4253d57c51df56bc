// Fixed-width float vectors on GCC/Clang vector extensions.
//
// `vec` is as wide as the instruction set's registers (kLanes); `vec16` is always 16 logical lanes, so that a reduction
// written with it adds in the same order on every instruction set. Compiled once per set, inside pe::cpu::PE_ISA.
#pragma once

#include <cstdint>
#include <cstring>

#include "pyengine/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef PE_ISA
#error "PE_ISA names the namespace of the instruction set being compiled"
#endif

#define PE_INLINE [[gnu::always_inline]] inline

namespace pe::cpu::PE_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t uvec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t hvec __attribute__((vector_size(2 * kLanes)));

namespace {

// a * b + c, one rounding where the instruction set has FMA.
PE_INLINE vec fma(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// The same operation on one lane, bit for bit.
PE_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

PE_INLINE vec broadcast(float x) { return vec{} + x; }

PE_INLINE vec load(const float* p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

PE_INLINE vec load(const bf16* p) {
    hvec h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}

PE_INLINE void store(float* p, vec v) { memcpy(p, &v, sizeof v); }

// Round to nearest even, NaN stays NaN: the vector form of to_bf16.
PE_INLINE void store(bf16* p, vec v) {
    const uvec bits = (uvec)v;
    const uvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uvec nan = (bits >> 16) | 0x40u;
    const uvec is_nan = (uvec)((bits & 0x7fffffffu) > 0x7f800000u);
    const hvec h = __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), hvec);
    memcpy(p, &h, sizeof h);
}

PE_INLINE vec max(vec a, vec b) { return a > b ? a : b; }

// e^x: Cody-Waite reduction to [-ln2/2, ln2/2], a polynomial of degree 6, scaling in two steps so that denormal results
// and overflow come out right. NaN stays NaN.
PE_INLINE vec exp(vec x) {
    x = x > broadcast(89.0f) ? broadcast(89.0f) : x;
    x = x < broadcast(-104.0f) ? broadcast(-104.0f) : x;
    const vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vec n = fma(x, broadcast(1.44269504088896341f), magic) - magic;
    vec r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.12194440e-4f), r);
    vec p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p * r, r, r) + 1.0f;
    const ivec k = __builtin_convertvector(n, ivec);
    const ivec half = k >> 1;
    const vec a = (vec)((half + 127) << 23);
    const vec b = (vec)((k - half + 127) << 23);
    return p * a * b;
}

// Sixteen logical lanes, whatever the register width.
struct vec16 {
    static constexpr int kParts = 16 / kLanes;
    vec part[kParts];
};

template <typename T>
PE_INLINE vec16 load16(const T* p) {
    vec16 v;
    for (int i = 0; i < vec16::kParts; ++i) v.part[i] = load(p + i * kLanes);
    return v;
}

// The first n of 16 elements; the rest are `fill`.
template <typename T>
PE_INLINE vec16 load16_partial(const T* p, int64_t n, float fill) {
    alignas(64) float buffer[16];
    for (int i = 0; i < 16; ++i) buffer[i] = i < n ? to_float(p[i]) : fill;
    return load16(buffer);
}

template <typename T>
PE_INLINE void store16(T* p, const vec16& v) {
    for (int i = 0; i < vec16::kParts; ++i) store(p + i * kLanes, v.part[i]);
}

template <typename T>
PE_INLINE void store16_partial(T* p, const vec16& v, int64_t n) {
    alignas(64) float buffer[16];
    store16(buffer, v);
    for (int i = 0; i < n; ++i) store_float(p + i, buffer[i]);
}

PE_INLINE vec16 broadcast16(float x) {
    vec16 v;
    for (int i = 0; i < vec16::kParts; ++i) v.part[i] = broadcast(x);
    return v;
}

PE_INLINE vec16 fma(const vec16& a, const vec16& b, const vec16& c) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = fma(a.part[i], b.part[i], c.part[i]);
    return r;
}

PE_INLINE vec16 operator+(const vec16& a, const vec16& b) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = a.part[i] + b.part[i];
    return r;
}

PE_INLINE vec16 operator-(const vec16& a, const vec16& b) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = a.part[i] - b.part[i];
    return r;
}

PE_INLINE vec16 operator*(const vec16& a, const vec16& b) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = a.part[i] * b.part[i];
    return r;
}

PE_INLINE vec16 max(const vec16& a, const vec16& b) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = max(a.part[i], b.part[i]);
    return r;
}

PE_INLINE vec16 exp(const vec16& a) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = exp(a.part[i]);
    return r;
}

// Folds halves onto each other: lane i with i+8, then i+4, i+2, i+1. One order on every instruction set.
PE_INLINE float sum(const vec16& v) {
    alignas(64) float x[16];
    store16(x, v);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) x[i] += x[i + width];
    }
    return x[0];
}

PE_INLINE float max(const vec16& v) {
    alignas(64) float x[16];
    store16(x, v);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
    }
    return x[0];
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
