#include "pyengine/ops/philox_uniform.h"

#include "pyengine/philox.h"

#ifndef PE_ISA
#error "PE_ISA names the namespace of the instruction set being compiled"
#endif

namespace pe::cpu::PE_ISA {

void philox_uniform(const PhiloxUniformArgs& a) {
    double* u = ptr<double>(a.u);
    for (int64_t i = 0; i < a.u.size; ++i) {
        u[i] = sampling_uniform(static_cast<uint64_t>(ptr<int64_t>(a.seed)[i]),
                                static_cast<uint64_t>(ptr<int64_t>(a.request)[i]),
                                static_cast<uint32_t>(ptr<int64_t>(a.sample)[i]),
                                static_cast<uint32_t>(ptr<int64_t>(a.position)[i]));
    }
}

}  // namespace pe::cpu::PE_ISA
