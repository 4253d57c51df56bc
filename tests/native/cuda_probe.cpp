// Device functions, reachable from the tests.
#include "common/math.cuh"
#include "math_probe.h"

namespace pe::cuda {

void math_probe(const MathProbeArgs& a) {
    float (*const function)(float) = a.function == MathFunction::kExp    ? exp_f32
                                     : a.function == MathFunction::kLog  ? log_f32
                                     : a.function == MathFunction::kSilu ? silu_f32
                                                                         : gelu_tanh_f32;
    for (int64_t i = 0; i < a.n; ++i) a.y[i] = function(a.x[i]);
}

}  // namespace pe::cuda
