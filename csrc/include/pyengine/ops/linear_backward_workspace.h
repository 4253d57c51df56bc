// The workspace of linear_backward: dy and x packed along tokens, and the row at each place.
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
    int64_t x_bytes() const { return bytes_of(K); }
    int64_t dy_bytes() const { return bytes_of(N); }
    int64_t total_bytes() const { return x_bytes() + dy_bytes() + places * 4 + 64; }

  private:
    int64_t bytes_of(int64_t columns) const {
        const PackedMatrix p{nullptr, kind(), columns, places, nullptr};
        return (p.panels() * p.panel_bytes() + 63) / 64 * 64;
    }
};

}  // namespace
}  // namespace pe::cpu
