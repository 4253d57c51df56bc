#include "pyengine/pack_columns.h"

namespace pe::cpu::PE_ISA {
namespace {

// n <= 32 columns of a row as floats; absent rows and columns are zero.
template <typename T>
PE_INLINE void columns_of(const T* row, int64_t column, int64_t n, float* out) {
    if (row != nullptr && n == kPanel) {
        for (int64_t j = 0; j < kPanel; j += 16) store16(out + j, load16(row + column + j));
        return;
    }
    for (int64_t j = 0; j < kPanel; ++j) {
        out[j] = row != nullptr && j < n ? to_float(row[column + j]) : 0.0f;
    }
}

// n <= 32 columns of a row as bf16.
PE_INLINE void columns_of(const bf16* row, int64_t column, int64_t n, bf16* out) {
    if (row != nullptr && n == kPanel) {
        memcpy(out, row + column, kPanel * sizeof(bf16));
        return;
    }
    for (int64_t j = 0; j < kPanel; ++j) out[j] = {0};
    if (row != nullptr) memcpy(out, row + column, static_cast<size_t>(n) * sizeof(bf16));
}

PE_INLINE void columns_of(const float* row, int64_t column, int64_t n, bf16* out) {
    alignas(64) float wide[kPanel];
    columns_of(row, column, n, wide);
    for (int64_t j = 0; j < kPanel; j += 16) store16(out + j, load16(wide + j));
}

template <typename T>
void pack(const PackedMatrix& p, int64_t k, int64_t count, const T* const* rows, bool clear) {
    for (int64_t panel = 0; panel < p.panels(); ++panel) {
        const int64_t column = panel * kPanel;
        const int64_t n = p.N - column < kPanel ? p.N - column : kPanel;
        char* base = const_cast<char*>(p.panel(panel));
        for (int64_t i = k; i < k + count; i += 2) {
            const T *even = rows[i - k], *odd = rows[i + 1 - k];
            if (p.kind == PackedKind::kF32) {
                float* out = reinterpret_cast<float*>(base) + i * kPanel;
                if (even != nullptr || clear) columns_of(even, column, n, out);
                if (i + 1 < p.K && (odd != nullptr || clear)) {
                    columns_of(odd, column, n, out + kPanel);
                }
                continue;
            }
            alignas(64) bf16 low[kPanel], high[kPanel];
            columns_of(even, column, n, low);
            columns_of(odd, column, n, high);
            uint32_t* out = reinterpret_cast<uint32_t*>(base) + i / 2 * kPanel;
            const uint32_t kept =
                clear ? 0u : (even == nullptr ? 0xffffu : 0u) | (odd == nullptr ? 0xffff0000u : 0u);
            if (kept == 0) {
                for (int64_t j = 0; j < kPanel; ++j) {
                    out[j] = low[j].bits | static_cast<uint32_t>(high[j].bits) << 16;
                }
            } else {
                for (int64_t j = 0; j < kPanel; ++j) {
                    out[j] =
                        (out[j] & kept) | low[j].bits | static_cast<uint32_t>(high[j].bits) << 16;
                }
            }
        }
    }
}

}  // namespace

void pack_rows_in_pairs(const PackedMatrix& p, int64_t k, int64_t count, const float* const* rows,
                        bool clear) {
    pack(p, k, count, rows, clear);
}

void pack_rows_in_pairs(const PackedMatrix& p, int64_t k, int64_t count, const bf16* const* rows,
                        bool clear) {
    pack(p, k, count, rows, clear);
}

}  // namespace pe::cpu::PE_ISA
