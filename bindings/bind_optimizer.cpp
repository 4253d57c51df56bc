#include <cmath>
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

TensorArg borrow_on_cpu(const char* name, py::handle object, DType dtype,
                        const char* op = "adamw") {
    const TensorArg t = borrow(op, name, object);
    if (t.is_cuda) value_error(t, "must be on the CPU but is on " + t.device_text());
    check_dtype(t, {dtype});
    return t;
}

void check_like(const TensorArg& t, const TensorArg& param) {
    if (t.shape_text() != param.shape_text()) {
        value_error(
            t, "must have the shape of param " + param.shape_text() + " but got " + t.shape_text());
    }
}

AdamWArgs adamw_args(py::handle param_, py::handle grad_, py::handle exp_avg_,
                     py::handle exp_avg_sq_, const AdamWScalars& scalars) {
    const TensorArg param = borrow_on_cpu("param", param_, DType::kF32);
    const TensorArg grad = borrow_on_cpu("grad", grad_, DType::kF32);
    const TensorArg m = borrow_on_cpu("exp_avg", exp_avg_, DType::kF32);
    const TensorArg v = borrow_on_cpu("exp_avg_sq", exp_avg_sq_, DType::kF32);
    for (const TensorArg* t : {&grad, &m, &v}) check_like(*t, param);
    return {.param = flat(param),
            .grad = flat(grad),
            .exp_avg = flat(m),
            .exp_avg_sq = flat(v),
            .scalars = scalars};
}

AdamW8bitArgs adamw_8bit_args(py::handle param_, py::handle grad_, py::handle exp_avg_,
                              py::handle exp_avg_absmax_, py::handle exp_avg_sq_,
                              py::handle exp_avg_sq_absmax_, const AdamWScalars& scalars) {
    const TensorArg param = borrow_on_cpu("param", param_, DType::kF32);
    const TensorArg grad = borrow_on_cpu("grad", grad_, DType::kF32);
    const TensorArg m = borrow_on_cpu("exp_avg", exp_avg_, DType::kU8);
    const TensorArg v = borrow_on_cpu("exp_avg_sq", exp_avg_sq_, DType::kU8);
    const TensorArg m_absmax = borrow_on_cpu("exp_avg_absmax", exp_avg_absmax_, DType::kF32);
    const TensorArg v_absmax = borrow_on_cpu("exp_avg_sq_absmax", exp_avg_sq_absmax_, DType::kF32);
    for (const TensorArg* t : {&grad, &m, &v}) check_like(*t, param);
    const int64_t blocks = (param.numel() + kAdamWBlock - 1) / kAdamWBlock;
    for (const TensorArg* t : {&m_absmax, &v_absmax}) check_shape(*t, "(ceil(n/256),)", {blocks});
    return {.param = flat(param),
            .grad = flat(grad),
            .exp_avg = flat(m),
            .exp_avg_absmax = flat(m_absmax),
            .exp_avg_sq = flat(v),
            .exp_avg_sq_absmax = flat(v_absmax),
            .scalars = scalars};
}

void adamw_step(py::object param, py::object grad, py::object exp_avg, py::object exp_avg_sq,
                int64_t step, double lr, double beta1, double beta2, double eps,
                double weight_decay, double grad_scale) {
    const AdamWArgs args =
        adamw_args(param, grad, exp_avg, exp_avg_sq,
                   scalars({step, lr, beta1, beta2, eps, weight_decay, grad_scale}));
    py::gil_scoped_release release;
    cpu::adamw_step(args);
}

void adamw_step_8bit(py::object param, py::object grad, py::object exp_avg,
                     py::object exp_avg_absmax, py::object exp_avg_sq, py::object exp_avg_sq_absmax,
                     int64_t step, double lr, double beta1, double beta2, double eps,
                     double weight_decay, double grad_scale) {
    const AdamW8bitArgs args =
        adamw_8bit_args(param, grad, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax,
                        scalars({step, lr, beta1, beta2, eps, weight_decay, grad_scale}));
    py::gil_scoped_release release;
    cpu::adamw_step_8bit(args);
}

// Every parameter of a model: (param, grad, exp_avg, exp_avg_sq), or with codes and absmax of both
// moments. All are checked before the first is written, and Python sees nothing in between.
void adamw_steps(const std::vector<py::tuple>& entries, int64_t step, double lr, double beta1,
                 double beta2, double eps, double weight_decay, double grad_scale) {
    const AdamWScalars shared = scalars({step, lr, beta1, beta2, eps, weight_decay, grad_scale});
    std::vector<std::variant<AdamWArgs, AdamW8bitArgs>> all;
    for (const py::tuple& e : entries) {
        if (e.size() == 4) {
            all.emplace_back(adamw_args(e[0], e[1], e[2], e[3], shared));
        } else if (e.size() == 6) {
            all.emplace_back(adamw_8bit_args(e[0], e[1], e[2], e[3], e[4], e[5], shared));
        } else {
            throw py::value_error("[adamw] an entry must be 4 or 6 tensors but is " +
                                  std::to_string(e.size()));
        }
    }
    py::gil_scoped_release release;
    for (const auto& args : all) {
        if (const auto* wide = std::get_if<AdamWArgs>(&args)) {
            cpu::adamw_step(*wide);
        } else {
            cpu::adamw_step_8bit(std::get<AdamW8bitArgs>(args));
        }
    }
}

LionArgs lion_args(py::handle param_, py::handle grad_, py::handle exp_avg_,
                   const LionScalars& scalars) {
    const TensorArg param = borrow_on_cpu("param", param_, DType::kF32, "lion");
    const TensorArg grad = borrow_on_cpu("grad", grad_, DType::kF32, "lion");
    const TensorArg m = borrow_on_cpu("exp_avg", exp_avg_, DType::kF32, "lion");
    for (const TensorArg* t : {&grad, &m}) check_like(*t, param);
    return {.param = flat(param), .grad = flat(grad), .exp_avg = flat(m), .scalars = scalars};
}

// Every parameter of a model: (param, grad, exp_avg). As adamw_steps.
void lion_step(const std::vector<py::tuple>& entries, double lr, double beta1, double beta2,
               double weight_decay, double grad_scale) {
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
    for (const py::tuple& e : entries) {
        if (e.size() != 3) {
            throw py::value_error("[lion] an entry must be 3 tensors but is " +
                                  std::to_string(e.size()));
        }
        all.push_back(lion_args(e[0], e[1], e[2], shared));
    }
    py::gil_scoped_release release;
    for (const LionArgs& args : all) cpu::lion_step(args);
}

double sum_squares(const py::list& grads) {
    std::vector<VectorView> views;
    for (const py::handle& grad : grads) {
        views.push_back(flat(borrow_on_cpu("grad", grad, DType::kF32)));
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

}  // namespace

void bind(py::module_& m) {
    m.def("adamw_step", &adamw_step, py::arg("param"), py::arg("grad"), py::arg("exp_avg"),
          py::arg("exp_avg_sq"), py::arg("step"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
          py::arg("eps"), py::arg("weight_decay"), py::arg("grad_scale"));
    m.def("adamw_step_8bit", &adamw_step_8bit, py::arg("param"), py::arg("grad"),
          py::arg("exp_avg"), py::arg("exp_avg_absmax"), py::arg("exp_avg_sq"),
          py::arg("exp_avg_sq_absmax"), py::arg("step"), py::arg("lr"), py::arg("beta1"),
          py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("grad_scale"));
    m.def("adamw_steps", &adamw_steps, py::arg("entries"), py::arg("step"), py::arg("lr"),
          py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
          py::arg("grad_scale"));
    m.def("lion_step", &lion_step, py::arg("entries"), py::arg("lr"), py::arg("beta1"),
          py::arg("beta2"), py::arg("weight_decay"), py::arg("grad_scale"));
    m.def("adamw_sum_squares", &sum_squares, py::arg("grads"));
}

}  // namespace pe::bindings::optimizer
