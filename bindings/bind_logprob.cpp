#include "bind.h"
#include "check.h"
#include "pyengine/ops/linear_logprob.h"
#include "pyengine/parallel.h"

namespace pe::bindings {
namespace {

constexpr const char* kOp = "linear_logprob";

struct Shape {
    int64_t T, D, V;
};

Shape check_operands(const TensorArg& hidden, const TensorArg& weight, const TensorArg& targets) {
    for (const TensorArg* t : {&hidden, &weight}) check_dtype(*t, {DType::kF32, DType::kBF16});
    check_dtype(targets, {DType::kI64});
    check_dims(hidden, "(T, D)", 2);
    check_dims(weight, "(V, D)", 2);
    const Shape s{hidden.shape[0], hidden.shape[1], weight.shape[0]};
    if (s.D < 1) value_error(hidden, "must have D >= 1 but got shape " + hidden.shape_text());
    if (s.V < 1) value_error(weight, "must have V >= 1 but got shape " + weight.shape_text());
    check_shape(weight, "(V, D)", {s.V, s.D});
    check_shape(targets, "(T,)", {s.T});
    check_same_device(hidden, {&weight, &targets});
    check_cuda_built(hidden);
    return s;
}

// On CUDA the ids cannot be read without a synchronisation: pyengine/ops/linear_logprob.py asks for it once per batch.
void check_targets(const TensorArg& targets, const VectorView& ids, int64_t V) {
    if (targets.is_cuda) return;
    const int64_t* id = static_cast<const int64_t*>(ids.data);
    for (int64_t i = 0; i < ids.size; ++i) {
        if (id[i] < 0 || id[i] >= V) {
            value_error(targets, "must be in [0, " + std::to_string(V) + ") but targets[" +
                                     std::to_string(i) + "] = " + std::to_string(id[i]));
        }
    }
}

int64_t workspace_bytes(int64_t T, int64_t D, int64_t V, bool backward, bool cuda) {
#ifdef PE_WITH_CUDA
    if (cuda) return cuda::linear_logprob_workspace_bytes(T, D, V, backward);
#endif
    (void)cuda;
    return cpu::linear_logprob_workspace_bytes(T, D, V, backward, num_threads());
}

// The threads that the workspace has room for: set_num_threads may have been called since it was sized.
int threads_that_fit(const TensorArg& workspace, const Shape& s, bool backward) {
    check_dims(workspace, "(bytes,)", 1);
    const int64_t have = workspace.shape[0] * dtype_bytes(workspace.dtype);
    int threads = num_threads();
#ifdef PE_WITH_CUDA
    if (workspace.is_cuda) {
        const int64_t size = cuda::linear_logprob_workspace_bytes(s.T, s.D, s.V, backward);
        if (size > have) {
            value_error(workspace, "must have " + std::to_string(size) + " bytes but has " +
                                       std::to_string(have));
        }
        return 1;
    }
#endif
    while (threads > 1 &&
           cpu::linear_logprob_workspace_bytes(s.T, s.D, s.V, backward, threads) > have)
        --threads;
    const int64_t need = cpu::linear_logprob_workspace_bytes(s.T, s.D, s.V, backward, threads);
    if (need > have) {
        value_error(workspace,
                    "must have " + std::to_string(need) + " bytes but has " + std::to_string(have));
    }
    return threads;
}

void forward(py::object hidden_, py::object weight_, py::object targets_, py::object logprob_,
             py::object lse_, py::object workspace_, uintptr_t stream) {
    const TensorArg hidden = borrow(kOp, "hidden", hidden_),
                    weight = borrow(kOp, "weight", weight_);
    const TensorArg targets = borrow(kOp, "targets", targets_),
                    logprob = borrow(kOp, "logprob", logprob_);
    const TensorArg lse = borrow(kOp, "lse", lse_),
                    workspace = borrow(kOp, "workspace", workspace_);
    const Shape s = check_operands(hidden, weight, targets);
    for (const TensorArg* t : {&logprob, &lse}) {
        check_dtype(*t, {DType::kF32});
        check_shape(*t, "(T,)", {s.T});
    }
    check_same_device(hidden, {&logprob, &lse, &workspace});
    const LinearLogprobForwardArgs args{.hidden = matrix(hidden),
                                        .weight = matrix(weight),
                                        .targets = vector(targets),
                                        .logprob = vector(logprob),
                                        .lse = vector(lse),
                                        .workspace = workspace.data,
                                        .threads = threads_that_fit(workspace, s, false)};
    check_targets(targets, args.targets, s.V);
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (hidden.is_cuda) {
        return check_cuda_status(
            kOp, cuda::linear_logprob_forward(args, reinterpret_cast<void*>(stream)));
    }
#endif
    (void)stream;
    cpu::linear_logprob_forward(args);
}

void backward(py::object dlogprob_, py::object hidden_, py::object weight_, py::object targets_,
              py::object lse_, py::object dhidden_, py::object dweight_, py::object workspace_,
              uintptr_t stream) {
    const TensorArg dlogprob = borrow(kOp, "dlogprob", dlogprob_),
                    hidden = borrow(kOp, "hidden", hidden_);
    const TensorArg weight = borrow(kOp, "weight", weight_),
                    targets = borrow(kOp, "targets", targets_);
    const TensorArg lse = borrow(kOp, "lse", lse_),
                    workspace = borrow(kOp, "workspace", workspace_);
    const TensorArg dhidden = borrow_optional(kOp, "dhidden", dhidden_);
    const TensorArg dweight = borrow_optional(kOp, "dweight", dweight_);
    const Shape s = check_operands(hidden, weight, targets);
    for (const TensorArg* t : {&dlogprob, &lse}) {
        check_dtype(*t, {DType::kF32});
        check_shape(*t, "(T,)", {s.T});
    }
    for (const TensorArg* t : {&dhidden, &dweight}) check_dtype(*t, {DType::kF32});
    check_shape(dhidden, "(T, D)", {s.T, s.D});
    check_shape(dweight, "(V, D)", {s.V, s.D});
    check_same_device(hidden, {&dlogprob, &lse, &workspace, &dhidden, &dweight});
    const LinearLogprobBackwardArgs args{.dlogprob = vector(dlogprob),
                                         .hidden = matrix(hidden),
                                         .weight = matrix(weight),
                                         .targets = vector(targets),
                                         .lse = vector(lse),
                                         .dhidden = matrix(dhidden),
                                         .dweight = matrix(dweight),
                                         .workspace = workspace.data,
                                         .threads = threads_that_fit(workspace, s, true)};
    check_targets(targets, args.targets, s.V);
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (hidden.is_cuda) {
        return check_cuda_status(
            kOp, cuda::linear_logprob_backward(args, reinterpret_cast<void*>(stream)));
    }
#endif
    (void)stream;
    cpu::linear_logprob_backward(args);
}

}  // namespace

void bind_logprob(py::module_& m) {
    m.def("linear_logprob_workspace_bytes", &workspace_bytes, py::arg("T"), py::arg("D"),
          py::arg("V"), py::arg("backward"), py::arg("cuda") = false);
    m.def("linear_logprob_forward", &forward, py::arg("hidden"), py::arg("weight"),
          py::arg("targets"), py::arg("logprob"), py::arg("lse"), py::arg("workspace"),
          py::arg("stream") = 0);
    m.def("linear_logprob_backward", &backward, py::arg("dlogprob"), py::arg("hidden"),
          py::arg("weight"), py::arg("targets"), py::arg("lse"), py::arg("dhidden").none(true),
          py::arg("dweight").none(true), py::arg("workspace"), py::arg("stream") = 0);
}

}  // namespace pe::bindings
