#include <cmath>
#include <optional>
#include <sstream>
#include <variant>
#include <vector>

#include <pybind11/stl.h>

#include "bind.h"
#include "check.h"
#include "pyengine/ops/adamw.h"
#include "pyengine/ops/lion.h"

namespace pe::bindings::optimizer {
namespace {

struct Hyperparameters {
    int64_t step;
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
};

void check_number(const char* op, const char* name, double x, bool valid, const char* rule) {
    if (valid) return;
    std::ostringstream text;
    text << "[" << op << "] " << name << " must be " << rule << " but is " << x;
    throw py::value_error(text.str());
}

constexpr const char* kFinite = "finite and >= 0";

bool at_least_0(double x) { return std::isfinite(x) && x >= 0.0; }

float f32(double x) { return static_cast<float>(x); }

AdamWScalars scalars(const Hyperparameters& h) {
    const char* finite = kFinite;
    check_number("adamw", "step", static_cast<double>(h.step), h.step >= 1, ">= 1");
    check_number("adamw", "lr", h.lr, at_least_0(h.lr), finite);
    check_number("adamw", "beta1", h.beta1, h.beta1 >= 0.0 && h.beta1 < 1.0, "in [0, 1)");
    check_number("adamw", "beta2", h.beta2, h.beta2 >= 0.0 && h.beta2 < 1.0, "in [0, 1)");
    check_number("adamw", "eps", h.eps, std::isfinite(h.eps) && h.eps > 0.0, "finite and > 0");
    check_number("adamw", "weight_decay", h.weight_decay, at_least_0(h.weight_decay), finite);
    check_number("adamw", "grad_scale", h.grad_scale, at_least_0(h.grad_scale), finite);
    const auto t = static_cast<double>(h.step);
    return {.grad_scale = f32(h.grad_scale),
            .decay = f32(1.0 - h.lr * h.weight_decay),
            .beta1 = f32(h.beta1),
            .one_minus_beta1 = f32(1.0 - h.beta1),
            .beta2 = f32(h.beta2),
            .one_minus_beta2 = f32(1.0 - h.beta2),
            .step_size = f32(h.lr / (1.0 - std::pow(h.beta1, t))),
            .inverse_root = f32(1.0 / std::sqrt(1.0 - std::pow(h.beta2, t))),
            .eps = f32(h.eps)};
}

// A contiguous tensor of any shape as (n,).
VectorView flat(const TensorArg& t) {
    int64_t stride = 1;
    const int64_t n = t.numel();
    for (int i = t.ndim - 1; i >= 0 && n > 0; --i) {
        if (t.shape[i] > 1 && t.strides[i] != stride) {
            value_error(t, "must be contiguous but its stride in dimension " + std::to_string(i) +
                               " is " + std::to_string(t.strides[i]));
        }
        stride *= t.shape[i];
    }
    return {t.data, t.dtype, n};
}

TensorArg borrow_as(const char* name, py::handle object, DType dtype, const char* op = "adamw") {
    const TensorArg t = borrow(op, name, object);
    check_dtype(t, {dtype});
    return t;
}

void check_like(const TensorArg& t, const TensorArg& param) {
    if (t.shape_text() != param.shape_text()) {
        value_error(
            t, "must have the shape of param " + param.shape_text() + " but got " + t.shape_text());
    }
}

// One name for the kernels: the CPU's, and with a stream CUDA's.
void kernel(const AdamWArgs& a) { cpu::adamw_step(a); }
void kernel(const AdamW8bitArgs& a) { cpu::adamw_step_8bit(a); }
void kernel(const LionArgs& a) { cpu::lion_step(a); }
void kernel(const AdamWSumSquaresArgs& a) { cpu::adamw_sum_squares(a); }

#ifdef PE_WITH_CUDA
int kernel(const AdamWArgs& a, void* stream) { return cuda::adamw_step(a, stream); }
int kernel(const AdamW8bitArgs& a, void* stream) { return cuda::adamw_step_8bit(a, stream); }
int kernel(const LionArgs& a, void* stream) { return cuda::lion_step(a, stream); }
int kernel(const AdamWSumSquaresArgs& a, void* stream) {
    return cuda::adamw_sum_squares(a, stream);
}
#endif

template <typename Args>
void run_on(const TensorArg& device, const Args& args, uintptr_t stream) {
#ifdef PE_WITH_CUDA
    if (device.is_cuda)
        return check_cuda_status(device.op, kernel(args, reinterpret_cast<void*>(stream)));
#endif
    (void)device, (void)stream;
    kernel(args);
}

// The parameter of one of many entries, whose kernels share a stream: on the first one's device.
TensorArg borrow_param(const char* op, py::handle object, std::optional<TensorArg>& first) {
    const TensorArg param = borrow_as("param", object, DType::kF32, op);
    if (!first) (first = param)->name = "the first param";
    check_same_device(*first, {&param});
    return param;
}

AdamWArgs adamw_args(const TensorArg& param, py::handle grad_, py::handle exp_avg_,
                     py::handle exp_avg_sq_, const AdamWScalars& scalars) {
    const TensorArg grad = borrow_as("grad", grad_, DType::kF32);
    const TensorArg m = borrow_as("exp_avg", exp_avg_, DType::kF32);
    const TensorArg v = borrow_as("exp_avg_sq", exp_avg_sq_, DType::kF32);
    for (const TensorArg* t : {&grad, &m, &v}) check_like(*t, param);
    check_same_device(param, {&grad, &m, &v});
    check_cuda_built(param);
    return {.param = flat(param),
            .grad = flat(grad),
            .exp_avg = flat(m),
            .exp_avg_sq = flat(v),
            .scalars = scalars};
}

AdamW8bitArgs adamw_8bit_args(const TensorArg& param, py::handle grad_, py::handle exp_avg_,
                              py::handle exp_avg_absmax_, py::handle exp_avg_sq_,
                              py::handle exp_avg_sq_absmax_, const AdamWScalars& scalars) {
    const TensorArg grad = borrow_as("grad", grad_, DType::kF32);
    const TensorArg m = borrow_as("exp_avg", exp_avg_, DType::kU8);
    const TensorArg v = borrow_as("exp_avg_sq", exp_avg_sq_, DType::kU8);
    const TensorArg m_absmax = borrow_as("exp_avg_absmax", exp_avg_absmax_, DType::kF32);
    const TensorArg v_absmax = borrow_as("exp_avg_sq_absmax", exp_avg_sq_absmax_, DType::kF32);
    for (const TensorArg* t : {&grad, &m, &v}) check_like(*t, param);
    const int64_t blocks = (param.numel() + kAdamWBlock - 1) / kAdamWBlock;
    for (const TensorArg* t : {&m_absmax, &v_absmax}) check_shape(*t, "(ceil(n/256),)", {blocks});
    check_same_device(param, {&grad, &m, &m_absmax, &v, &v_absmax});
    check_cuda_built(param);
    return {.param = flat(param),
            .grad = flat(grad),
            .exp_avg = flat(m),
            .exp_avg_absmax = flat(m_absmax),
            .exp_avg_sq = flat(v),
            .exp_avg_sq_absmax = flat(v_absmax),
            .scalars = scalars};
}

void adamw_step(py::object param_, py::object grad, py::object exp_avg, py::object exp_avg_sq,
                int64_t step, double lr, double beta1, double beta2, double eps,
                double weight_decay, double grad_scale, uintptr_t stream) {
    const TensorArg param = borrow_as("param", param_, DType::kF32);
    const AdamWArgs args =
        adamw_args(param, grad, exp_avg, exp_avg_sq,
                   scalars({step, lr, beta1, beta2, eps, weight_decay, grad_scale}));
    py::gil_scoped_release release;
    run_on(param, args, stream);
}

void adamw_step_8bit(py::object param_, py::object grad, py::object exp_avg,
                     py::object exp_avg_absmax, py::object exp_avg_sq, py::object exp_avg_sq_absmax,
                     int64_t step, double lr, double beta1, double beta2, double eps,
                     double weight_decay, double grad_scale, uintptr_t stream) {
    const TensorArg param = borrow_as("param", param_, DType::kF32);
    const AdamW8bitArgs args =
        adamw_8bit_args(param, grad, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax,
                        scalars({step, lr, beta1, beta2, eps, weight_decay, grad_scale}));
    py::gil_scoped_release release;
    run_on(param, args, stream);
}

// Every parameter of a model: (param, grad, exp_avg, exp_avg_sq), or with codes and absmax of both
// moments. All are checked before the first is written, and Python sees nothing in between.
void adamw_steps(const std::vector<py::tuple>& entries, int64_t step, double lr, double beta1,
                 double beta2, double eps, double weight_decay, double grad_scale,
                 uintptr_t stream) {
    const AdamWScalars shared = scalars({step, lr, beta1, beta2, eps, weight_decay, grad_scale});
    std::vector<std::variant<AdamWArgs, AdamW8bitArgs>> all;
    std::optional<TensorArg> first;
    for (const py::tuple& e : entries) {
        if (e.size() != 4 && e.size() != 6) {
            throw py::value_error("[adamw] an entry must be 4 or 6 tensors but is " +
                                  std::to_string(e.size()));
        }
        const TensorArg param = borrow_param("adamw", e[0], first);
        if (e.size() == 4) {
            all.emplace_back(adamw_args(param, e[1], e[2], e[3], shared));
        } else {
            all.emplace_back(adamw_8bit_args(param, e[1], e[2], e[3], e[4], e[5], shared));
        }
    }
    py::gil_scoped_release release;
    for (const auto& each : all)
        std::visit([&](const auto& args) { run_on(*first, args, stream); }, each);
}

LionArgs lion_args(const TensorArg& param, py::handle grad_, py::handle exp_avg_,
                   const LionScalars& scalars) {
    const TensorArg grad = borrow_as("grad", grad_, DType::kF32, "lion");
    const TensorArg m = borrow_as("exp_avg", exp_avg_, DType::kF32, "lion");
    for (const TensorArg* t : {&grad, &m}) check_like(*t, param);
    check_same_device(param, {&grad, &m});
    check_cuda_built(param);
    return {.param = flat(param), .grad = flat(grad), .exp_avg = flat(m), .scalars = scalars};
}

// Every parameter of a model: (param, grad, exp_avg). As adamw_steps.
void lion_step(const std::vector<py::tuple>& entries, double lr, double beta1, double beta2,
               double weight_decay, double grad_scale, uintptr_t stream) {
    check_number("lion", "lr", lr, at_least_0(lr), kFinite);
    check_number("lion", "beta1", beta1, beta1 >= 0.0 && beta1 < 1.0, "in [0, 1)");
    check_number("lion", "beta2", beta2, beta2 >= 0.0 && beta2 < 1.0, "in [0, 1)");
    check_number("lion", "weight_decay", weight_decay, at_least_0(weight_decay), kFinite);
    check_number("lion", "grad_scale", grad_scale, at_least_0(grad_scale), kFinite);
    const LionScalars shared{.grad_scale = f32(grad_scale),
                             .decay = f32(1.0 - lr * weight_decay),
                             .lr = f32(lr),
                             .one_minus_beta1 = f32(1.0 - beta1),
                             .one_minus_beta2 = f32(1.0 - beta2)};
    std::vector<LionArgs> all;
    std::optional<TensorArg> first;
    for (const py::tuple& e : entries) {
        if (e.size() != 3) {
            throw py::value_error("[lion] an entry must be 3 tensors but is " +
                                  std::to_string(e.size()));
        }
        all.push_back(lion_args(borrow_param("lion", e[0], first), e[1], e[2], shared));
    }
    py::gil_scoped_release release;
    for (const LionArgs& args : all) run_on(*first, args, stream);
}

// On the CPU alone: a sum from a GPU would have to be waited for.
double sum_squares(const py::list& grads) {
    std::vector<VectorView> views;
    for (const py::handle& object : grads) {
        const TensorArg grad = borrow_as("grad", object, DType::kF32);
        if (grad.is_cuda) value_error(grad, "must be on the CPU but is on " + grad.device_text());
        views.push_back(flat(grad));
    }
    py::gil_scoped_release release;
    double total = 0.0;
    for (const VectorView& grad : views) {
        double partial[kAdamWSquaresParts];
        cpu::adamw_sum_squares({.grad = grad, .partial = partial});
        for (const double part : partial) total += part;
    }
    return total;
}

// What sum_squares adds, in order, of gradients on any device: nothing waits.
void square_parts(const py::list& grads, py::object parts_, uintptr_t stream) {
    const TensorArg parts = borrow_as("parts", parts_, DType::kF64);
    check_shape(parts, "(gradients, 64)", {static_cast<int64_t>(grads.size()), kAdamWSquaresParts});
    check_cuda_built(parts);
    auto* partial = ptr<double>(flat(parts));
    std::vector<AdamWSumSquaresArgs> all;
    for (const py::handle& object : grads) {
        const TensorArg grad = borrow_as("grad", object, DType::kF32);
        check_same_device(parts, {&grad});
        all.push_back({.grad = flat(grad), .partial = partial});
        partial += kAdamWSquaresParts;
    }
    py::gil_scoped_release release;
    for (const AdamWSumSquaresArgs& args : all) run_on(parts, args, stream);
}

}  // namespace

void bind(py::module_& m) {
    m.def("adamw_step", &adamw_step, py::arg("param"), py::arg("grad"), py::arg("exp_avg"),
          py::arg("exp_avg_sq"), py::arg("step"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
          py::arg("eps"), py::arg("weight_decay"), py::arg("grad_scale"), py::arg("stream") = 0);
    m.def("adamw_step_8bit", &adamw_step_8bit, py::arg("param"), py::arg("grad"),
          py::arg("exp_avg"), py::arg("exp_avg_absmax"), py::arg("exp_avg_sq"),
          py::arg("exp_avg_sq_absmax"), py::arg("step"), py::arg("lr"), py::arg("beta1"),
          py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("grad_scale"),
          py::arg("stream") = 0);
    m.def("adamw_steps", &adamw_steps, py::arg("entries"), py::arg("step"), py::arg("lr"),
          py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
          py::arg("grad_scale"), py::arg("stream") = 0);
    m.def("lion_step", &lion_step, py::arg("entries"), py::arg("lr"), py::arg("beta1"),
          py::arg("beta2"), py::arg("weight_decay"), py::arg("grad_scale"), py::arg("stream") = 0);
    m.def("adamw_sum_squares", &sum_squares, py::arg("grads"));
    m.def("adamw_square_parts", &square_parts, py::arg("grads"), py::arg("parts"),
          py::arg("stream") = 0);
}

}  // namespace pe::bindings::optimizer
