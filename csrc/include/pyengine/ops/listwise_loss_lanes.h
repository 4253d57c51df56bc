// What listwise_loss computes on vectors of doubles, and the order of a group. Compiled once per instruction set, inside
// pe::cpu::PE_ISA.
#pragma once

#include "pyengine/simd64.h"

namespace pe::cpu::PE_ISA {
namespace {

PE_INLINE dvec all(double x) { return dvec{} + x; }

// e^x for x up to 700; NaN stays NaN.
PE_INLINE dvec exp_of(dvec x) { return exp64(x) + (x - x); }

// 2 atanh(s) for |s| <= 0.1716
PE_INLINE dvec twice_atanh(dvec s) {
    const dvec s2 = s * s;
    dvec p = {};
    for (int i = 11; i >= 0; --i) p = p * s2 + 1.0 / (2 * i + 1);
    return 2.0 * s * p;
}

// log x for normal x > 0, as log64; NaN stays NaN.
PE_INLINE dvec log_of(dvec x) {
    const lvec e = ((lvec)x - 0x3fe6a09e667f3bcd) >> 52;
    const dvec m = (dvec)((lvec)x - (e << 52));
    const dvec n = __builtin_convertvector(e, dvec);
    return n * 6.93147180369123816490e-01 +
           (twice_atanh((m - 1.0) / (m + 1.0)) + n * 1.90821492927058770002e-10) + (x - x);
}

// log(1 + u) for u in [0, 1]
PE_INLINE dvec log1p_of(dvec u) {
    const lvec large = u > all(0.41421356237309503);  // then of (1 + u) / 2
    const dvec s = (large ? u - 1.0 : u) / (large ? u + 3.0 : u + 2.0);
    return twice_atanh(s) + (large ? all(0.69314718055994531) : dvec{});
}

struct Softplus {
    dvec value, minus_slope;
};

// log(1 + e^-x) and 1 / (1 + e^x); NaN stays NaN.
PE_INLINE Softplus softplus_minus(dvec x) {
    const lvec negative = x < all(0.0);
    const dvec u = exp_of(negative ? x : -x);
    return {(negative ? -x : dvec{}) + log1p_of(u), (negative ? all(1.0) : u) / (1.0 + u)};
}

PE_INLINE dvec load(const double* p) {
    dvec x;
    memcpy(&x, p, sizeof x);
    return x;
}

PE_INLINE void store(double* p, dvec x) { memcpy(p, &x, sizeof x); }

// out = f(in) of n elements and of those up to a whole vector, which are there.
template <typename F>
PE_INLINE void flat(const double* in, double* out, int64_t n, const F& f) {
    for (int64_t i = 0; i < n; i += kDoubles) store(out + i, f(load(in + i)));
}

// Whether i stands before j: larger first, NaN before all, ties by index.
PE_INLINE bool precedes(const double* v, int64_t i, int64_t j) {
    const bool odd = v[i] != v[i], other = v[j] != v[j];
    if (odd || other) return odd && (!other || i < j);
    return v[i] > v[j] || (v[i] == v[j] && i < j);
}

// Lets order[at] down to its place in the heap of n whose root stands last.
inline void sift(const double* v, int64_t* order, int64_t at, int64_t n) {
    const int64_t moved = order[at];
    for (int64_t child = 2 * at + 1; child < n; at = child, child = 2 * at + 1) {
        if (child + 1 < n && precedes(v, order[child], order[child + 1])) ++child;
        if (!precedes(v, moved, order[child])) break;
        order[at] = order[child];
    }
    order[at] = moved;
}

// order[0 ... n) = begin ... begin + n by `precedes`, in place and without memory of its own.
inline void sort(const double* v, int64_t begin, int64_t n, int64_t* order) {
    constexpr int64_t kShort = 24;
    if (n <= kShort) {  // counts who stands before whom: no branch on the values
        int64_t rank[kShort] = {};
        const double* of = v + begin;
        for (int64_t j = 1; j < n; ++j) {
            int64_t before = 0;
            for (int64_t i = 0; i < j; ++i) {
                const int64_t first = (of[i] >= of[j]) | (of[i] != of[i]);
                before += first, rank[i] += 1 - first;
            }
            rank[j] += before;
        }
        for (int64_t k = 0; k < n; ++k) order[rank[k]] = begin + k;
        return;
    }
    for (int64_t k = 0; k < n; ++k) order[k] = begin + k;
    for (int64_t at = n / 2; at-- > 0;) sift(v, order, at, n);
    for (int64_t size = n - 1; size > 0; --size) {
        const int64_t last = order[0];
        order[0] = order[size], order[size] = last;
        sift(v, order, 0, size);
    }
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
