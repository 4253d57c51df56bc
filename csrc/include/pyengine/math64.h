// exp and log in f64 of the kernels, for CPU and CUDA: the same operations everywhere, nothing fused. `D` is a double or a
// vector of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "pyengine/dtype.h"

// Inlined: what several instruction sets and devices share has no symbol of its own.
#define PE_FORMULA [[gnu::always_inline]] PE_HOST_DEVICE inline

namespace pe {
namespace {  // internal linkage: see isa.h

template <typename To, typename From>
PE_FORMULA To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// The integers as wide as D: of one double, or of as many as a vector has.
template <typename D>
struct Int64Of {
    using type = decltype(D{} < D{});
};
template <>
struct Int64Of<double> {
    using type = int64_t;
};

// e^x in f64 for x <= 0, within 2e-16; 0 below -708.
template <typename D>
PE_FORMULA D exp64_of(D x) {
    using Bits = typename Int64Of<D>::type;
    const auto in_range = x >= -708.0;
    x = in_range ? x : D{} - 708.0;
    const D magic = D{} + 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const D shifted = x * 1.4426950408889634 + magic;
    const D n = shifted - magic;
    const D r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    D p = D{} + 1.0 / 6227020800.0;  // 1 / 13!
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
    const D power =
        bits_as<D>((bits_as<Bits>(shifted) - bits_as<Bits>(magic) + int64_t{1023}) << 52);
    return in_range ? p * power : D{};
}

// log x within 5e-16 of its size, for normal x > 0: x = m 2^e, log m = 2 atanh((m - 1) / (m + 1)) with m about 1.
PE_FORMULA double log64(double x) {
    constexpr int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
    int64_t bits = bits_as<int64_t>(x);
    const int64_t e = (bits - kSqrtHalf) >> 52;
    bits -= e << 52;
    const double m = bits_as<double>(bits);
    const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
    double p = 0.0;  // sum of s2^i / (2 i + 1)
    for (int i = 11; i >= 0; --i) p = p * s2 + 1.0 / (2 * i + 1);
    const auto n = static_cast<double>(e);
    return n * 6.93147180369123816490e-01 + (2.0 * s * p + n * 1.90821492927058770002e-10);
}

}  // namespace
}  // namespace pe
