#include "bind.h"
#include "check.h"
#include "pyengine/ops/philox_uniform.h"

namespace pe::bindings::random {
namespace {

constexpr const char* kOp = "philox_uniform";

// Only 32 bits of these are in the key: a value beyond them would draw another's number. On CUDA pyengine/ops/philox_uniform.py
// checks.
void check_32_bits(const TensorArg& t) {
    const VectorView ids = vector(t);
    if (t.is_cuda) return;
    const int64_t* id = static_cast<const int64_t*>(ids.data);
    for (int64_t i = 0; i < ids.size; ++i) {
        if (id[i] < 0 || id[i] >= int64_t{1} << 32) {
            value_error(t, "must be in [0, 4294967296) but " + std::string(t.name) + "[" +
                               std::to_string(i) + "] = " + std::to_string(id[i]));
        }
    }
}

void uniform(py::object seed_, py::object request_, py::object sample_, py::object position_,
             py::object u_, uintptr_t stream) {
    const TensorArg seed = borrow(kOp, "seed", seed_), request = borrow(kOp, "request", request_);
    const TensorArg sample = borrow(kOp, "sample", sample_),
                    position = borrow(kOp, "position", position_);
    const TensorArg u = borrow(kOp, "u", u_);
    check_dims(u, "(N,)", 1);
    check_dtype(u, {DType::kF64});
    for (const TensorArg* t : {&seed, &request, &sample, &position}) {
        check_dtype(*t, {DType::kI64});
        check_shape(*t, "(N,)", {u.shape[0]});
    }
    check_same_device(u, {&seed, &request, &sample, &position});
    check_cuda_built(u);
    for (const TensorArg* t : {&sample, &position}) check_32_bits(*t);
    const PhiloxUniformArgs args{.seed = vector(seed),
                                 .request = vector(request),
                                 .sample = vector(sample),
                                 .position = vector(position),
                                 .u = vector(u)};
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (u.is_cuda)
        return check_cuda_status(kOp, cuda::philox_uniform(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::philox_uniform(args);
}

}  // namespace

void bind(py::module_& m) {
    m.def("philox_uniform", &uniform, py::arg("seed"), py::arg("request"), py::arg("sample"),
          py::arg("position"), py::arg("u"), py::arg("stream") = 0);
}

}  // namespace pe::bindings::random
