// One namespace per family, since setup.py compiles several files as one; module.cpp calls their bind().
#pragma once

#include <pybind11/pybind11.h>

#define PE_BINDINGS(family)               \
    namespace pe::bindings::family {      \
    void bind(pybind11::module_& module); \
    }

PE_BINDINGS(attention)
PE_BINDINGS(attention_backward)
PE_BINDINGS(kl)
PE_BINDINGS(linear)
PE_BINDINGS(logprob)
PE_BINDINGS(losses)
PE_BINDINGS(norm)
PE_BINDINGS(objective)
PE_BINDINGS(optimizer)
PE_BINDINGS(random)
PE_BINDINGS(rope)
PE_BINDINGS(sample)
PE_BINDINGS(session)

#undef PE_BINDINGS
