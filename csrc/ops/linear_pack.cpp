#include "pyengine/ops/linear.h"
#include "pyengine/pack_columns.h"
#include "pyengine/packed_tile.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr float kMaxI8 = 127.0f;
constexpr int64_t kPairsPerTask = 8;

// Where output n of the packed matrix stands: its panel and lane.
int64_t place(const LinearPackArgs& a, int64_t row) {
    return a.gated ? row / 16 * kPanel + a.first + row % 16 : a.first + row;
}

// Symmetric: the largest magnitude of a row becomes 127.
template <typename T>
float i8_scale(const T* w, int64_t K) {
    float largest = 0.0f;
    for (int64_t k = 0; k < K; ++k) {
        // Not fmaxf: GCC 12 ends with an internal error where it makes a reduction of it on aarch64.
        const float size = __builtin_fabsf(to_float(w[k]));
        largest = size > largest ? size : largest;
    }
    return largest / kMaxI8;
}

template <typename T>
void pack_row(const LinearPackArgs& a, int64_t row) {
    const PackedMatrix& p = a.packed;
    const int64_t n = place(a, row), lane = n % kPanel;
    const T* w = row_ptr<T>(a.weight, row);
    char* panel = static_cast<char*>(p.data) + n / kPanel * p.panel_bytes();
    if (p.kind == PackedKind::kF32) {
        float* out = reinterpret_cast<float*>(panel) + lane;
        for (int64_t k = 0; k < p.K; ++k) out[k * kPanel] = to_float(w[k]);
    } else if (p.kind == PackedKind::kBF16) {
        bf16* out = reinterpret_cast<bf16*>(panel) + 2 * lane;
        for (int64_t k = 0; k < p.K; ++k) out[k / 2 * 2 * kPanel + k % 2] = to_bf16(to_float(w[k]));
    } else {
        const float scale = i8_scale(w, p.K), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        int8_t* out = reinterpret_cast<int8_t*>(panel) + 2 * lane;
        for (int64_t k = 0; k < p.K; ++k) {
            const float q = __builtin_rintf(to_float(w[k]) * inverse);
            out[k / 2 * 2 * kPanel + k % 2] =
                static_cast<int8_t>(__builtin_fminf(__builtin_fmaxf(q, -kMaxI8), kMaxI8));
        }
        p.scale[n] = scale;
    }
}

// Sixteen rows whose places follow each other within a panel: K outermost, so that whole lanes are written.
template <typename T>
void pack_sixteen(const LinearPackArgs& a, int64_t row) {
    const PackedMatrix& p = a.packed;
    const int64_t n = place(a, row), lane = n % kPanel;
    char* panel = static_cast<char*>(p.data) + n / kPanel * p.panel_bytes();
    const T* w[16];
    for (int i = 0; i < 16; ++i) w[i] = row_ptr<T>(a.weight, row + i);
    if (p.kind == PackedKind::kF32) {
        float* out = reinterpret_cast<float*>(panel) + lane;
        for (int64_t k = 0; k < p.K; ++k) {
            for (int i = 0; i < 16; ++i) out[k * kPanel + i] = to_float(w[i][k]);
        }
        return;
    }
    pack_pairs(w, 16, p.K, reinterpret_cast<uint32_t*>(panel) + lane);
}

// Output n of a packed matrix: its lane at k = 0; the next k, or pair of them, is kPanel words on.
const uint32_t* lane_of(const PackedMatrix& p, int64_t n, bool gated) {
    const int64_t half = p.N / 2;
    const int64_t at = !gated     ? n
                       : n < half ? n / 16 * kPanel + n % 16
                                  : (n - half) / 16 * kPanel + 16 + (n - half) % 16;
    return reinterpret_cast<const uint32_t*>(p.panel(at / kPanel)) + at % kPanel;
}

// Elements n of the 32 outputs of a panel, whose k start at `k`.
void transpose_f32(const LinearTransposeArgs& a, int64_t n, int64_t k, uint32_t* out) {
    const uint32_t* lane = lane_of(a.from, n, a.gated) + k * kPanel;
    for (int64_t j = 0; j < kPanel; ++j) out[j] = k + j < a.from.K ? lane[j * kPanel] : 0u;
}

// The pair of elements n and n + 1.
void transpose_pair(const LinearTransposeArgs& a, int64_t n, int64_t k, uint32_t* out) {
    const uint32_t* even = lane_of(a.from, n, a.gated) + k / 2 * kPanel;
    const uint32_t* odd =
        n + 1 < a.from.N ? lane_of(a.from, n + 1, a.gated) + k / 2 * kPanel : nullptr;
    const int64_t pairs = (a.from.K + 1) / 2 - k / 2;
    for (int64_t i = 0; i < kPanel / 2; ++i) {
        const uint32_t low = i < pairs ? even[i * kPanel] : 0u;
        const uint32_t high = i < pairs && odd != nullptr ? odd[i * kPanel] : 0u;
        out[2 * i] = (low & 0xffffu) | high << 16;
        out[2 * i + 1] = low >> 16 | (high & 0xffff0000u);
    }
}

}  // namespace

void linear_pack(const LinearPackArgs& a) {
    dispatch_dtype(a.weight.dtype, [&]<typename T>(T*) {
        parallel_rows(a.weight.rows, 16, [&](int64_t begin, int64_t end) {
            const bool whole = end - begin == 16 && place(a, begin) % 16 == 0;
            if (whole && a.packed.kind != PackedKind::kI8) return pack_sixteen<T>(a, begin);
            for (int64_t row = begin; row < end; ++row) pack_row<T>(a, row);
        });
    });
}

void linear_transpose(const LinearTransposeArgs& a) {
    const bool is_f32 = a.from.kind == PackedKind::kF32;
    parallel_tasks(a.to.panels(), num_threads(), [&](int64_t panel) {
        auto* out = reinterpret_cast<uint32_t*>(const_cast<char*>(a.to.panel(panel)));
        for (int64_t n = 0; n < a.from.N; n += is_f32 ? 1 : 2, out += kPanel) {
            is_f32 ? transpose_f32(a, n, panel * kPanel, out)
                   : transpose_pair(a, n, panel * kPanel, out);
        }
    });
}

void linear_pack_columns(const LinearPackColumnsArgs& a) {
    const int64_t end = a.first + a.weight.rows;
    dispatch_dtype(a.weight.dtype, [&]<typename T>(T*) {
        const auto row_at = [&](int64_t k) -> const T* {
            return k >= a.first && k < end ? row_ptr<T>(a.weight, k - a.first) : nullptr;
        };
        // Pairs [first / 2, ceil(end / 2)); those at the ends may be half another matrix's.
        parallel_rows((end + 1) / 2 - a.first / 2, kPairsPerTask, [&](int64_t begin, int64_t last) {
            const int64_t pair = a.first / 2 + begin;
            pack_pairs_of_rows<T>(a.packed, 2 * pair, 2 * (last - begin), row_at, false);
        });
    });
}

}  // namespace pe::cpu::PE_ISA
