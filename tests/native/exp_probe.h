#pragma once

#include <cstdint>

#include "pyengine/isa.h"

namespace pe {

struct ExpProbeArgs {
    const float* x;
    float* y;
    int64_t n;  // a multiple of 16
};

namespace cpu {
PE_CPU_KERNEL(exp_probe, ExpProbeArgs)
}  // namespace cpu

namespace cuda {
void exp_probe(const ExpProbeArgs& args);  // exp_f32 of cuda/common/math.cuh
}  // namespace cuda

}  // namespace pe
