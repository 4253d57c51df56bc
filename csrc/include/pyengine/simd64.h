// exp and log in f64: the same operations on every instruction set, nothing fused. Compiled once per instruction set.
#pragma once

#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {
namespace {

// A register of doubles, and the floats that widen to it.
inline constexpr int kDoubles = kLanes / 2;
typedef double dvec __attribute__((vector_size(8 * kDoubles)));
typedef int64_t lvec __attribute__((vector_size(8 * kDoubles)));
typedef float half_vec __attribute__((vector_size(4 * kDoubles)));

// e^x in f64 for x <= 0, within 2e-16; 0 below -708. The same operations on every instruction set: nothing is fused.
PE_INLINE dvec exp64(dvec x) {
    const lvec in_range = x >= -708.0;
    x = in_range ? x : dvec{} - 708.0;
    const dvec magic = dvec{} + 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const dvec shifted = x * 1.4426950408889634 + magic;
    const dvec n = shifted - magic;
    const dvec r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    dvec p = dvec{} + 1.0 / 6227020800.0;  // 1 / 13!
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    const dvec power = (dvec)(((lvec)shifted - (lvec)magic + 1023) << 52);
    return in_range ? p * power : dvec{};
}

// log x within 5e-16 of its size, for normal x > 0: x = m 2^e, log m = 2 atanh((m - 1) / (m + 1)) with m about 1.
inline double log64(double x) {
    constexpr int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int64_t e = (bits - kSqrtHalf) >> 52;
    bits -= e << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
    double p = 0.0;  // sum of s2^i / (2 i + 1)
    for (int i = 11; i >= 0; --i) p = p * s2 + 1.0 / (2 * i + 1);
    const auto n = static_cast<double>(e);
    return n * 6.93147180369123816490e-01 + (2.0 * s * p + n * 1.90821492927058770002e-10);
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
