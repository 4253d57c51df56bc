// Layout  forward: 8 threads a segment, thread i takes its elements i, i+8, ...: the CPU's 8 chains, joined in its order, so
//         both devices give the same bits, and a sum does not depend on the segments beside it. A step reads 32 contiguous
//         bytes a segment.
//         backward: a thread an element, whatever the segments' lengths; it finds its segment by bisection. No sums.
#include "pyengine/ops/segment_sum.h"

#include "common/chains.cuh"
#include "common/launch.cuh"

namespace pe::cuda {
namespace {

constexpr int kSumThreads = 64;  // few: segments are, too, and each block may have a multiprocessor
constexpr int kSegmentsPerBlock = kSumThreads / kChains;
constexpr int kSpreadThreads = 256;

template <bool WEIGHTED>
__global__ void __launch_bounds__(kSumThreads) segment_sum_kernel(SegmentSumArgs a) {
    const int64_t S = a.sums.size;
    const int64_t s = static_cast<int64_t>(blockIdx.x) * kSegmentsPerBlock + threadIdx.x / kChains;
    const bool present = s < S;  // absent segments stay for the join
    const int64_t* starts = ptr<int64_t>(a.cu_seqlens);
    const int64_t begin = present ? starts[s] : 0, end = present ? starts[s + 1] : 0;
    const float *x = ptr<float>(a.values), *w = ptr<float>(a.weights);
    double sum = 0.0;
#pragma unroll 8
    for (int64_t n = begin + chain(); n < end; n += kChains) {
        const double term = x[n];
        sum = sum + (WEIGHTED ? term * static_cast<double>(w[n]) : term);
    }
    sum = join_chains(sum);
    if (present && chain() == 0) ptr<double>(a.sums)[s] = sum;
}

// The first segment that ends behind n; those without elements never do.
__device__ inline int64_t segment_of(const int64_t* starts, int64_t S, int64_t n) {
    int64_t low = 0, high = S - 1;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (starts[middle + 1] <= n) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

template <bool WEIGHTED>
__global__ void __launch_bounds__(kSpreadThreads) segment_spread_kernel(SegmentSumBackwardArgs a) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kSpreadThreads + threadIdx.x;
    if (n >= a.dvalues.size) return;
    const int64_t s = segment_of(ptr<int64_t>(a.cu_seqlens), a.dsums.size, n);
    const double dsum = ptr<double>(a.dsums)[s];
    ptr<float>(a.dvalues)[n] =
        static_cast<float>(WEIGHTED ? dsum * static_cast<double>(ptr<float>(a.weights)[n]) : dsum);
}

}  // namespace

int segment_sum_forward(const SegmentSumArgs& a, void* stream) {
    if (a.sums.size == 0) return cudaSuccess;
    return launch(a.weights ? segment_sum_kernel<true> : segment_sum_kernel<false>,
                  dim3(ceil_div(a.sums.size, kSegmentsPerBlock)), kSumThreads, stream, a);
}

int segment_sum_backward(const SegmentSumBackwardArgs& a, void* stream) {
    if (a.dvalues.size == 0) return cudaSuccess;
    return launch(a.weights ? segment_spread_kernel<true> : segment_spread_kernel<false>,
                  dim3(ceil_div(a.dvalues.size, kSpreadThreads)), kSpreadThreads, stream, a);
}

}  // namespace pe::cuda
