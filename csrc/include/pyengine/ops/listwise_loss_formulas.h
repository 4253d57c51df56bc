// What listwise_loss computes of one place or of a vector of them, and the order of a group, for CPU and CUDA: the same
// operations everywhere, nothing fused. `D` is a double or a vector of them.
#pragma once

#include "pyengine/math64.h"

namespace pe {
namespace {  // internal linkage: see isa.h

// e^x for x up to 700; NaN stays NaN.
template <typename D>
PE_FORMULA D exp_of(D x) {
    return exp64_of(x) + (x - x);
}

// 2 atanh(s) for |s| <= 0.1716
template <typename D>
PE_FORMULA D twice_atanh(D s) {
    const D s2 = s * s;
    D p = D{};
    for (int i = 11; i >= 0; --i) p = p * s2 + 1.0 / (2 * i + 1);
    return 2.0 * s * p;
}

// log x for normal x > 0, as log64; NaN stays NaN.
template <typename D>
PE_FORMULA D log_of(D x) {
    using Bits = typename Int64Of<D>::type;
    const Bits e = (bits_as<Bits>(x) - int64_t{0x3fe6a09e667f3bcd}) >> 52;
    const D m = bits_as<D>(bits_as<Bits>(x) - (e << 52));
    const D magic = D{} + 6755399441055744.0;  // 1.5 * 2^52: its low bits are an integer
    const D n = bits_as<D>(bits_as<Bits>(magic) + e) - magic;
    return n * 6.93147180369123816490e-01 +
           (twice_atanh((m - 1.0) / (m + 1.0)) + n * 1.90821492927058770002e-10) + (x - x);
}

// log(1 + u) for u in [0, 1]
template <typename D>
PE_FORMULA D log1p_of(D u) {
    const auto large = u > D{} + 0.41421356237309503;  // then of (1 + u) / 2
    const D s = (large ? u - 1.0 : u) / (large ? u + 3.0 : u + 2.0);
    return twice_atanh(s) + (large ? D{} + 0.69314718055994531 : D{});
}

template <typename D>
struct Softplus {
    D value, minus_slope;
};

// log(1 + e^-x) and 1 / (1 + e^x); NaN stays NaN.
template <typename D>
PE_FORMULA Softplus<D> softplus_minus(D x) {
    const auto negative = x < D{};
    const D u = exp_of(negative ? x : -x);
    return {(negative ? -x : D{}) + log1p_of(u), (negative ? D{} + 1.0 : u) / (1.0 + u)};
}

// 2^x, exponents cut at -1000 and 1000
template <typename D>
PE_FORMULA D gain_of(D x) {
    const D most = D{} + 1000.0, least = D{} - 1000.0;
    x = x > most ? most : x;
    x = x < least ? least : x;
    return exp_of(x * 0.69314718055994531);
}

// Of the rank-th from 0.
PE_FORMULA double discount_of(int64_t rank) { return 1.0 / log64(static_cast<double>(rank + 2)); }

PE_FORMULA double distance(double a, double b) { return __builtin_fabs(a - b); }

// Whether i stands before j: larger first, NaN before all, ties by index.
PE_FORMULA bool precedes(const double* v, int64_t i, int64_t j) {
    const bool odd = v[i] != v[i], other = v[j] != v[j];
    if (odd || other) return odd && (!other || i < j);
    return v[i] > v[j] || (v[i] == v[j] && i < j);
}

}  // namespace
}  // namespace pe
