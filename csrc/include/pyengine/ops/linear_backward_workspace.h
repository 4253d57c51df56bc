// The workspace of linear_backward: x packed along tokens, dy transposed, and the row at each place.
#pragma once

#include <cstdint>

#include "pyengine/dtype.h"
#include "pyengine/packed.h"

namespace pe::cpu {
namespace {  // internal linkage: see isa.h

struct LinearBackwardWorkspace {
    int64_t N, K, places;
    DType x;

    // An odd group of rows takes one place more.
    LinearBackwardWorkspace(int64_t rows, int64_t N_, int64_t K_, int64_t groups, DType x_)
        : N(N_), K(K_), places(rows + groups), x(x_) {}

    PackedKind kind() const { return x == DType::kF32 ? PackedKind::kF32 : PackedKind::kBF16; }
    int64_t packed_bytes() const {
        const PackedMatrix p{nullptr, kind(), K, places, nullptr};
        return p.panels() * p.panel_bytes();
    }
    // Elements from one row of dy^T to the next: not a power of two, whole vectors.
    int64_t stride() const { return (places + 31) / 32 * 32 + 32; }
    int64_t dy_bytes() const { return (N * stride() * dtype_bytes(x) + 63) / 64 * 64; }
    int64_t total_bytes() const { return packed_bytes() + dy_bytes() + places * 4 + 64; }
};

}  // namespace
}  // namespace pe::cpu
