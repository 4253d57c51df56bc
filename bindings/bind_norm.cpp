#include "bind.h"
#include "check.h"
#include "pyengine/ops/layer_norm.h"
#include "pyengine/ops/rms_norm.h"

namespace pe::bindings::norm {
namespace {

constexpr const char* kRmsNorm = "rms_norm";
constexpr const char* kLayerNorm = "layer_norm";

void check_eps(const char* op, float eps) {
    if (!(eps >= 0.0f)) {
        throw py::value_error("[" + std::string(op) + "] eps must be >= 0 but is " +
                              std::to_string(eps));
    }
}

void rms_forward(py::object x_, py::object weight_, float eps, py::object y_, py::object rstd_,
                 uintptr_t stream) {
    const TensorArg x = borrow(kRmsNorm, "x", x_), weight = borrow(kRmsNorm, "weight", weight_);
    const TensorArg y = borrow(kRmsNorm, "y", y_), rstd = borrow_optional(kRmsNorm, "rstd", rstd_);
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
    check_eps(kRmsNorm, eps);
    const RmsNormForwardArgs args{
        .x = matrix(x), .weight = vector(weight), .eps = eps, .y = matrix(y), .rstd = vector(rstd)};
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (x.is_cuda)
        return check_cuda_status(kRmsNorm,
                                 cuda::rms_norm_forward(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::rms_norm_forward(args);
}

void rms_backward(py::object dy_, py::object x_, py::object weight_, py::object rstd_,
                  py::object dx_, py::object dweight_, uintptr_t stream) {
    const TensorArg dy = borrow(kRmsNorm, "dy", dy_), x = borrow(kRmsNorm, "x", x_);
    const TensorArg weight = borrow(kRmsNorm, "weight", weight_),
                    rstd = borrow(kRmsNorm, "rstd", rstd_);
    const TensorArg dx = borrow_optional(kRmsNorm, "dx", dx_);
    const TensorArg dweight = borrow_optional(kRmsNorm, "dweight", dweight_);
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
        return check_cuda_status(kRmsNorm,
                                 cuda::rms_norm_backward(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::rms_norm_backward(args);
}

void layer_forward(py::object x_, py::object weight_, py::object bias_, float eps, py::object y_,
                   py::object mean_, py::object rstd_, uintptr_t stream) {
    const char* op = kLayerNorm;
    const TensorArg x = borrow(op, "x", x_), weight = borrow(op, "weight", weight_);
    const TensorArg bias = borrow(op, "bias", bias_), y = borrow(op, "y", y_);
    const TensorArg mean = borrow_optional(op, "mean", mean_);
    const TensorArg rstd = borrow_optional(op, "rstd", rstd_);
    for (const TensorArg* t : {&x, &weight, &bias, &y})
        check_dtype(*t, {DType::kF32, DType::kBF16});
    for (const TensorArg* t : {&mean, &rstd}) check_dtype(*t, {DType::kF32});
    check_dims(x, "(N, D)", 2);
    const int64_t N = x.shape[0], D = x.shape[1];
    if (D < 1) value_error(x, "must have D >= 1 but got shape " + x.shape_text());
    for (const TensorArg* t : {&weight, &bias}) check_shape(*t, "(D,)", {D});
    check_shape(y, "(N, D)", {N, D});
    for (const TensorArg* t : {&mean, &rstd}) check_shape(*t, "(N,)", {N});
    check_same_device(x, {&weight, &bias, &y, &mean, &rstd});
    check_cuda_built(x);
    check_eps(op, eps);
    const LayerNormForwardArgs args{.x = matrix(x),
                                    .weight = vector(weight),
                                    .bias = vector(bias),
                                    .eps = eps,
                                    .y = matrix(y),
                                    .mean = vector(mean),
                                    .rstd = vector(rstd)};
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (x.is_cuda)
        return check_cuda_status(op,
                                 cuda::layer_norm_forward(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::layer_norm_forward(args);
}

void layer_backward(py::object dy_, py::object x_, py::object weight_, py::object mean_,
                    py::object rstd_, py::object dx_, py::object dweight_, py::object dbias_,
                    uintptr_t stream) {
    const char* op = kLayerNorm;
    const TensorArg dy = borrow(op, "dy", dy_), x = borrow(op, "x", x_);
    const TensorArg weight = borrow(op, "weight", weight_);
    const TensorArg mean = borrow(op, "mean", mean_), rstd = borrow(op, "rstd", rstd_);
    const TensorArg dx = borrow_optional(op, "dx", dx_);
    const TensorArg dweight = borrow_optional(op, "dweight", dweight_);
    const TensorArg dbias = borrow_optional(op, "dbias", dbias_);
    for (const TensorArg* t : {&dy, &x, &weight}) check_dtype(*t, {DType::kF32, DType::kBF16});
    check_dtype(dx, {x.dtype});
    for (const TensorArg* t : {&mean, &rstd, &dweight, &dbias}) check_dtype(*t, {DType::kF32});
    check_dims(x, "(N, D)", 2);
    const int64_t N = x.shape[0], D = x.shape[1];
    for (const TensorArg* t : {&dy, &dx}) check_shape(*t, "(N, D)", {N, D});
    for (const TensorArg* t : {&weight, &dweight, &dbias}) check_shape(*t, "(D,)", {D});
    for (const TensorArg* t : {&mean, &rstd}) check_shape(*t, "(N,)", {N});
    check_same_device(x, {&dy, &weight, &mean, &rstd, &dx, &dweight, &dbias});
    check_cuda_built(x);
    const LayerNormBackwardArgs args{.dy = matrix(dy),
                                     .x = matrix(x),
                                     .weight = vector(weight),
                                     .mean = vector(mean),
                                     .rstd = vector(rstd),
                                     .dx = matrix(dx),
                                     .dweight = vector(dweight),
                                     .dbias = vector(dbias)};
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (x.is_cuda)
        return check_cuda_status(op,
                                 cuda::layer_norm_backward(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::layer_norm_backward(args);
}

}  // namespace

void bind(py::module_& m) {
    m.def("layer_norm_forward", &layer_forward, py::arg("x"), py::arg("weight"), py::arg("bias"),
          py::arg("eps"), py::arg("y"), py::arg("mean").none(true), py::arg("rstd").none(true),
          py::arg("stream") = 0);
    m.def("layer_norm_backward", &layer_backward, py::arg("dy"), py::arg("x"), py::arg("weight"),
          py::arg("mean"), py::arg("rstd"), py::arg("dx").none(true), py::arg("dweight").none(true),
          py::arg("dbias").none(true), py::arg("stream") = 0);
    m.def("rms_norm_forward", &rms_forward, py::arg("x"), py::arg("weight"), py::arg("eps"),
          py::arg("y"), py::arg("rstd").none(true), py::arg("stream") = 0);
    m.def("rms_norm_backward", &rms_backward, py::arg("dy"), py::arg("x"), py::arg("weight"),
          py::arg("rstd"), py::arg("dx").none(true), py::arg("dweight").none(true),
          py::arg("stream") = 0);
}

}  // namespace pe::bindings::norm
