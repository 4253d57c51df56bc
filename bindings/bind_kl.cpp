#include <memory>

#include "bind.h"
#include "check.h"
#include "packed_arg.h"
#include "pyengine/ops/linear_kl.h"
#include "pyengine/parallel.h"

namespace pe::bindings::kl {
namespace {

constexpr const char* kOp = "linear_kl";

struct Shape {
    int64_t T, V;
};

// T, V: what they must be, below 0 where they may be anything.
LinearKlSide take_side(const char* hidden_name, const py::object& hidden_, const char* weight_name,
                       const py::object& weight_, const char* shape, Shape* s) {
    LinearKlSide side;
    const TensorArg hidden = borrow(kOp, hidden_name, hidden_);
    check_dtype(hidden, {DType::kF32, DType::kBF16});
    check_cuda_built(hidden);
    check_dims(hidden, shape, 2);
    if (s->T >= 0) check_shape(hidden, shape, {s->T, hidden.shape[1]});
    s->T = hidden.shape[0];
    const int64_t D = hidden.shape[1];
    if (D < 1)
        value_error(hidden, "must have at least one column but got shape " + hidden.shape_text());
    side.hidden = matrix(hidden);
    int64_t V;
    if (is_packed(weight_)) {
        side.packed = packed_weight(kOp, weight_name, weight_, hidden);
        V = side.packed.N;
        check_shape(hidden, shape, {s->T, side.packed.K});
        if (side.packed.kind == PackedKind::kBF16) check_dtype(hidden, {DType::kBF16});
    } else {
        const TensorArg weight = borrow(kOp, weight_name, weight_);
        check_dtype(weight, {DType::kF32, DType::kBF16});
        check_same_device(hidden, {&weight});
        check_dims(weight, "(V, D)", 2);
        V = weight.shape[0];
        check_shape(weight, "(V, D)", {V, D});
        if (V < 1) value_error(weight, "must have V >= 1 but got shape " + weight.shape_text());
        side.weight = matrix(weight);
    }
    if (s->V >= 0 && V != s->V) {
        throw py::value_error("[" + std::string(kOp) + "] " + weight_name +
                              " must have V = " + std::to_string(s->V) +
                              " rows like weight but has " + std::to_string(V));
    }
    s->V = V;
    return side;
}

template <typename Args>
Shape take_sides(const py::object& hidden, const py::object& weight, const py::object& hidden2,
                 const py::object& weight2, double temperature, Args* args) {
    Shape s{-1, -1};
    args->p = take_side("hidden", hidden, "weight", weight, "(T, D)", &s);
    args->q = take_side("hidden2", hidden2, "weight2", weight2, "(T, D2)", &s);
    args->inverse_temperature = inverse_of(kOp, temperature);
    return s;
}

VectorView row_values(const TensorArg& hidden, const TensorArg& t, int64_t T) {
    check_dtype(t, {DType::kF32});
    check_same_device(hidden, {&t});
    check_shape(t, "(T,)", {T});
    return vector(t);
}

MatrixView float_matrix(const TensorArg& hidden, const TensorArg& t, const char* shape,
                        int64_t rows, int64_t cols) {
    check_dtype(t, {DType::kF32});
    check_same_device(hidden, {&t});
    check_shape(t, shape, {rows, cols});
    return matrix(t);
}

#ifdef PE_WITH_CUDA
int64_t cuda_bytes(const LinearKlForwardArgs& a) { return cuda::linear_kl_forward_bytes(a); }
int64_t cuda_bytes(const LinearKlBackwardArgs& a) { return cuda::linear_kl_backward_bytes(a); }
#endif
int64_t cpu_bytes(const LinearKlForwardArgs& a) { return cpu::linear_kl_forward_bytes(a); }
int64_t cpu_bytes(const LinearKlBackwardArgs& a) { return cpu::linear_kl_backward_bytes(a); }

// On the CPU memory for one call, as large as it has to be for these threads; on a GPU the caller's.
template <typename Args>
std::unique_ptr<char[]> workspace_of(const TensorArg& hidden, const TensorArg& given, Args* args) {
#ifdef PE_WITH_CUDA
    if (hidden.is_cuda) {
        if (!given.present()) throw py::value_error("[linear_kl] workspace must be given on a GPU");
        check_same_device(hidden, {&given});
        const int64_t have = vector(given).size * dtype_bytes(given.dtype),
                      need = cuda_bytes(*args);
        if (have < need) {
            value_error(given, "must have " + std::to_string(need) + " bytes but has " +
                                   std::to_string(have));
        }
        args->workspace = given.data;
        return nullptr;
    }
#endif
    (void)hidden, (void)given;
    args->threads = num_threads();
    auto memory = std::make_unique_for_overwrite<char[]>(static_cast<size_t>(cpu_bytes(*args)));
    args->workspace = memory.get();
    return memory;
}

// CUDA's kernels take both sides of one kind.
template <typename Args>
void check_kinds(const TensorArg& hidden, const Args& a) {
    if (!hidden.is_cuda) return;
    const LinearKlSide &p = a.p, &q = a.q;
    const bool same =
        p.hidden.dtype == q.hidden.dtype && bool{p.weight} == bool{q.weight} &&
        (p.weight ? p.weight.dtype == q.weight.dtype
                  : p.packed.kind == q.packed.kind &&
                        (p.packed.kind == PackedKind::kF32) == (p.hidden.dtype == DType::kF32));
    if (!same) {
        throw py::value_error(
            "[linear_kl] on a GPU both sides must be of one kind: weights of equal dtypes, or "
            "packed for the dtype of both hidden states");
    }
}

// On a GPU, of a call of these sizes and kinds.
int64_t workspace_bytes(int64_t T, int64_t D, int64_t V, const std::string& pass, bool pairs,
                        bool packed, int64_t groups) {
    float present = 0.0f;
    const DType dtype = pairs ? DType::kBF16 : DType::kF32;
    LinearKlSide side{.hidden = {&present, dtype, T, D, D}};
    if (packed) {
        side.packed = {&present, pairs ? PackedKind::kBF16 : PackedKind::kF32, V, D, nullptr};
    } else {
        side.weight = {&present, dtype, V, D, D};
    }
    LinearKlForwardArgs forward;
    LinearKlBackwardArgs backward;
    forward.p = forward.q = backward.p = backward.q = side;
    backward.groups = {&present, DType::kI64, groups + 1};
#ifdef PE_WITH_CUDA
    return pass == "forward" ? cuda_bytes(forward) : cuda_bytes(backward);
#else
    return pass == "forward" ? cpu_bytes(forward) : cpu_bytes(backward);
#endif
}

void forward(py::object hidden_, py::object weight, py::object hidden2, py::object weight2,
             py::object kl, py::object lse, double temperature, py::object workspace_,
             uintptr_t stream) {
    LinearKlForwardArgs args;
    const Shape s = take_sides(hidden_, weight, hidden2, weight2, temperature, &args);
    const TensorArg hidden = borrow(kOp, "hidden", hidden_);
    args.kl = row_values(hidden, borrow(kOp, "kl", kl), s.T);
    args.lse = float_matrix(hidden, borrow(kOp, "lse", lse), "(T, 4)", s.T, 4);
    check_kinds(hidden, args);
    if (s.T == 0) return;
    const auto workspace =
        workspace_of(hidden, borrow_optional(kOp, "workspace", workspace_), &args);
    PE_RUN_KERNEL(kOp, linear_kl_forward, args, hidden, stream);
}

void backward(py::object dkl, py::object hidden_, py::object weight, py::object hidden2,
              py::object weight2, py::object kl, py::object lse, py::object dhidden,
              py::object dweight, py::object groups_, double temperature, bool reverse,
              py::object workspace_, uintptr_t stream) {
    LinearKlBackwardArgs args;
    const Shape s = take_sides(hidden_, weight, hidden2, weight2, temperature, &args);
    const TensorArg hidden = borrow(kOp, "hidden", hidden_);
    const TensorArg groups = borrow_optional(kOp, "groups", groups_);
    const int64_t D = hidden.shape[1];
    args.dkl = row_values(hidden, borrow(kOp, "dkl", dkl), s.T);
    args.kl = row_values(hidden, borrow(kOp, "kl", kl), s.T);
    args.lse = float_matrix(hidden, borrow(kOp, "lse", lse), "(T, 4)", s.T, 4);
    args.dhidden = float_matrix(hidden, borrow_optional(kOp, "dhidden", dhidden), "(T, D)", s.T, D);
    args.dweight = float_matrix(hidden, borrow_optional(kOp, "dweight", dweight), "(V, D)", s.V, D);
    check_same_device(hidden, {&groups});
    args.groups = group_bounds(groups, s.T);
    args.reverse = reverse;
    check_kinds(hidden, args);
    if (s.T == 0) return;
    const auto workspace =
        workspace_of(hidden, borrow_optional(kOp, "workspace", workspace_), &args);
    PE_RUN_KERNEL(kOp, linear_kl_backward, args, hidden, stream);
}

}  // namespace

void bind(py::module_& m) {
    m.def("linear_kl_forward", &forward, py::arg("hidden"), py::arg("weight"), py::arg("hidden2"),
          py::arg("weight2"), py::arg("kl"), py::arg("lse"), py::arg("temperature") = 1.0,
          py::arg("workspace") = py::none(), py::arg("stream") = 0);
    m.def("linear_kl_backward", &backward, py::arg("dkl"), py::arg("hidden"), py::arg("weight"),
          py::arg("hidden2"), py::arg("weight2"), py::arg("kl"), py::arg("lse"),
          py::arg("dhidden").none(true), py::arg("dweight").none(true),
          py::arg("groups") = py::none(), py::arg("temperature") = 1.0, py::arg("reverse") = false,
          py::arg("workspace") = py::none(), py::arg("stream") = 0);
    m.def("linear_kl_workspace_bytes", &workspace_bytes, py::arg("T"), py::arg("D"), py::arg("V"),
          py::arg("pass_"), py::arg("pairs"), py::arg("packed"), py::arg("groups") = 1);
}

}  // namespace pe::bindings::kl
