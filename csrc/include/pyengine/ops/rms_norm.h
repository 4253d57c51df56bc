// rms_norm: y[n,:] = x[n,:] * rsqrt(mean(x[n,:]^2) + eps) * weight
// shapes       x, y (N, D), row stride free, last dim contiguous; weight (D,); rstd (N,) or null
// dtypes       x, weight, y each f32 or bf16; rstd, dweight f32; accumulates in f32
// aliasing     y may be x; no other overlap
// gradient     dx is assigned (=), dweight is accumulated (+=); either may be null
// determinism  cpu: bitwise for any thread count and batch: a row is summed in 16 lanes folded in one order, dweight walks
//              rows in order; cuda: bitwise, no atomics
// source       arXiv:1910.07467
// proof        tests/reference/rms_norm.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

struct RmsNormForwardArgs {
    MatrixView x;
    VectorView weight;
    float eps = 0.0f;
    MatrixView y;
    VectorView rstd;  // null: not wanted
};

struct RmsNormBackwardArgs {
    MatrixView dy;
    MatrixView x;
    VectorView weight;
    VectorView rstd;
    MatrixView dx;       // null: not wanted
    VectorView dweight;  // null: not wanted
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(rms_norm_forward, RmsNormForwardArgs)
PE_CPU_KERNEL_UP_TO_AVX512(rms_norm_backward, RmsNormBackwardArgs)
}  // namespace cpu

namespace cuda {
// Return a cudaError_t; `stream` is a cudaStream_t.
int rms_norm_forward(const RmsNormForwardArgs& args, void* stream);
int rms_norm_backward(const RmsNormBackwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
