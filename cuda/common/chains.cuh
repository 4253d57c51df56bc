// Sums in f64 whose order is that of the CPU: element n of a segment goes on with chain n mod 8, and the eight chains are
// joined in one order. A chain is a thread's; eight neighbouring threads have a segment.
#pragma once

#include "common/math.cuh"

namespace pe::cuda {
namespace {

constexpr int kChains = 8;

// Every thread of the eight gets the total: chain i with i + 4, then i + 2, i + 1. All lanes of the warp call it.
__device__ inline double join_chains(double x) {
    for (int width = kChains / 2; width > 0; width /= 2)
        x = x + __shfl_xor_sync(kAllLanes, x, width);
    return x;
}

__device__ inline int chain() { return static_cast<int>(threadIdx.x) % kChains; }

}  // namespace
}  // namespace pe::cuda
