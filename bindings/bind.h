// One function per family; module.cpp calls them.
#pragma once

#include <pybind11/pybind11.h>

namespace pe::bindings {

void bind_attention(pybind11::module_& m);
void bind_attention_backward(pybind11::module_& m);
void bind_norm(pybind11::module_& m);
void bind_kl(pybind11::module_& m);
void bind_linear(pybind11::module_& m);
void bind_logprob(pybind11::module_& m);
void bind_losses(pybind11::module_& m);
void bind_objective(pybind11::module_& m);
void bind_optimizer(pybind11::module_& m);
void bind_random(pybind11::module_& m);
void bind_rope(pybind11::module_& m);
void bind_sample(pybind11::module_& m);
void bind_session(pybind11::module_& m);

}  // namespace pe::bindings
