// Views: pointer + dtype + shape + strides (in elements). They own nothing and check nothing.
#pragma once

#include <cstdint>

#include "pyengine/dtype.h"

namespace pe {

// A matrix whose last dimension is contiguous; rows are `row_stride` elements apart.
struct MatrixView {
    void* data = nullptr;
    DType dtype = DType::kF32;
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t row_stride = 0;

    PE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

struct VectorView {
    void* data = nullptr;
    DType dtype = DType::kF32;
    int64_t size = 0;

    PE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

namespace {  // internal linkage: see isa.h

template <typename T>
PE_HOST_DEVICE inline T* row_ptr(const MatrixView& m, int64_t row) {
    return static_cast<T*>(m.data) + row * m.row_stride;
}

template <typename T>
PE_HOST_DEVICE inline T* ptr(const VectorView& v) {
    return static_cast<T*>(v.data);
}

}  // namespace
}  // namespace pe
