// Borrowing a torch tensor without linking libtorch: pointer, dtype, shape, strides, device. It holds no reference; the
// caller's argument keeps the tensor alive for the call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "pyengine/dtype.h"

namespace pe::bindings {

namespace py = pybind11;

inline constexpr int kMaxDims = 8;

struct TensorArg {
    const char* op = "";
    const char* name = "";
    void* data = nullptr;
    DType dtype = DType::kF32;
    int ndim = 0;
    int64_t shape[kMaxDims] = {};
    int64_t strides[kMaxDims] = {};
    bool is_cuda = false;
    int device_id = 0;

    bool present() const { return ndim >= 0; }  // false: None was passed
    int64_t numel() const;
    std::string shape_text() const;
    std::string device_text() const;
};

// Called once from pyengine/__init__.py with torch.Tensor and torch.nn.Parameter: only these exact types are accepted, since a
// subclass (a FakeTensor, say) may have no memory behind it.
void register_torch(py::object tensor_type, py::object parameter_type);

// Whether tensors are read through DLPack's C exchange API (else through data_ptr() and shape); for tests of both.
bool use_exchange_api(bool use);

// TypeError when `object` is not a plain torch tensor of a dtype that kernels know.
TensorArg borrow(const char* op, const char* name, py::handle object);
TensorArg borrow_optional(const char* op, const char* name, py::handle object);

}  // namespace pe::bindings
