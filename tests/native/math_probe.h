#pragma once

#include <cstdint>

#include "pyengine/isa.h"

namespace pe {

enum class MathFunction { kExp, kLog, kSilu, kGeluTanh };

struct MathProbeArgs {
    MathFunction function;
    const float* x;
    float* y;
    int64_t n;  // a multiple of 16
};

namespace cpu {
PE_CPU_KERNEL(math_probe, MathProbeArgs)
}  // namespace cpu

namespace cuda {
void math_probe(const MathProbeArgs& args);  // of cuda/common/math.cuh
}  // namespace cuda

}  // namespace pe
