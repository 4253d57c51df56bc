#include "bind.h"
#include "check.h"
#include "pyengine/ops/rope.h"

namespace pe::bindings::rope {
namespace {

constexpr const char* kOp = "rope";

// (T, heads, head_dim) as a matrix of T rows: the heads of a row lie side by side.
MatrixView rows_of_heads(const TensorArg& t) {
    const int64_t T = t.shape[0], heads = t.shape[1], head_dim = t.shape[2];
    if (t.strides[2] != 1) {
        value_error(t, "must have a contiguous last dimension but its stride is " +
                           std::to_string(t.strides[2]));
    }
    if (heads > 1 && t.strides[1] != head_dim) {
        value_error(t, "must have its heads side by side, " + std::to_string(head_dim) +
                           " apart, but their stride is " + std::to_string(t.strides[1]));
    }
    const int64_t columns = heads * head_dim;
    return {t.data, t.dtype, T, columns, T > 1 ? t.strides[0] : columns};
}

// On CUDA they cannot be read without waiting: the kernel writes NaN for a position outside.
void check_positions(const TensorArg& positions, const VectorView& ids, int64_t P) {
    if (positions.is_cuda) return;
    const int64_t* id = static_cast<const int64_t*>(ids.data);
    for (int64_t t = 0; t < ids.size; ++t) {
        if (id[t] < 0 || id[t] >= P) {
            value_error(positions, "must be in [0, " + std::to_string(P) + ") but positions[" +
                                       std::to_string(t) + "] = " + std::to_string(id[t]));
        }
    }
}

void rope(py::object x_, py::object cos_, py::object sin_, py::object positions_, py::object y_,
          bool inverse, uintptr_t stream) {
    const TensorArg x = borrow(kOp, "x", x_), cos = borrow(kOp, "cos", cos_);
    const TensorArg sin = borrow(kOp, "sin", sin_), y = borrow(kOp, "y", y_);
    const TensorArg positions = borrow(kOp, "positions", positions_);
    for (const TensorArg* t : {&x, &y}) check_dtype(*t, {DType::kF32, DType::kBF16});
    for (const TensorArg* t : {&cos, &sin}) check_dtype(*t, {DType::kF32});
    check_dtype(positions, {DType::kI64});
    check_dims(x, "(T, heads, head_dim)", 3);
    const int64_t T = x.shape[0], heads = x.shape[1], head_dim = x.shape[2];
    if (head_dim < 2 || head_dim % 2 != 0)
        value_error(x, "must have an even head_dim >= 2 but got shape " + x.shape_text());
    check_dims(cos, "(P, head_dim / 2)", 2);
    const int64_t P = cos.shape[0];
    for (const TensorArg* t : {&cos, &sin}) check_shape(*t, "(P, head_dim / 2)", {P, head_dim / 2});
    check_shape(positions, "(T,)", {T});
    check_shape(y, "(T, heads, head_dim)", {T, heads, head_dim});
    check_same_device(x, {&cos, &sin, &positions, &y});
    check_cuda_built(x);
    const RopeArgs args{.x = rows_of_heads(x),
                        .head_dim = head_dim,
                        .cos = matrix(cos),
                        .sin = matrix(sin),
                        .positions = vector(positions),
                        .y = rows_of_heads(y),
                        .inverse = inverse};
    check_positions(positions, args.positions, P);
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (x.is_cuda) return check_cuda_status(kOp, cuda::rope(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::rope(args);
}

}  // namespace

void bind(py::module_& m) {
    m.def("rope", &rope, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("positions"),
          py::arg("y"), py::arg("inverse"), py::arg("stream") = 0);
}

}  // namespace pe::bindings::rope
