// Fixed-width float vectors on GCC/Clang vector extensions.
//
// `vec` is as wide as the instruction set's registers (kLanes); `vec16` is always 16 logical lanes, so that a reduction
// written with it adds in the same order on every instruction set. Compiled once per set, inside pe::cpu::PE_ISA.
#pragma once

#include <cstdint>
#include <cstring>

#include "pyengine/dtype.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
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
#elif defined(__aarch64__)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// The same operation on one lane, bit for bit.
PE_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// Minus, not plus: x + 0 is not x where x is -0, so that an addition would be left before each broadcast.
PE_INLINE vec broadcast(float x) { return x - vec{}; }

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

#if defined(__AVX512F__)
// For the masked forms of intrinsics: GCC 12 warns about what the plain ones are made of.
constexpr __mmask16 kAllLanes = 0xffff;
#endif

// a > b ? a : b, so b where one is NaN: compilers do not find the instruction for vectors.
PE_INLINE vec max(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_max_ps(kAllLanes, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// a < b ? a : b, so b where one is NaN.
PE_INLINE vec min(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_min_ps(kAllLanes, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

// p * 2^n, n whole and in [-150, 128], p near 1; a denormal result is rounded once. Two factors,
// since 2^n alone may not be a float.
PE_INLINE vec scale_by_power(vec p, vec n) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_scalef_ps(kAllLanes, (__m512)p, (__m512)n);
#else
    const ivec k = __builtin_convertvector(n, ivec);
    const ivec half = k >> 1;
    return p * (vec)((half + 127) << 23) * (vec)((k - half + 127) << 23);
#endif
}

// e^x, at most 1 ulp off, denormal results too. Cody-Waite reduction to r in [-ln2/2, ln2/2], then
// 1 + r + r^2 P(r): what 1 + r loses is added back with the small term. e^0 is exactly 1.
PE_INLINE vec exp(vec x) {
    x = max(broadcast(-104.0f), min(broadcast(89.0f), x));
    const vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vec n = fma(x, broadcast(1.44269504088896341f), magic) - magic;
    vec r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.12194440e-4f), r);
    vec p = broadcast(1.378872082568705e-3f);
    p = fma(p, r, broadcast(8.368685841560364e-3f));
    p = fma(p, r, broadcast(4.166889935731888e-2f));
    p = fma(p, r, broadcast(1.666652113199234e-1f));
    p = fma(p, r, broadcast(4.9999991059303284e-1f));
    const vec s = 1.0f + r;
    const vec lost = (1.0f - s) + r;
    return scale_by_power(s + fma(r * r, p, lost), n);
}

// ln x, at most 1 ulp off. x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); then k ln2 + f + f^2
// P(f): what k ln2 + f loses is added back with the small terms. ln 0 is -inf, below 0 it is NaN,
// ln 1 is exactly 0.
PE_INLINE vec log(vec x) {
    const ivec tiny = x < broadcast(0x1.0p-126f);
    const uvec bits = (uvec)(tiny ? x * 0x1.0p23f : x);
    const uvec shifted = bits + (0x3f800000u - 0x3f3504f3u);  // 0x3f3504f3: sqrt(1/2)
    const ivec exponent = (ivec)(shifted >> 23) - 127 + (tiny & -23);
    const vec k = __builtin_convertvector(exponent, vec);
    const vec f = (vec)((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    vec p = broadcast(-0.07648979127407074f);
    p = fma(p, f, broadcast(0.12878599762916565f));
    p = fma(p, f, broadcast(-0.13218429684638977f));
    p = fma(p, f, broadcast(0.1418505609035492f));
    p = fma(p, f, broadcast(-0.16612623631954193f));
    p = fma(p, f, broadcast(0.20001843571662903f));
    p = fma(p, f, broadcast(-0.25001412630081177f));
    p = fma(p, f, broadcast(0.333333283662796f));
    p = fma(p, f, broadcast(-0.49999991059303284f));
    const vec k_ln2 = k * 0.693359375f;  // exact
    const vec s = k_ln2 + f;
    const vec lost = fma(k, broadcast(-2.12194440e-4f), (k_ln2 - s) + f);
    vec y = s + fma(f * f, p, lost);
    const vec inf = broadcast(__builtin_inff());
    y = x == inf ? inf : y;
    y = x == broadcast(0.0f) ? -inf : y;
    return x >= broadcast(0.0f) ? y : broadcast(__builtin_nanf(""));
}

// x / (1 + e^-z), z >= -150. Where e^-z could overflow, the divisor's two terms and the result are
// e^-64 as large.
PE_INLINE vec times_sigmoid(vec x, vec z) {
    const ivec far = z < broadcast(-64.0f);
    const vec unit = far ? broadcast(1.6038108905486378e-28f) : broadcast(1.0f);
    const vec e = exp((far ? broadcast(-64.0f) : broadcast(0.0f)) - z);
    return x / (unit + e) * unit;
}

// x / (1 + e^-x), at most 3 ulp off; -0 from about -108 down.
PE_INLINE vec silu(vec x) {
    x = max(broadcast(-150.0f), x);
    return times_sigmoid(x, x);
}

// x (1 + tanh u) / 2 = x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3): at most 3 ulp off for
// x >= 0, and 3 (1 + |2u|) ulp below, where e^-2u carries the rounding of u. -0 from about -11 down.
PE_INLINE vec gelu_tanh(vec x) {
    x = max(broadcast(-15.0f), x);
    const vec z = x * fma(x * x, broadcast(0.07135481627f), broadcast(1.5957691216f));
    return times_sigmoid(x, max(broadcast(-150.0f), z));
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

// The first n of 16 elements, in 16 floats; the rest are `fill`. A function of its own: rows end seldom, and what is inlined
// at every read of a row is compiled as often.
template <typename T>
[[gnu::noinline]] void copy_partial(const T* p, int64_t n, float fill, float* out) {
#pragma GCC unroll 1
    for (int i = 0; i < 16; ++i) out[i] = i < n ? to_float(p[i]) : fill;
}

template <typename T>
PE_INLINE vec16 load16_partial(const T* p, int64_t n, float fill) {
    alignas(64) float buffer[16];
    copy_partial(p, n, fill, buffer);
    return load16(buffer);
}

template <typename T>
PE_INLINE void store16(T* p, const vec16& v) {
    for (int i = 0; i < vec16::kParts; ++i) store(p + i * kLanes, v.part[i]);
}

template <typename T>
[[gnu::noinline]] void copy_back(const float* from, int64_t n, T* p) {
#pragma GCC unroll 1
    for (int i = 0; i < n; ++i) store_float(p + i, from[i]);
}

template <typename T>
PE_INLINE void store16_partial(T* p, const vec16& v, int64_t n) {
    alignas(64) float buffer[16];
    store16(buffer, v);
    copy_back(buffer, n, p);
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

PE_INLINE vec16 log(const vec16& a) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = log(a.part[i]);
    return r;
}

PE_INLINE vec16 silu(const vec16& a) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = silu(a.part[i]);
    return r;
}

PE_INLINE vec16 gelu_tanh(const vec16& a) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = gelu_tanh(a.part[i]);
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
