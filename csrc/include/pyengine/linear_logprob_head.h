// The head as the passes over the vocabulary read it: panels of words, packed before or block by block, and products with
// them. Compiled once per instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include "pyengine/ops/linear_logprob_workspace.h"
#include "pyengine/pack_columns.h"
#include "pyengine/packed_tile.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {

// Parts of the op's two kernels in files of their own.
void linear_logprob_direction(const LinearLogprobForwardArgs& a);  // a forward with more than lse
void linear_logprob_dweight(const LinearLogprobBackwardArgs& a);

namespace {

PE_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename X>
constexpr PackedKind kKindOf = sizeof(X) == 4 ? PackedKind::kF32 : PackedKind::kBF16;

// Some words of the head: rows (words, D) and, where p times the head is wanted, columns (D, words).
template <typename X>
struct HeadPart {
    PackedMatrix rows, columns;
    int64_t first_row = 0, first_column = 0;  // the word that stands first in each

    const X* row_panel(int64_t word) const {
        return reinterpret_cast<const X*>(rows.panel((word - first_row) / kPanel));
    }
    // Panel `p` of columns from an even word on.
    const X* column_panel(int64_t p, int64_t word) const {
        return reinterpret_cast<const X*>(columns.panel(p)) + (word - first_column) * kPanel;
    }
};

// Up to 32 rows (n, K) as one panel; absent rows are zero.
template <typename T, typename X>
void pack_panel(const T* const* rows, int64_t n, int64_t K, X* out) {
    if constexpr (sizeof(X) == 2) {
        for (int64_t i = 0; i < kPanel; i += 16) {
            const int count = static_cast<int>(n > i ? min_of(16, n - i) : 0);
            pack_pairs(rows + i, count, K, reinterpret_cast<uint32_t*>(out) + i);
        }
    } else {
        for (int64_t k = 0; k < K; ++k) {
            for (int64_t i = 0; i < n; ++i) out[k * kPanel + i] = to_float(rows[i][k]);
            for (int64_t i = n; i < kPanel; ++i) out[k * kPanel + i] = 0.0f;
        }
    }
}

// Words [first, first + 32), those that there are, of a weight.
template <typename X>
void pack_words(const MatrixView& weight, int64_t first, X* out) {
    dispatch_dtype(weight.dtype, [&]<typename T>(T*) {
        const T* rows[kPanel];
        const int64_t n = min_of(kPanel, weight.rows - first);
        for (int64_t i = 0; i < n; ++i) rows[i] = row_ptr<T>(weight, first + i);
        pack_panel(rows, n, weight.cols, out);
    });
}

// Rows as X: where they are, or converted in `copy`.
template <typename X>
struct Rows {
    const X* data;
    int64_t stride;
};

template <typename X>
Rows<X> rows_as(const MatrixView& m, int64_t begin, int64_t rows, X* copy, int64_t stride) {
    if ((m.dtype == DType::kF32) == (sizeof(X) == 4)) return {row_ptr<X>(m, begin), m.row_stride};
    dispatch_dtype(m.dtype, [&]<typename T>(T*) {
        for (int64_t i = 0; i < rows; ++i) {
            const T* from = row_ptr<T>(m, begin + i);
            for_each_16(m.cols, [&](int64_t d, int64_t n) {
                write(copy + i * stride + d, read(from + d, n), n);
            });
        }
    });
    return {copy, stride};
}

// Columns [0, cols), at most 32, of sums (rows, 32) = or += x (rows, K) times a panel, while `bytes` from `next` on are fetched.
template <typename X>
void multiply_panel(const Rows<X>& x, int64_t rows, const X* panel, int64_t K, Sums sums,
                    int64_t cols, const void* next, int64_t bytes) {
    const int64_t tiles = num_tiles(rows);
    const int64_t steps = sizeof(X) == 4 ? K : (K + 1) / 2;
    const int64_t part = (bytes + tiles - 1) / tiles;
    Ahead ahead{reinterpret_cast<const char*>(next != nullptr ? next : panel), 0, tiles <= 2};
    if (next != nullptr) ahead.step = min_of(128, (part + steps - 1) / steps);
    for_each_tile(rows, [&](int64_t first, int64_t n) {
        const X* a = x.data + first * x.stride;
        float* out = sums.data + first * sums.row;
        if (cols == kPanel) {
            packed_panel(a, x.stride, panel, K, n, Sums{out, sums.row, sums.continued}, ahead);
        } else {
            alignas(64) float tile[kPackedRows * kPanel] = {};
            const auto bytes_of_row = static_cast<size_t>(cols) * sizeof(float);
            for (int64_t i = 0; sums.continued && i < n; ++i) {
                memcpy(tile + i * kPanel, out + i * sums.row, bytes_of_row);
            }
            packed_panel(a, x.stride, panel, K, n, Sums{tile, kPanel, sums.continued}, ahead);
            for (int64_t i = 0; i < n; ++i) {
                memcpy(out + i * sums.row, tile + i * kPanel, bytes_of_row);
            }
        }
        if (next != nullptr) ahead.at += part;
    });
}

// logits (rows, kVocabBlock) of up to kVocabBlock words from `word` on.
template <typename X>
void block_logits(const HeadPart<X>& head, const Rows<X>& hidden, int64_t rows, int64_t word,
                  int64_t words, float scale, float* logits, const void* after) {
    const int64_t D = head.rows.K, bytes = head.rows.panel_bytes();
    for (int64_t i = 0; i < words; i += kPanel) {
        const void* next = i + kPanel < words ? head.row_panel(word + i + kPanel) : after;
        multiply_panel(hidden, rows, head.row_panel(word + i), D, {logits + i, kVocabBlock}, kPanel,
                       next, bytes);
    }
    if (scale == 1.0f) return;
    for (int64_t i = 0; i < rows; ++i) {
        float* x = logits + i * kVocabBlock;
        for_each_16(kVocabBlock, [&](int64_t v, int64_t) {
            store16(x + v, load16(x + v) * broadcast16(scale));
        });
    }
}

// Element d of word `y` of the head.
inline float head_element(const MatrixView& weight, const PackedMatrix& packed, int64_t y,
                          int64_t d) {
    if (packed.data == nullptr) {
        return weight.dtype == DType::kF32 ? row_ptr<float>(weight, y)[d]
                                           : to_float(row_ptr<bf16>(weight, y)[d]);
    }
    const char* panel = packed.panel(y / kPanel);
    const int64_t lane = y % kPanel;
    return packed.kind == PackedKind::kF32
               ? reinterpret_cast<const float*>(panel)[d * kPanel + lane]
               : to_float(
                     reinterpret_cast<const bf16*>(panel)[(d / 2 * kPanel + lane) * 2 + d % 2]);
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
