#include "pyengine/linear_pack_file.h"
#include "pyengine/pack_columns.h"
#include "pyengine/packed_tile.h"
#include "pyengine/parallel.h"
#include "pyengine/read_file.h"

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
void pack_row(const LinearPackArgs& a, int64_t row, const T* w) {
    const PackedMatrix& p = a.packed;
    const int64_t n = place(a, row), lane = n % kPanel;
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

// Sixteen rows whose places follow each other within a panel.
template <typename T>
void pack_sixteen(const LinearPackArgs& a, int64_t row, const T* const* w) {
    const PackedMatrix& p = a.packed;
    const int64_t n = place(a, row), lane = n % kPanel;
    char* panel = static_cast<char*>(p.data) + n / kPanel * p.panel_bytes();
    uint32_t* out = reinterpret_cast<uint32_t*>(panel) + lane;
    p.kind == PackedKind::kF32 ? pack_singles(w, 16, p.K, out) : pack_pairs(w, 16, p.K, out);
}

// Rows [begin, end), at most sixteen, of which the first lies at w and the next ones `stride` elements on.
template <typename T>
void pack_rows(const LinearPackArgs& a, int64_t begin, int64_t end, const T* w, int64_t stride) {
    const bool whole = end - begin == kPackedAtOnce && place(a, begin) % kPackedAtOnce == 0;
    if (whole && a.packed.kind != PackedKind::kI8) {
        const T* rows[kPackedAtOnce];
        for (int64_t i = 0; i < kPackedAtOnce; ++i) rows[i] = w + i * stride;
        return pack_sixteen(a, begin, rows);
    }
    for (int64_t row = begin; row < end; ++row) pack_row(a, row, w + (row - begin) * stride);
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
        parallel_rows(a.weight.rows, kPackedAtOnce, [&](int64_t begin, int64_t end) {
            pack_rows(a, begin, end, row_ptr<T>(a.weight, begin), a.weight.row_stride);
        });
    });
}

void linear_pack_file(const LinearPackFileArgs& a) {
    const int64_t K = a.pack.packed.K;
    dispatch_dtype(a.pack.weight.dtype, [&]<typename T>(T*) {
        const int64_t row_bytes = K * static_cast<int64_t>(sizeof(T));
        const int64_t rows = a.pack.weight.rows;
        const int64_t tasks = (rows + kPackedAtOnce - 1) / kPackedAtOnce;
        parallel_tasks(tasks, a.threads, [&](int64_t task) {
            const int64_t begin = task * kPackedAtOnce;
            const int64_t end = begin + kPackedAtOnce < rows ? begin + kPackedAtOnce : rows;
            // The thread's own, and small: what was read is still in its cache when it is packed.
            T* own = static_cast<T*>(a.workspace) + thread_index() * kPackedAtOnce * K;
            const int error =
                read_file(a.file, a.at + begin * row_bytes, own, (end - begin) * row_bytes);
            if (error != 0) return __atomic_store_n(a.error, error, __ATOMIC_RELAXED);
            pack_rows<T>(a.pack, begin, end, own, K);
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
