// Where the sums of a linear product go: scale, bias, activation, destination. One place for every kernel that makes such sums.
#pragma once

#include "common/math.cuh"
#include "pyengine/ops/linear.h"

namespace pe::cuda {
namespace {

constexpr int kHalfPanel = static_cast<int>(kPanel) / 2;

// One finished value of row t, output n, to the matrix that holds it.
__device__ inline void write_output(const LinearForwardArgs& a, int64_t t, int64_t n, float v) {
#pragma unroll
    for (int out = 0; out < kMaxLinearOutputs; ++out) {
        if (out >= a.outputs) return;
        const MatrixView& y = a.y[out];
        if (n >= y.cols) {
            n -= y.cols;
            continue;
        }
        if (y.dtype == DType::kBF16) {
            bf16* p = row_ptr<bf16>(y, t) + n;
            *p = to_bf16(a.epilogue == LinearEpilogue::kAdd ? to_float(*p) + v : v);
        } else {
            float* p = row_ptr<float>(y, t) + n;
            *p = a.epilogue == LinearEpilogue::kAdd ? *p + v : v;
        }
        return;
    }
}

__device__ inline void keep_value(const MatrixView& kept, int64_t t, int64_t n, float v) {
    if (!kept) return;
    if (kept.dtype == DType::kBF16) {
        row_ptr<bf16>(kept, t)[n] = to_bf16(v);
    } else {
        row_ptr<float>(kept, t)[n] = v;
    }
}

// The sums of row t that are in places `lane` (0 to 15) and 16 + lane of a panel: a gate and its up, or two outputs.
__device__ inline void finish_sums(const LinearForwardArgs& a, int64_t t, int64_t panel, int lane,
                                   float first, float second) {
    const PackedMatrix& w = a.weight;
    const float* bias = ptr<float>(a.bias);
    if (w.scale != nullptr) {
        first = first * w.scale[panel * kPanel + lane];
        second = second * w.scale[panel * kPanel + kHalfPanel + lane];
    }
    if (a.epilogue == LinearEpilogue::kSiluGate) {
        const int64_t n = panel * kHalfPanel + lane, half = w.N / 2;
        if (n >= half) return;
        const float gate = bias == nullptr ? first : first + bias[n];
        const float up = bias == nullptr ? second : second + bias[half + n];
        keep_value(a.kept[0], t, n, gate);
        keep_value(a.kept[1], t, n, up);
        return write_output(a, t, n, silu_f32(gate) * up);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int64_t n = panel * kPanel + h * kHalfPanel + lane;
        if (n >= w.N) return;
        float v = h == 0 ? first : second;
        if (bias != nullptr) v = v + bias[n];
        if (a.epilogue == LinearEpilogue::kGelu) {
            keep_value(a.kept[0], t, n, v);
            v = gelu_tanh_f32(v);
        }
        write_output(a, t, n, v);
    }
}

}  // namespace
}  // namespace pe::cuda
