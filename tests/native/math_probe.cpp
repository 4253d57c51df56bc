// The functions of simd.h for one instruction set, reachable from the tests.
#include "math_probe.h"

#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {
namespace {

template <typename F>
void each(const MathProbeArgs& a, const F& f) {
    for (int64_t i = 0; i < a.n; i += 16) store16(a.y + i, f(load16(a.x + i)));
}

}  // namespace

void math_probe(const MathProbeArgs& a) {
    switch (a.function) {
        case MathFunction::kExp: return each(a, [](const vec16& x) { return exp(x); });
        case MathFunction::kLog: return each(a, [](const vec16& x) { return log(x); });
        case MathFunction::kSilu: return each(a, [](const vec16& x) { return silu(x); });
        case MathFunction::kGeluTanh: return each(a, [](const vec16& x) { return gelu_tanh(x); });
    }
}

}  // namespace pe::cpu::PE_ISA
