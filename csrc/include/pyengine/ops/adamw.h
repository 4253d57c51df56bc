// adamw: m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p = (1 - lr wd) p - lr m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps)
// shapes       param, grad, exp_avg, exp_avg_sq (n,); absmax (ceil(n/256),); all contiguous
// dtypes       f32; exp_avg and exp_avg_sq of adamw_step_8bit u8 codes with one f32 absmax for each block of 256
// aliasing     param, exp_avg, exp_avg_sq and absmax are updated in place; no two arguments overlap
// gradient     none; grad is read as grad * grad_scale, so that clipping takes no pass of its own
// determinism  cpu: bitwise for any thread count: an element (a block of 256) is computed alone; adamw_sum_squares adds exact
//              squares in f64 in an order fixed by n, the same bits on every instruction set; cuda: the CPU's bits (with FMA), NaN apart
// source       arXiv:1711.05101, algorithm 2; 8 bits: arXiv:2110.02861, sections 2.1 to 2.3; arXiv:2309.01507 on zero
// proof        tests/reference/adamw.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

inline constexpr int64_t kAdamWBlock = 256;        // values that share an absmax
inline constexpr int64_t kAdamWSquaresParts = 64;  // of a gradient, each summed by one thread

// What all elements share, rounded from f64 once a step.
struct AdamWScalars {
    float grad_scale = 1.0f;
    float decay = 1.0f;  // 1 - lr wd
    float beta1 = 0.0f;
    float one_minus_beta1 = 1.0f;
    float beta2 = 0.0f;
    float one_minus_beta2 = 1.0f;
    float step_size = 0.0f;     // lr / (1 - b1^t)
    float inverse_root = 1.0f;  // 1 / sqrt(1 - b2^t)
    float eps = 0.0f;
};

struct AdamWArgs {
    VectorView param;
    VectorView grad;
    VectorView exp_avg;
    VectorView exp_avg_sq;
    AdamWScalars scalars;
};

struct AdamW8bitArgs {
    VectorView param;
    VectorView grad;
    VectorView exp_avg;  // codes of adamw_codes.h, signed
    VectorView exp_avg_absmax;
    VectorView exp_avg_sq;  // unsigned
    VectorView exp_avg_sq_absmax;
    AdamWScalars scalars;
};

// partial[i] is the sum of squares of the i-th of 64 parts of grad; the caller adds them in order.
struct AdamWSumSquaresArgs {
    VectorView grad;
    double* partial = nullptr;  // (64,)
};

namespace {  // internal linkage: see isa.h

// Where the i-th of the 64 parts of n values begins, and that before it ends: whole rows of 16 values.
PE_HOST_DEVICE inline int64_t adamw_squares_begin(int64_t n, int64_t i) {
    const int64_t part = (n + 16 * kAdamWSquaresParts - 1) / (16 * kAdamWSquaresParts) * 16;
    return i * part < n ? i * part : n;
}

}  // namespace

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(adamw_step, AdamWArgs)
PE_CPU_KERNEL_UP_TO_AVX512(adamw_step_8bit, AdamW8bitArgs)
PE_CPU_KERNEL_UP_TO_AVX512(adamw_sum_squares, AdamWSumSquaresArgs)
}  // namespace cpu

namespace cuda {
// Return a cudaError_t; `stream` is a cudaStream_t.
int adamw_step(const AdamWArgs& args, void* stream);
int adamw_step_8bit(const AdamW8bitArgs& args, void* stream);
int adamw_sum_squares(const AdamWSumSquaresArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
