// Tensors of (rows, heads, head_dim), which kernels take as matrices.
#pragma once

#include "check.h"
#include "pyengine/kv_pages.h"

namespace pe::bindings {

inline void check_head_dim(const TensorArg& t, int64_t head_dim) {
    if (head_dim >= 1 && head_dim <= kMaxHeadDim) return;
    value_error(t, "must have a head_dim from 1 to " + std::to_string(kMaxHeadDim) +
                       " but got shape " + t.shape_text());
}

// (rows, heads, head_dim) with the last two dimensions contiguous, as (rows, heads * head_dim).
inline MatrixView heads_matrix(const TensorArg& t) {
    const int64_t rows = t.shape[0], heads = t.shape[1], head_dim = t.shape[2];
    if ((head_dim > 1 && t.strides[2] != 1) || (heads > 1 && t.strides[1] != head_dim)) {
        value_error(t, "must have contiguous heads but its strides are (" +
                           std::to_string(t.strides[0]) + ", " + std::to_string(t.strides[1]) +
                           ", " + std::to_string(t.strides[2]) + ")");
    }
    return {t.data, t.dtype, rows, heads * head_dim, rows > 1 ? t.strides[0] : heads * head_dim};
}

}  // namespace pe::bindings
