#include <memory>
#include <vector>

#include "bind.h"
#include "check.h"
#include "packed_arg.h"
#include "pyengine/linear_pack_file.h"
#include "pyengine/ops/linear.h"
#include "pyengine/parallel.h"

namespace pe::bindings::linear {
namespace {

constexpr const char* kOp = "linear";

[[noreturn]] void bad(const std::string& what) {
    throw py::value_error("[" + std::string(kOp) + "] " + what);
}

int64_t packed_words(const std::string& kind, int64_t N, int64_t K) {
    const PackedMatrix p{nullptr, packed_kind(kOp, kind), N, K, nullptr};
    return p.panels() * p.panel_bytes() / 4;
}

void check_rows_fit(int64_t rows, int64_t N, int64_t first, bool gated) {
    const bool fits =
        gated ? (first == 0 || first == 16) && 2 * rows == N : first >= 0 && first + rows <= N;
    if (!fits) {
        bad("weight of " + std::to_string(rows) + " rows from output " + std::to_string(first) +
            " must fit N = " + std::to_string(N) + (gated ? ", gated" : ""));
    }
}

void pack(py::object weight_, py::object data_, py::object scale_, const std::string& kind,
          int64_t N, int64_t K, int64_t first, bool gated, uintptr_t stream) {
    const TensorArg weight = borrow(kOp, "weight", weight_), data = borrow(kOp, "data", data_);
    const TensorArg scale = borrow_optional(kOp, "scale", scale_);
    check_dtype(weight, {DType::kF32, DType::kBF16});
    check_same_device(weight, {&data, &scale});
    check_cuda_built(weight);
    check_dims(weight, "(N, K)", 2);
    const int64_t rows = weight.shape[0];
    const LinearPackArgs args{matrix(weight), packed_matrix(kOp, data, scale, kind, N, K), first,
                              gated};
    check_shape(weight, "(rows, K)", {rows, K});
    check_rows_fit(rows, N, first, gated);
    PE_RUN_KERNEL(kOp, linear_pack, args, weight, stream);
}

int pack_file(int file, int64_t at, bool pairs, int64_t rows, py::object data_, py::object scale_,
              const std::string& kind, int64_t N, int64_t K, int64_t first, bool gated) {
    const TensorArg data = borrow(kOp, "data", data_);
    const TensorArg scale = borrow_optional(kOp, "scale", scale_);
    if (data.is_cuda) value_error(data, "must be on the CPU but is on " + data.device_text());
    check_same_device(data, {&scale});
    check_rows_fit(rows, N, first, gated);
    const DType dtype = pairs ? DType::kBF16 : DType::kF32;
    const PackedMatrix packed = packed_matrix(kOp, data, scale, kind, N, K);
    const int threads = num_threads();
    const int64_t bytes = cpu::linear_pack_file_workspace_bytes(K, dtype, threads);
    py::gil_scoped_release release;
    const std::unique_ptr<char[]> workspace(new char[static_cast<size_t>(bytes)]);
    int error = 0;
    const MatrixView weight{nullptr, dtype, rows, K, K};
    cpu::linear_pack_file(
        {{weight, packed, first, gated}, file, at, workspace.get(), threads, &error});
    return error;
}

void pack_columns(py::object weight_, py::object data_, const std::string& kind, int64_t N,
                  int64_t K, int64_t first, uintptr_t stream) {
    const TensorArg weight = borrow(kOp, "weight", weight_), data = borrow(kOp, "data", data_);
    check_dtype(weight, {DType::kF32, DType::kBF16});
    check_same_device(weight, {&data});
    check_cuda_built(weight);
    check_dims(weight, "(rows, N)", 2);
    check_shape(weight, "(rows, N)", {weight.shape[0], N});
    if (kind == "int8") bad("kind must be 'float32' or 'bfloat16' for columns but is 'int8'");
    const TensorArg no_scale = borrow_optional(kOp, "scale", py::none());
    const LinearPackColumnsArgs args{matrix(weight), packed_matrix(kOp, data, no_scale, kind, N, K),
                                     first};
    if (first < 0 || first + args.weight.rows > K) {
        bad("weight of " + std::to_string(args.weight.rows) + " rows from element " +
            std::to_string(first) + " must fit K = " + std::to_string(K));
    }
    PE_RUN_KERNEL(kOp, linear_pack_columns, args, weight, stream);
}

void transpose(py::object from_, py::object to_, const std::string& kind, int64_t N, int64_t K,
               bool gated, uintptr_t stream) {
    const TensorArg from = borrow(kOp, "data", from_), to = borrow(kOp, "out", to_);
    if (kind == "int8") bad("kind must be 'float32' or 'bfloat16' for columns but is 'int8'");
    if (gated && N % 2 != 0) bad("N of a gated pair must be even but is " + std::to_string(N));
    check_same_device(from, {&to});
    check_cuda_built(from);
    const TensorArg no_scale = borrow_optional(kOp, "scale", py::none());
    const LinearTransposeArgs args{packed_matrix(kOp, from, no_scale, kind, N, K),
                                   packed_matrix(kOp, to, no_scale, kind, K, N), gated};
    PE_RUN_KERNEL(kOp, linear_transpose, args, from, stream);
}

void forward(py::object x_, py::object data_, py::object scale_, const std::string& kind, int64_t N,
             int64_t K, py::object bias_, const std::string& epilogue, const py::list& y_,
             const py::list& kept_, uintptr_t stream) {
    const TensorArg x = borrow(kOp, "x", x_), data = borrow(kOp, "data", data_);
    const TensorArg scale = borrow_optional(kOp, "scale", scale_);
    const TensorArg bias = borrow_optional(kOp, "bias", bias_);
    LinearForwardArgs args;
    args.weight = packed_matrix(kOp, data, scale, kind, N, K);
    check_dims(x, "(T, K)", 2);
    check_dtype(x, {args.weight.kind == PackedKind::kF32 ? DType::kF32 : DType::kBF16});
    check_cuda_built(x);
    const int64_t T = x.shape[0];
    check_shape(x, "(T, K)", {T, K});
    check_dtype(bias, {DType::kF32});
    check_shape(bias, "(N,)", {N});
    check_same_device(x, {&data, &scale, &bias});
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
    const bool activated = gated || args.epilogue == LinearEpilogue::kGelu;
    const size_t pieces = gated ? 2 : 1;
    if (!kept_.empty() && (!activated || kept_.size() != pieces)) {
        bad("kept must be empty, or what the activation takes, but is " +
            std::to_string(kept_.size()) + " tensors");
    }
    for (size_t i = 0; i < kept_.size(); ++i) {
        const TensorArg kept = borrow(kOp, "kept", kept_[i]);
        check_dtype(kept, {DType::kF32, DType::kBF16});
        check_same_device(x, {&kept});
        check_shape(kept, "(T, columns)", {T, expected});
        args.kept[i] = matrix(kept);
    }
    PE_RUN_KERNEL(kOp, linear_forward, args, x, stream);
}

int64_t backward_bytes(int64_t rows, int64_t N, int64_t K, int64_t groups, DType x,
                       [[maybe_unused]] bool cuda) {
#ifdef PE_WITH_CUDA
    if (cuda) return cuda::linear_backward_workspace_bytes(rows, N, K, groups, x);
#endif
    return cpu::linear_backward_workspace_bytes(rows, N, K, groups, x);
}

int64_t backward_workspace_bytes(int64_t rows, int64_t N, int64_t K, int64_t groups, bool pairs,
                                 bool cuda) {
    return backward_bytes(rows, N, K, groups, pairs ? DType::kBF16 : DType::kF32, cuda);
}

void backward(py::object dy_, py::object x_, py::object groups_, py::object dweight_,
              py::object dbias_, py::object workspace_, uintptr_t stream) {
    const TensorArg dy = borrow(kOp, "dy", dy_), x = borrow(kOp, "x", x_);
    const TensorArg groups = borrow(kOp, "groups", groups_);
    const TensorArg dweight = borrow_optional(kOp, "dweight", dweight_);
    const TensorArg dbias = borrow_optional(kOp, "dbias", dbias_);
    const TensorArg workspace = borrow(kOp, "workspace", workspace_);
    check_dtype(dy, {DType::kF32, DType::kBF16});
    check_dtype(x, {DType::kF32, DType::kBF16});
    check_same_device(dy, {&x, &groups, &dweight, &dbias, &workspace});
    check_cuda_built(dy);
    check_dims(dy, "(T, N)", 2);
    check_dims(x, "(T, K)", 2);
    const int64_t T = dy.shape[0], N = dy.shape[1], K = x.shape[1];
    check_shape(dy, "(T, N)", {T, N});
    check_shape(x, "(T, K)", {T, K});
    const VectorView bounds = group_bounds(groups, T);
    check_dtype(dweight, {DType::kF32});
    check_shape(dweight, "(N, K)", {N, K});
    check_dtype(dbias, {DType::kF32});
    check_shape(dbias, "(N,)", {N});
    check_dims(workspace, "(bytes,)", 1);
    vector(workspace);
    const int64_t need = backward_bytes(T, N, K, groups.shape[0] - 1, x.dtype, x.is_cuda);
    const int64_t have = workspace.numel() * dtype_bytes(workspace.dtype);
    if (have < need) {
        value_error(workspace,
                    "must have " + std::to_string(need) + " bytes but has " + std::to_string(have));
    }
    const LinearBackwardArgs args{matrix(dy),      matrix(x),     bounds,
                                  matrix(dweight), vector(dbias), workspace.data};
    PE_RUN_KERNEL(kOp, linear_backward, args, x, stream);
}

void activation_backward(py::object dy_, py::object first_, py::object second_, py::object dx_,
                         py::object y_, uintptr_t stream) {
    const TensorArg dy = borrow(kOp, "dy", dy_), first = borrow(kOp, "kept", first_);
    const TensorArg y = borrow_optional(kOp, "y", y_);
    const TensorArg second = borrow_optional(kOp, "kept", second_), dx = borrow(kOp, "dx", dx_);
    for (const TensorArg* t : {&dy, &first, &dx}) check_dtype(*t, {DType::kF32, DType::kBF16});
    check_same_device(dy, {&first, &second, &dx, &y});
    check_cuda_built(dy);
    check_dims(dy, "(T, N)", 2);
    const int64_t T = dy.shape[0], N = dy.shape[1];
    check_shape(dy, "(T, N)", {T, N});
    check_shape(first, "(T, N)", {T, N});
    if (second.present()) check_dtype(second, {first.dtype});
    check_shape(second, "(T, N)", {T, N});
    check_shape(dx, second.present() ? "(T, 2 N)" : "(T, N)", {T, second.present() ? 2 * N : N});
    if (y.present()) check_dtype(y, {first.dtype});
    check_shape(y, "(T, N)", {T, N});
    const LinearActivationBackwardArgs args{
        matrix(dy), {matrix(first), matrix(second)}, matrix(dx), matrix(y)};
    PE_RUN_KERNEL(kOp, linear_activation_backward, args, dy, stream);
}

}  // namespace

void bind(py::module_& m) {
    m.def("linear_packed_words", &packed_words, py::arg("kind"), py::arg("N"), py::arg("K"));
    m.def("linear_pack", &pack, py::arg("weight"), py::arg("data"), py::arg("scale").none(true),
          py::arg("kind"), py::arg("N"), py::arg("K"), py::arg("first"), py::arg("gated"),
          py::arg("stream") = 0);
    m.def("linear_pack_file", &pack_file, py::arg("file"), py::arg("at"), py::arg("pairs"),
          py::arg("rows"), py::arg("data"), py::arg("scale").none(true), py::arg("kind"),
          py::arg("N"), py::arg("K"), py::arg("first"), py::arg("gated"));
    m.def("linear_forward", &forward, py::arg("x"), py::arg("data"), py::arg("scale").none(true),
          py::arg("kind"), py::arg("N"), py::arg("K"), py::arg("bias").none(true),
          py::arg("epilogue"), py::arg("y"), py::arg("kept"), py::arg("stream") = 0);
    m.def("linear_pack_columns", &pack_columns, py::arg("weight"), py::arg("data"), py::arg("kind"),
          py::arg("N"), py::arg("K"), py::arg("first"), py::arg("stream") = 0);
    m.def("linear_transpose", &transpose, py::arg("data"), py::arg("out"), py::arg("kind"),
          py::arg("N"), py::arg("K"), py::arg("gated"), py::arg("stream") = 0);
    m.def("linear_backward_workspace_bytes", &backward_workspace_bytes, py::arg("rows"),
          py::arg("N"), py::arg("K"), py::arg("groups"), py::arg("pairs"), py::arg("cuda") = false);
    m.def("linear_backward", &backward, py::arg("dy"), py::arg("x"), py::arg("groups"),
          py::arg("dweight").none(true), py::arg("dbias").none(true), py::arg("workspace"),
          py::arg("stream") = 0);
    m.def("linear_activation_backward", &activation_backward, py::arg("dy"), py::arg("first"),
          py::arg("second").none(true), py::arg("dx"), py::arg("y").none(true),
          py::arg("stream") = 0);
}

}  // namespace pe::bindings::linear
