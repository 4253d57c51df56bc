// lion: c = b1 m + (1-b1) g, p = (1 - lr wd) p - lr sign(c), m = b2 m + (1-b2) g; sign(0) = 0
// shapes       param, grad, exp_avg (n,), all contiguous
// dtypes       f32
// aliasing     param and exp_avg are updated in place; no two arguments overlap
// gradient     none; grad is read as grad * grad_scale, so that clipping takes no pass of its own
// determinism  cpu: bitwise for any thread count: an element is computed alone; cuda: the CPU's bits (with FMA), NaN apart
// source       arXiv:2302.06675, algorithm 2
// proof        tests/reference/lion.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

// What all elements share, rounded from f64 once a step.
struct LionScalars {
    float grad_scale = 1.0f;
    float decay = 1.0f;  // 1 - lr wd
    float lr = 0.0f;
    float one_minus_beta1 = 1.0f;
    float one_minus_beta2 = 1.0f;
};

struct LionArgs {
    VectorView param;
    VectorView grad;
    VectorView exp_avg;
    LionScalars scalars;
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(lion_step, LionArgs)
}  // namespace cpu

namespace cuda {
int lion_step(const LionArgs& args, void* stream);  // a cudaError_t; `stream` is a cudaStream_t
}  // namespace cuda

}  // namespace pe
