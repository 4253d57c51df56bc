// A weight matrix (N, K) laid out for the register tile: panels of 32 outputs, K walked within a panel.
//
//   f32   [panels][K][32]
//   bf16  [panels][ceil(K / 2)][32][2]   pairs along K; an odd K is padded with zero
//   i8    [panels][ceil(K / 2)][32][2]   w = value * scale[output]
// Outputs past N are zero. A gated pair of matrices shares panels: outputs 16 p .. 16 p + 15 of the gate in lanes 0 to 15 of
// panel p, the same of `up` in lanes 16 to 31.
#pragma once

#include <cstdint>

#include "pyengine/dtype.h"

namespace pe {

constexpr int64_t kPanel = 32;

enum class PackedKind : int { kF32, kBF16, kI8 };

struct PackedMatrix {
    void* data = nullptr;
    PackedKind kind = PackedKind::kF32;
    int64_t N = 0;
    int64_t K = 0;
    float* scale = nullptr;  // i8 only: (panels * 32,)

    PE_HOST_DEVICE int64_t panels() const { return (N + kPanel - 1) / kPanel; }
    PE_HOST_DEVICE int64_t panel_bytes() const {
        const int64_t pairs = (K + 1) / 2;
        switch (kind) {
            case PackedKind::kF32: return K * kPanel * 4;
            case PackedKind::kBF16: return pairs * kPanel * 4;
            case PackedKind::kI8: return pairs * kPanel * 2;
        }
        return 0;
    }
    PE_HOST_DEVICE const char* panel(int64_t p) const {
        return static_cast<const char*>(data) + p * panel_bytes();
    }
};

}  // namespace pe
