// layer_norm: y[n,:] = (x[n,:] - mean) * rstd * weight + bias,  mean = mean(x[n,:]),
//              rstd = 1 / sqrt(mean((x[n,:] - mean)^2) + eps)
// shapes       x, y (N, D), row stride free, last dim contiguous; weight, bias (D,); mean, rstd (N,) or null
// dtypes       x, weight, bias, y each f32 or bf16; mean, rstd, dweight, dbias f32; accumulates in f32
// aliasing     y may be x; no other overlap
// gradient     dx is assigned (=), dweight and dbias are accumulated (+=); any of them may be null
// determinism  cpu: bitwise for any thread count and batch: a row is summed in 16 lanes folded in one order, first its
//              mean, then the squares; dweight and dbias walk rows in order; cuda: bitwise, no atomics, the CPU's bits
// source       arXiv:1607.06450
// proof        tests/reference/layer_norm.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

struct LayerNormForwardArgs {
    MatrixView x;
    VectorView weight;
    VectorView bias;
    float eps = 0.0f;
    MatrixView y;
    VectorView mean;  // null: not wanted
    VectorView rstd;  // null: not wanted
};

struct LayerNormBackwardArgs {
    MatrixView dy;
    MatrixView x;
    VectorView weight;
    VectorView mean;
    VectorView rstd;
    MatrixView dx;       // null: not wanted
    VectorView dweight;  // null: not wanted
    VectorView dbias;    // null: not wanted
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(layer_norm_forward, LayerNormForwardArgs)
PE_CPU_KERNEL_UP_TO_AVX512(layer_norm_backward, LayerNormBackwardArgs)
}  // namespace cpu

namespace cuda {
// Return a cudaError_t; `stream` is a cudaStream_t.
int layer_norm_forward(const LayerNormForwardArgs& args, void* stream);
int layer_norm_backward(const LayerNormBackwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
