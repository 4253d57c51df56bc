// The exp of simd.h for one instruction set, reachable from the tests.
#include "exp_probe.h"

#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {

void exp_probe(const ExpProbeArgs& a) {
    for (int64_t i = 0; i < a.n; i += kLanes) store(a.y + i, exp(load(a.x + i)));
}

}  // namespace pe::cpu::PE_ISA
