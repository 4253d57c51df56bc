// Walking a row sixteen columns at a time. Compiled once per instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {
namespace {

// Calls f(offset, count) for each 16 columns; only the last count may be below 16.
template <typename F>
PE_INLINE void for_each_16(int64_t D, const F& f) {
    int64_t d = 0;
    for (; d + 16 <= D; d += 16) f(d, int64_t{16});
    if (d < D) f(d, D - d);
}

// n of 16 columns; the lanes past them are `fill`.
template <typename T>
PE_INLINE vec16 read(const T* p, int64_t n, float fill = 0.0f) {
    return n == 16 ? load16(p) : load16_partial(p, n, fill);
}

template <typename T>
PE_INLINE void write(T* p, const vec16& v, int64_t n) {
    if (n == 16) {
        store16(p, v);
    } else {
        store16_partial(p, v, n);
    }
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
