#include "bind.h"
#include "check.h"
#include "packed_arg.h"
#include "pyengine/ops/linear_logprob.h"
#include "pyengine/parallel.h"

namespace pe::bindings::logprob {
namespace {

constexpr const char* kOp = "linear_logprob";

struct Shape {
    int64_t T, D, V;
};

[[noreturn]] void bad(const std::string& what) {
    throw py::value_error("[" + std::string(kOp) + "] " + what);
}

void check_size(const TensorArg& hidden, const TensorArg& weight, const Shape& s) {
    if (s.D < 1) value_error(hidden, "must have D >= 1 but got shape " + hidden.shape_text());
    if (s.V < 1) value_error(weight, "must have V >= 1 but got shape " + weight.shape_text());
}

// Fills hidden, weight or packed, and targets; what the head and hidden must be for each other.
template <typename Args>
Shape check_operands(const py::object& hidden_, const py::object& weight_,
                     const py::object& targets_, Args* args) {
    const TensorArg hidden = borrow(kOp, "hidden", hidden_);
    const TensorArg targets = borrow(kOp, "targets", targets_);
    check_dtype(hidden, {DType::kF32, DType::kBF16});
    check_dims(hidden, "(T, D)", 2);
    Shape s{hidden.shape[0], hidden.shape[1], 0};
    if (is_packed(weight_)) {
        args->packed = packed_weight(kOp, "weight", weight_, hidden);
        s.V = args->packed.N;
        check_shape(hidden, "(T, D)", {s.T, args->packed.K});
        if (args->packed.kind == PackedKind::kBF16) check_dtype(hidden, {DType::kBF16});
        if (hidden.is_cuda && args->packed.kind == PackedKind::kF32)
            check_dtype(hidden, {DType::kF32});
    } else {
        const TensorArg weight = borrow(kOp, "weight", weight_);
        check_dtype(weight, {DType::kF32, DType::kBF16});
        check_dims(weight, "(V, D)", 2);
        s.V = weight.shape[0];
        check_size(hidden, weight, s);
        check_shape(weight, "(V, D)", {s.V, s.D});
        check_same_device(hidden, {&weight});
        args->weight = matrix(weight);
    }
    check_dtype(targets, {DType::kI64});
    check_shape(targets, "(T,)", {s.T});
    check_same_device(hidden, {&targets});
    check_cuda_built(hidden);
    args->hidden = matrix(hidden);
    args->targets = vector(targets);
    return s;
}

// Ids on CUDA cannot be read without a synchronisation: pyengine/ops/linear_logprob.py asks for it once per batch.
void check_ids(const char* name, const int64_t* id, int64_t n, int64_t columns, int64_t stride,
               int64_t V) {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t v = id[i / columns * stride + i % columns];
        if (v >= 0 && v < V) continue;
        const std::string place =
            columns == 1 ? std::to_string(i)
                         : std::to_string(i / columns) + ", " + std::to_string(i % columns);
        bad(std::string(name) + " must be in [0, " + std::to_string(V) + ") but " + name + "[" +
            place + "] = " + std::to_string(v));
    }
}

template <typename Args>
void check_targets(const Args& args, bool is_cuda, int64_t V) {
    if (!is_cuda) check_ids("targets", ptr<int64_t>(args.targets), args.targets.size, 1, 1, V);
}

VectorView rows_vector(const TensorArg& t, const Shape& s) {
    check_dtype(t, {DType::kF32});
    check_shape(t, "(T,)", {s.T});
    return vector(t);
}

int64_t cpu_bytes(const LinearLogprobForwardArgs& a) {
    return cpu::linear_logprob_forward_bytes(a);
}
int64_t cpu_bytes(const LinearLogprobBackwardArgs& a) {
    return cpu::linear_logprob_backward_bytes(a);
}
#ifdef PE_WITH_CUDA
int64_t cuda_bytes(const LinearLogprobForwardArgs& a) {
    return cuda::linear_logprob_forward_bytes(a);
}
int64_t cuda_bytes(const LinearLogprobBackwardArgs& a) {
    return cuda::linear_logprob_backward_bytes(a);
}
#endif

// The workspace, and the threads that it has room for: set_num_threads may have been called since it was sized.
template <typename Args>
void take_workspace(const TensorArg& workspace, Args* args) {
    check_dims(workspace, "(bytes,)", 1);
    vector(workspace);
    const int64_t have = workspace.shape[0] * dtype_bytes(workspace.dtype);
    const auto refuse = [&](int64_t need) {
        value_error(workspace,
                    "must have " + std::to_string(need) + " bytes but has " + std::to_string(have));
    };
    args->workspace = workspace.data;
#ifdef PE_WITH_CUDA
    if (workspace.is_cuda) {
        if (cuda_bytes(*args) > have) refuse(cuda_bytes(*args));
        return;
    }
#endif
    args->threads = num_threads();
    while (args->threads > 1 && cpu_bytes(*args) > have) --args->threads;
    if (cpu_bytes(*args) > have) refuse(cpu_bytes(*args));
}

// Of a workspace for these sizes: `wide` for a forward pass with a direction or extra outputs.
int64_t workspace_bytes(int64_t T, int64_t D, int64_t V, const std::string& pass, bool pairs,
                        bool packed, int64_t groups, bool cuda) {
    if (pass != "forward" && pass != "wide" && pass != "backward") {
        bad("pass must be 'forward', 'wide' or 'backward' but is '" + pass + "'");
    }
    float present = 0.0f;
    const DType dtype = pairs ? DType::kBF16 : DType::kF32;
    LinearLogprobForwardArgs forward;
    forward.hidden = {&present, dtype, T, D, D};
    forward.weight = {&present, dtype, V, D, D};
    forward.threads = num_threads();
    if (packed)
        forward.packed = {&present, pairs ? PackedKind::kBF16 : PackedKind::kF32, V, D, nullptr};
    if (packed && cuda) forward.weight = {};
    if (pass == "wide") forward.direction = forward.hidden;
#ifdef PE_WITH_CUDA
    if (cuda && pass != "backward") return cuda_bytes(forward);
#endif
    if (pass != "backward") return cpu_bytes(forward);
    LinearLogprobBackwardArgs backward;
    backward.hidden = forward.hidden;
    backward.weight = forward.weight;
    backward.packed = forward.packed;
    backward.threads = forward.threads;
    backward.groups = {&present, DType::kI64, groups + 1};
#ifdef PE_WITH_CUDA
    if (cuda) return cuda_bytes(backward);
#endif
    (void)cuda;
    return cpu_bytes(backward);
}

void take_extra(const TensorArg& hidden, const py::dict& extra, const Shape& s,
                LinearLogprobExtra* out) {
    const auto item = [&](const char* name) {
        const py::object o = extra.contains(name) ? py::object(extra[name]) : py::none();
        const TensorArg t = borrow_optional(kOp, name, o);
        check_same_device(hidden, {&t});
        return t;
    };
    const auto row_values = [&](const char* name) {
        const TensorArg t = item(name);
        check_dtype(t, {DType::kF32});
        check_shape(t, "(T,)", {s.T});
        return vector(t);
    };
    const auto columns = [&](const char* name, DType dtype, int64_t K) {
        const TensorArg t = item(name);
        check_dtype(t, {dtype});
        if (t.present()) check_dims(t, "(T, K)", 2);
        if (t.present()) check_shape(t, "(T, K)", {s.T, K < 0 ? t.shape[1] : K});
        return matrix(t);
    };
    out->entropy = row_values("entropy");
    out->sum_squares = row_values("sum_squares");
    out->top_ids = columns("top_ids", DType::kI64, -1);
    out->top_logprobs = columns("top_logprobs", DType::kF32, out->top_ids.cols);
    out->ids = columns("ids", DType::kI64, -1);
    out->id_logprobs = columns("id_logprobs", DType::kF32, out->ids.cols);
    if (out->top_ids.cols > s.V) {
        bad("top_ids must have at most V = " + std::to_string(s.V) + " columns but has " +
            std::to_string(out->top_ids.cols));
    }
    if (bool(out->top_ids) != bool(out->top_logprobs) || bool(out->ids) != bool(out->id_logprobs)) {
        bad("extra must hold ids and their log-probs together");
    }
    if (out->ids && out->ids.cols > 0) {
        check_ids("ids", static_cast<const int64_t*>(out->ids.data), s.T * out->ids.cols,
                  out->ids.cols, out->ids.row_stride, s.V);
    }
}

void refuse_on_cuda(const TensorArg& hidden, bool given, const char* what) {
    if (hidden.is_cuda && given)
        bad(std::string(what) + " must not be given for tensors on CUDA: it is for the CPU only");
}

void forward(py::object hidden_, py::object weight_, py::object targets_, py::object logprob_,
             py::object lse_, py::object workspace_, uintptr_t stream, py::object columns_,
             double temperature, py::object direction_, const py::dict& extra) {
    LinearLogprobForwardArgs args;
    const Shape s = check_operands(hidden_, weight_, targets_, &args);
    const TensorArg hidden = borrow(kOp, "hidden", hidden_),
                    logprob = borrow(kOp, "logprob", logprob_);
    const TensorArg lse = borrow(kOp, "lse", lse_),
                    workspace = borrow(kOp, "workspace", workspace_);
    const TensorArg direction = borrow_optional(kOp, "direction", direction_);
    args.logprob = rows_vector(logprob, s);
    args.lse = rows_vector(lse, s);
    check_dtype(direction, {DType::kF32});
    check_shape(direction, "(T, D)", {s.T, s.D});
    check_same_device(hidden, {&logprob, &lse, &workspace, &direction});
    args.inverse_temperature = inverse_of(kOp, temperature);
    args.direction = matrix(direction);
    args.packed_columns = packed_weight(kOp, "columns", columns_, hidden);
    take_extra(hidden, extra, s, &args.extra);
    refuse_on_cuda(hidden, direction.present(), "direction");
    refuse_on_cuda(hidden, bool(args.extra), "extra");
    if (args.packed.data != nullptr && direction.present()) {
        const PackedMatrix& c = args.packed_columns;
        if (c.data == nullptr || c.kind != args.packed.kind || c.N != s.D || c.K != s.V) {
            bad("columns must be the packed weight's columns, of its kind and shape (" +
                std::to_string(s.D) + ", " + std::to_string(s.V) + "), for a direction but are " +
                (c.data == nullptr
                     ? std::string("None")
                     : "of shape (" + std::to_string(c.N) + ", " + std::to_string(c.K) + ")"));
        }
    }
    check_targets(args, hidden.is_cuda, s.V);
    if (s.T == 0) return;  // an empty output looks like one that is not wanted
    take_workspace(workspace, &args);
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
              uintptr_t stream, double temperature, py::object direction_, py::object groups_) {
    LinearLogprobBackwardArgs args;
    const Shape s = check_operands(hidden_, weight_, targets_, &args);
    const TensorArg dlogprob = borrow(kOp, "dlogprob", dlogprob_),
                    hidden = borrow(kOp, "hidden", hidden_);
    const TensorArg lse = borrow(kOp, "lse", lse_),
                    workspace = borrow(kOp, "workspace", workspace_);
    const TensorArg dhidden = borrow_optional(kOp, "dhidden", dhidden_);
    const TensorArg dweight = borrow_optional(kOp, "dweight", dweight_);
    const bool directed = dhidden.present() && !hidden.is_cuda;  // what dhidden is made of
    const TensorArg direction = directed ? borrow(kOp, "direction", direction_)
                                         : borrow_optional(kOp, "direction", direction_);
    args.dlogprob = rows_vector(dlogprob, s);
    args.lse = rows_vector(lse, s);
    for (const TensorArg* t : {&dhidden, &dweight, &direction}) check_dtype(*t, {DType::kF32});
    for (const TensorArg* t : {&dhidden, &direction}) check_shape(*t, "(T, D)", {s.T, s.D});
    check_shape(dweight, "(V, D)", {s.V, s.D});
    check_same_device(hidden, {&dlogprob, &lse, &workspace, &dhidden, &dweight, &direction});
    args.dhidden = matrix(dhidden);
    args.dweight = matrix(dweight);
    args.direction = matrix(direction);
    args.inverse_temperature = inverse_of(kOp, temperature);
    const TensorArg groups = borrow_optional(kOp, "groups", groups_);
    args.groups = group_bounds(groups, s.T);
    refuse_on_cuda(hidden, direction.present(), "direction");
    check_same_device(hidden, {&groups});
    check_targets(args, hidden.is_cuda, s.V);
    if (s.T == 0) return;
    if (args.dweight || hidden.is_cuda) take_workspace(workspace, &args);
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

void bind(py::module_& m) {
    m.def("linear_logprob_workspace_bytes", &workspace_bytes, py::arg("T"), py::arg("D"),
          py::arg("V"), py::arg("pass_"), py::arg("pairs") = false, py::arg("packed") = false,
          py::arg("groups") = 1, py::arg("cuda") = false);
    m.def("linear_logprob_forward", &forward, py::arg("hidden"), py::arg("weight"),
          py::arg("targets"), py::arg("logprob"), py::arg("lse"), py::arg("workspace"),
          py::arg("stream") = 0, py::arg("columns") = py::none(), py::arg("temperature") = 1.0,
          py::arg("direction") = py::none(), py::arg("extra") = py::dict());
    m.def("linear_logprob_backward", &backward, py::arg("dlogprob"), py::arg("hidden"),
          py::arg("weight"), py::arg("targets"), py::arg("lse"), py::arg("dhidden").none(true),
          py::arg("dweight").none(true), py::arg("workspace"), py::arg("stream") = 0,
          py::arg("temperature") = 1.0, py::arg("direction") = py::none(),
          py::arg("groups") = py::none());
}

}  // namespace pe::bindings::logprob
