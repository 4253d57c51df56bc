#include <vector>

#include "bind.h"
#include "check.h"
#include "packed_arg.h"
#include "pyengine/ops/linear.h"

namespace pe::bindings {
namespace {

constexpr const char* kOp = "linear";

[[noreturn]] void bad(const std::string& what) {
    throw py::value_error("[" + std::string(kOp) + "] " + what);
}

void refuse_cuda(const TensorArg& t) {
    if (t.is_cuda) value_error(t, "must be on the CPU but is on " + t.device_text());
}

int64_t packed_words(const std::string& kind, int64_t N, int64_t K) {
    const PackedMatrix p{nullptr, packed_kind(kOp, kind), N, K, nullptr};
    return p.panels() * p.panel_bytes() / 4;
}

void pack(py::object weight_, py::object data_, py::object scale_, const std::string& kind,
          int64_t N, int64_t K, int64_t first, bool gated) {
    const TensorArg weight = borrow(kOp, "weight", weight_), data = borrow(kOp, "data", data_);
    const TensorArg scale = borrow_optional(kOp, "scale", scale_);
    check_dtype(weight, {DType::kF32, DType::kBF16});
    refuse_cuda(weight);
    check_dims(weight, "(N, K)", 2);
    const int64_t rows = weight.shape[0];
    const LinearPackArgs args{matrix(weight), packed_matrix(kOp, data, scale, kind, N, K), first,
                              gated};
    check_shape(weight, "(rows, K)", {rows, K});
    const bool fits =
        gated ? (first == 0 || first == 16) && 2 * rows == N : first >= 0 && first + rows <= N;
    if (!fits) {
        bad("weight of " + std::to_string(rows) + " rows from output " + std::to_string(first) +
            " must fit N = " + std::to_string(N) + (gated ? ", gated" : ""));
    }
    py::gil_scoped_release release;
    cpu::linear_pack(args);
}

void forward(py::object x_, py::object data_, py::object scale_, const std::string& kind, int64_t N,
             int64_t K, py::object bias_, const std::string& epilogue, const py::list& y_) {
    const TensorArg x = borrow(kOp, "x", x_), data = borrow(kOp, "data", data_);
    const TensorArg scale = borrow_optional(kOp, "scale", scale_);
    const TensorArg bias = borrow_optional(kOp, "bias", bias_);
    LinearForwardArgs args;
    args.weight = packed_matrix(kOp, data, scale, kind, N, K);
    check_dims(x, "(T, K)", 2);
    check_dtype(x, {args.weight.kind == PackedKind::kF32 ? DType::kF32 : DType::kBF16});
    refuse_cuda(x);
    const int64_t T = x.shape[0];
    check_shape(x, "(T, K)", {T, K});
    check_dtype(bias, {DType::kF32});
    check_shape(bias, "(N,)", {N});
    args.x = matrix(x);
    args.bias = vector(bias);
    if (epilogue == "add") {
        args.epilogue = LinearEpilogue::kAdd;
    } else if (epilogue == "silu_gate") {
        args.epilogue = LinearEpilogue::kSiluGate;
    } else if (epilogue == "gelu_tanh") {
        args.epilogue = LinearEpilogue::kGelu;
    } else if (epilogue != "store") {
        bad("epilogue must be 'store', 'add', 'silu_gate' or 'gelu_tanh' but is '" + epilogue +
            "'");
    }
    const bool gated = args.epilogue == LinearEpilogue::kSiluGate;
    if (y_.empty() || y_.size() > kMaxLinearOutputs) {
        bad("y must be 1 to 3 tensors but is " + std::to_string(y_.size()));
    }
    int64_t columns = 0;
    args.outputs = 0;
    for (const py::handle& item : y_) {
        const TensorArg y = borrow(kOp, "y", item);
        if (args.epilogue == LinearEpilogue::kAdd) {
            check_dtype(y, {DType::kF32});
        } else {
            check_dtype(y, {DType::kF32, DType::kBF16});
        }
        check_same_device(x, {&y});
        check_dims(y, "(T, columns)", 2);
        check_shape(y, "(T, columns)", {T, y.shape[1]});
        args.y[args.outputs] = matrix(y);
        columns += args.y[args.outputs++].cols;
    }
    const int64_t expected = gated ? N / 2 : N;
    if (columns != expected) {
        bad("y must have " + std::to_string(expected) + " columns in all but has " +
            std::to_string(columns));
    }
    if (gated && N % 2 != 0) bad("N of a gated pair must be even but is " + std::to_string(N));
    py::gil_scoped_release release;
    cpu::linear_forward(args);
}

}  // namespace

void bind_linear(py::module_& m) {
    m.def("linear_packed_words", &packed_words, py::arg("kind"), py::arg("N"), py::arg("K"));
    m.def("linear_pack", &pack, py::arg("weight"), py::arg("data"), py::arg("scale").none(true),
          py::arg("kind"), py::arg("N"), py::arg("K"), py::arg("first"), py::arg("gated"));
    m.def("linear_forward", &forward, py::arg("x"), py::arg("data"), py::arg("scale").none(true),
          py::arg("kind"), py::arg("N"), py::arg("K"), py::arg("bias").none(true),
          py::arg("epilogue"), py::arg("y"));
}

}  // namespace pe::bindings
