// Vectors of doubles: the same operations on every instruction set, nothing fused. Compiled once per instruction set.
#pragma once

#include "pyengine/math64.h"
#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {
namespace {

// A register of doubles, and the floats that widen to it.
inline constexpr int kDoubles = kLanes / 2;
typedef double dvec __attribute__((vector_size(8 * kDoubles)));
typedef int64_t lvec __attribute__((vector_size(8 * kDoubles)));
typedef float half_vec __attribute__((vector_size(4 * kDoubles)));

PE_INLINE dvec exp64(dvec x) { return exp64_of(x); }

}  // namespace
}  // namespace pe::cpu::PE_ISA
