// Checks that ops on log-probs share.
#pragma once

#include <initializer_list>
#include <string>

#include "check.h"

namespace pe::bindings {

inline VectorView sized(const TensorArg& t, const char* shape, int64_t size) {
    check_shape(t, shape, {size});
    return vector(t);
}

// (S + 1,) bounds that rise from 0 to N, which messages call `total`. That they do is checked on the CPU only: elsewhere it
// would have to wait for the device.
inline VectorView segment_bounds(const TensorArg& bounds, const char* total, int64_t N) {
    check_dtype(bounds, {DType::kI64});
    check_dims(bounds, *total == 'N' ? "(S + 1,)" : "(G + 1,)", 1);
    const VectorView view = vector(bounds);
    if (bounds.is_cuda && view.size > 0) return view;
    const auto* bound = ptr<uint64_t>(view);
    uint64_t signs = 0;  // the top bit: of a bound below 0, or of a fall between two that are not
    for (int64_t i = 1; i < view.size; ++i) signs |= bound[i] | (bound[i] - bound[i - 1]);
    const bool ends = view.size > 0 && bound[0] == 0 && bound[view.size - 1] == uint64_t(N);
    if (!ends || signs >> 63 != 0) {
        value_error(bounds,
                    "must rise from 0 to " + std::string(total) + " = " + std::to_string(N));
    }
    return view;
}

// Every index in [0, S), without a branch for each. On the CPU only, as segment_bounds.
inline void check_indices(const TensorArg& index, const VectorView& view, int64_t S) {
    if (index.is_cuda) return;
    const auto* j = ptr<int64_t>(view);
    uint64_t signs = 0;  // the top bit: of an index below 0, or of one above S - 1
    for (int64_t c = 0; c < view.size; ++c)
        signs |= uint64_t(j[c]) | (uint64_t(S - 1) - uint64_t(j[c]));
    if (signs >> 63 == 0) return;
    for (int64_t c = 0; c < view.size; ++c) {
        if (j[c] >= 0 && j[c] < S) continue;
        value_error(index, "must be in [0, " + std::to_string(S) + ") but is " +
                               std::to_string(j[c]) + " at " + std::to_string(c));
    }
}

}  // namespace pe::bindings
