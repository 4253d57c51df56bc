// Vectors of listwise_loss's places, and the sort of a group. Compiled once per instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include "pyengine/ops/listwise_loss_formulas.h"
#include "pyengine/simd64.h"

namespace pe::cpu::PE_ISA {
namespace {

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
