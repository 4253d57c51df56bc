// Checks on borrowed tensors, and the views kernels take. Every message names the op, the argument and the value.
#pragma once

#include <initializer_list>
#include <string>

#include "pyengine/view.h"
#include "tensor_arg.h"

namespace pe::bindings {

[[noreturn]] inline void value_error(const TensorArg& t, const std::string& what) {
    throw py::value_error("[" + std::string(t.op) + "] " + t.name + " " + what);
}

inline const char* dtype_text(DType dtype) {
    switch (dtype) {
        case DType::kF32: return "float32";
        case DType::kBF16: return "bfloat16";
        case DType::kF64: return "float64";
        case DType::kI32: return "int32";
        case DType::kI64: return "int64";
        case DType::kU8: return "uint8";
    }
    return "?";
}

// TypeError unless the dtype is one of `allowed`.
inline void check_dtype(const TensorArg& t, std::initializer_list<DType> allowed) {
    if (!t.present()) return;
    std::string list;
    for (const DType dtype : allowed) {
        if (t.dtype == dtype) return;
        list += (list.empty() ? "" : " or ") + std::string(dtype_text(dtype));
    }
    throw py::type_error("[" + std::string(t.op) + "] " + t.name + " must be " + list + " but is " +
                         dtype_text(t.dtype));
}

// `symbols` is the contract's shape, e.g. "(N, D)"; `sizes` its value here.
inline void check_shape(const TensorArg& t, const char* symbols,
                        std::initializer_list<int64_t> sizes) {
    if (!t.present()) return;
    bool same = t.ndim == static_cast<int>(sizes.size());
    std::string expected = "(";
    int i = 0;
    for (const int64_t size : sizes) {
        same = same && t.shape[i] == size;
        expected += (i++ ? ", " : "") + std::to_string(size);
    }
    expected += sizes.size() == 1 ? ",)" : ")";
    if (!same) {
        value_error(t, "must have shape " + std::string(symbols) + " = " + expected + " but got " +
                           t.shape_text());
    }
}

inline void check_dims(const TensorArg& t, const char* symbols, int ndim) {
    if (t.ndim != ndim)
        value_error(t, "must have shape " + std::string(symbols) + " but got " + t.shape_text());
}

inline void check_same_device(const TensorArg& first,
                              std::initializer_list<const TensorArg*> others) {
    for (const TensorArg* t : others) {
        if (t->present() && (t->is_cuda != first.is_cuda || t->device_id != first.device_id)) {
            value_error(*t, "must be on " + first.device_text() + " like " + first.name +
                                " but is on " + t->device_text());
        }
    }
}

inline void check_cuda_built(const TensorArg& t) {
#ifndef PE_WITH_CUDA
    if (t.is_cuda) {
        value_error(
            t, "is on " + t.device_text() +
                   " but this pyengine was built without CUDA kernels: install it with nvcc on the "
                   "PATH and PYENGINE_CUDA=1");
    }
#else
    (void)t;
#endif
}

#ifdef PE_WITH_CUDA
// Defined in module.cpp: RuntimeError with CUDA's own words unless status is success.
void check_cuda_status(const char* op, int status);
#endif

// The kernel of the device that `tensor` is on, without the interpreter's lock.
#ifdef PE_WITH_CUDA
#define PE_RUN_KERNEL(op, kernel, args, tensor, stream)                                 \
    do {                                                                                \
        py::gil_scoped_release release;                                                 \
        if ((tensor).is_cuda) {                                                         \
            check_cuda_status(op, cuda::kernel(args, reinterpret_cast<void*>(stream))); \
        } else {                                                                        \
            cpu::kernel(args);                                                          \
        }                                                                               \
    } while (0)
#else
#define PE_RUN_KERNEL(op, kernel, args, tensor, stream) \
    do {                                                \
        (void)stream;                                   \
        py::gil_scoped_release release;                 \
        cpu::kernel(args);                              \
    } while (0)
#endif

// (rows, cols) with a contiguous last dimension.
inline MatrixView matrix(const TensorArg& t) {
    if (!t.present()) return {};
    const int64_t rows = t.shape[0], cols = t.shape[1];
    if (cols > 1 && t.strides[1] != 1) {
        value_error(t, "must have a contiguous last dimension but its stride is " +
                           std::to_string(t.strides[1]));
    }
    return {t.data, t.dtype, rows, cols, rows > 1 ? t.strides[0] : cols};
}

inline VectorView vector(const TensorArg& t) {
    if (!t.present()) return {};
    if (t.shape[0] > 1 && t.strides[0] != 1) {
        value_error(t, "must be contiguous but its stride is " + std::to_string(t.strides[0]));
    }
    return {t.data, t.dtype, t.shape[0]};
}

// 1 / temperature, that logits are multiplied by.
inline float inverse_of(const char* op, double temperature) {
    const auto inverse = static_cast<float>(1.0 / temperature);
    if (!(temperature > 0.0) || !(inverse > 0.0f) || __builtin_isinf(inverse)) {
        throw py::value_error("[" + std::string(op) +
                              "] temperature must be positive and in float32's range but is " +
                              std::to_string(temperature));
    }
    return inverse;
}

// (G + 1,) i64: boundaries of groups of T rows, from 0 to T, never falling. None: no view. On a GPU nobody looks at them: rows that no
// group has are left out there.
inline VectorView group_bounds(const TensorArg& groups, int64_t T) {
    if (!groups.present()) return {};
    check_dtype(groups, {DType::kI64});
    check_dims(groups, "(G + 1,)", 1);
    const VectorView view = vector(groups);
    if (groups.is_cuda && view.size > 0) return view;
    const auto* first = static_cast<const int64_t*>(view.data);
    bool rises = view.size > 0 && first[0] == 0 && first[view.size - 1] == T;
    for (int64_t i = 1; i < view.size; ++i) rises = rises && first[i] >= first[i - 1];
    if (!rises) value_error(groups, "must rise from 0 to T = " + std::to_string(T));
    return view;
}

}  // namespace pe::bindings
