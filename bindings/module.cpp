#include <cstdlib>
#include <string>

#include "bind.h"
#include "check.h"
#include "pyengine/isa.h"
#include "pyengine/parallel.h"
#include "tensor_arg.h"

#ifdef PE_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace pe::bindings {

#ifdef PE_WITH_CUDA
void check_cuda_status(const char* op, int status) {
    if (status == cudaSuccess) return;
    const std::string message =
        "[" + std::string(op) + "] CUDA: " + cudaGetErrorString(static_cast<cudaError_t>(status));
    py::gil_scoped_acquire acquire;
    throw std::runtime_error(message);
}
#endif

namespace {

py::list available_isas() {
    py::list names;
    for (int i = 0; i < cpu::kNumIsas; ++i) {
        const auto isa = static_cast<cpu::Isa>(i);
        if (cpu::isa_supported(isa)) names.append(cpu::isa_name(isa));
    }
    return names;
}

void set_isa(const std::string& name) {
    std::string known;
    for (int i = 0; i < cpu::kNumIsas; ++i) {
        const auto isa = static_cast<cpu::Isa>(i);
        known += (known.empty() ? "" : ", ") + std::string(cpu::isa_name(isa));
        if (name != cpu::isa_name(isa)) continue;
        if (!cpu::isa_supported(isa)) {
            throw py::value_error("[PYENGINE_ISA] this CPU or build does not have " + name);
        }
        cpu::set_active_isa(isa);
        return;
    }
    throw py::value_error("[PYENGINE_ISA] must be one of " + known + " but is " + name);
}

void set_threads(int n) {
    if (n < 1)
        throw py::value_error("[set_num_threads] n must be >= 1 but is " + std::to_string(n));
    set_num_threads(n);
}

}  // namespace
}  // namespace pe::bindings

PYBIND11_MODULE(_C, m) {
    using namespace pe::bindings;
    m.doc() = "pyengine's kernels: raw calls on borrowed tensors. Use pyengine.ops instead.";
#ifdef PE_WITH_CUDA
    m.attr("cuda_built") = true;
#else
    m.attr("cuda_built") = false;
#endif
    m.def("register_torch", &register_torch);
    m.def("use_exchange_api", &use_exchange_api);
    m.def("available_isas", &available_isas);
    m.def("isa", [] { return std::string(pe::cpu::isa_name(pe::cpu::active_isa())); });
    m.def("set_isa", &set_isa);
    m.def("set_num_threads", &set_threads);
    m.def("num_threads", &pe::num_threads);
    attention::bind(m);
    attention_backward::bind(m);
    norm::bind(m);
    kl::bind(m);
    linear::bind(m);
    logprob::bind(m);
    losses::bind(m);
    objective::bind(m);
    optimizer::bind(m);
    random::bind(m);
    rope::bind(m);
    sample::bind(m);
    session::bind(m);
    if (const char* isa = std::getenv("PYENGINE_ISA"); isa != nullptr && *isa != '\0') set_isa(isa);
}
