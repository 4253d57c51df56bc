// philox_uniform: u[i] = the uniform in [0, 1) that decides one token, keyed by (seed, request, sample, position)
// shapes       seed, request, sample, position, u all (N,)
// dtypes       seed, request, sample, position i64 (seed and request as 64 bits, sample and position in [0, 2^32)); u f64
// aliasing     none
// gradient     none
// determinism  bitwise, the same on cpu and cuda, whatever the batch
// source       Philox4x32-10: Salmon et al., SC 2011
// proof        tests/reference/philox_uniform.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

struct PhiloxUniformArgs {
    VectorView seed;
    VectorView request;
    VectorView sample;
    VectorView position;
    VectorView u;
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(philox_uniform, PhiloxUniformArgs)
}  // namespace cpu

namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t.
int philox_uniform(const PhiloxUniformArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
