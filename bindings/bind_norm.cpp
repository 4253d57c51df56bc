#include "bind.h"
#include "check.h"
#include "pyengine/ops/rms_norm.h"

namespace pe::bindings {
namespace {

constexpr const char* kOp = "rms_norm";

void forward(py::object x_, py::object weight_, float eps, py::object y_, py::object rstd_,
             uintptr_t stream) {
    const TensorArg x = borrow(kOp, "x", x_), weight = borrow(kOp, "weight", weight_);
    const TensorArg y = borrow(kOp, "y", y_), rstd = borrow_optional(kOp, "rstd", rstd_);
    for (const TensorArg* t : {&x, &weight, &y}) check_dtype(*t, {DType::kF32, DType::kBF16});
    check_dtype(rstd, {DType::kF32});
    check_dims(x, "(N, D)", 2);
    const int64_t N = x.shape[0], D = x.shape[1];
    if (D < 1) value_error(x, "must have D >= 1 but got shape " + x.shape_text());
    check_shape(weight, "(D,)", {D});
    check_shape(y, "(N, D)", {N, D});
    check_shape(rstd, "(N,)", {N});
    check_same_device(x, {&weight, &y, &rstd});
    check_cuda_built(x);
    if (!(eps >= 0.0f))
        throw py::value_error("[rms_norm] eps must be >= 0 but is " + std::to_string(eps));
    const RmsNormForwardArgs args{
        .x = matrix(x), .weight = vector(weight), .eps = eps, .y = matrix(y), .rstd = vector(rstd)};
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (x.is_cuda)
        return check_cuda_status(kOp,
                                 cuda::rms_norm_forward(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::rms_norm_forward(args);
}

void backward(py::object dy_, py::object x_, py::object weight_, py::object rstd_, py::object dx_,
              py::object dweight_, uintptr_t stream) {
    const TensorArg dy = borrow(kOp, "dy", dy_), x = borrow(kOp, "x", x_);
    const TensorArg weight = borrow(kOp, "weight", weight_), rstd = borrow(kOp, "rstd", rstd_);
    const TensorArg dx = borrow_optional(kOp, "dx", dx_);
    const TensorArg dweight = borrow_optional(kOp, "dweight", dweight_);
    for (const TensorArg* t : {&dy, &x, &weight}) check_dtype(*t, {DType::kF32, DType::kBF16});
    check_dtype(rstd, {DType::kF32});
    check_dtype(dx, {x.dtype});
    check_dtype(dweight, {DType::kF32});
    check_dims(x, "(N, D)", 2);
    const int64_t N = x.shape[0], D = x.shape[1];
    check_shape(dy, "(N, D)", {N, D});
    check_shape(weight, "(D,)", {D});
    check_shape(rstd, "(N,)", {N});
    check_shape(dx, "(N, D)", {N, D});
    check_shape(dweight, "(D,)", {D});
    check_same_device(x, {&dy, &weight, &rstd, &dx, &dweight});
    check_cuda_built(x);
    const RmsNormBackwardArgs args{.dy = matrix(dy),
                                   .x = matrix(x),
                                   .weight = vector(weight),
                                   .rstd = vector(rstd),
                                   .dx = matrix(dx),
                                   .dweight = vector(dweight)};
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (x.is_cuda)
        return check_cuda_status(kOp,
                                 cuda::rms_norm_backward(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::rms_norm_backward(args);
}

}  // namespace

void bind_norm(py::module_& m) {
    m.def("rms_norm_forward", &forward, py::arg("x"), py::arg("weight"), py::arg("eps"),
          py::arg("y"), py::arg("rstd").none(true), py::arg("stream") = 0);
    m.def("rms_norm_backward", &backward, py::arg("dy"), py::arg("x"), py::arg("weight"),
          py::arg("rstd"), py::arg("dx").none(true), py::arg("dweight").none(true),
          py::arg("stream") = 0);
}

}  // namespace pe::bindings
