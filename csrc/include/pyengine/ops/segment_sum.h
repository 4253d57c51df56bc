// segment_sum: sums[s] = sum of values[n] weights[n] over n in [cu_seqlens[s], cu_seqlens[s + 1])
// shapes       values, dvalues (N,); weights (N,) or null: 1; cu_seqlens (S + 1,), rising from 0 to N; sums, dsums (S,)
// dtypes       values, weights, dvalues f32; cu_seqlens i64; sums, dsums f64; accumulates in f64
// aliasing     none
// gradient     dvalues[n] = dsums[s] weights[n] is assigned (=), made in f64 and then rounded to f32
// determinism  cpu: bitwise for any thread count and batch, the same bits on every instruction set: a product is exact in
//              f64, element n of a segment goes on with chain n mod 8, and the chains are joined in one order; cuda: the
//              same bits
// source       none
// proof        tests/reference/segment_sum.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

struct SegmentSumArgs {
    VectorView values;
    VectorView weights;  // or null
    VectorView cu_seqlens;
    VectorView sums;
};

struct SegmentSumBackwardArgs {
    VectorView dsums;
    VectorView weights;  // or null
    VectorView cu_seqlens;
    VectorView dvalues;
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(segment_sum_forward, SegmentSumArgs)
PE_CPU_KERNEL_UP_TO_AVX512(segment_sum_backward, SegmentSumBackwardArgs)
}  // namespace cpu

namespace cuda {
// Return a cudaError_t; `stream` is a cudaStream_t.
int segment_sum_forward(const SegmentSumArgs& args, void* stream);
int segment_sum_backward(const SegmentSumBackwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
