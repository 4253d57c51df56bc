#include "pyengine/linear_logprob_head.h"

namespace pe::cpu::PE_ISA {
namespace {

template <typename T, typename X>
void pack(const T* const* rows, int64_t n, int64_t K, X* out) {
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

template <typename X>
void pack_of(const MatrixView& weight, int64_t first, X* out) {
    dispatch_dtype(weight.dtype, [&]<typename T>(T*) {
        const T* rows[kPanel] = {};
        const int64_t n = min_of(kPanel, weight.rows - first);
        for (int64_t i = 0; i < n; ++i) rows[i] = row_ptr<T>(weight, first + i);
        pack(rows, n, weight.cols, out);
    });
}

template <typename X>
Rows<X> rows_of(const MatrixView& m, int64_t begin, int64_t rows, X* copy, int64_t stride) {
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

// product(rows of x, how many, where their sums go) for each tile; a panel that ends early has its sums in a tile of their own.
template <typename X, typename F>
void in_tiles(const Rows<X>& x, int64_t rows, const Sums& sums, int64_t cols, const F& product) {
    for_each_tile(rows, [&](int64_t first, int64_t n) {
        const X* a = x.data + first * x.stride;
        float* out = sums.data + first * sums.row;
        if (cols == kPanel) return product(a, n, Sums{out, sums.row, sums.continued});
        alignas(64) float tile[kPackedRows * kPanel] = {};
        const auto bytes_of_row = static_cast<size_t>(cols) * sizeof(float);
        for (int64_t i = 0; sums.continued && i < n; ++i) {
            memcpy(tile + i * kPanel, out + i * sums.row, bytes_of_row);
        }
        product(a, n, Sums{tile, kPanel, sums.continued});
        for (int64_t i = 0; i < n; ++i) {
            memcpy(out + i * sums.row, tile + i * kPanel, bytes_of_row);
        }
    });
}

template <typename X>
void multiply(const Rows<X>& x, int64_t rows, const X* panel, int64_t K, Sums sums, int64_t cols,
              const void* next, int64_t bytes) {
    const int64_t tiles = num_tiles(rows);
    const bool widened = kIsWidened<X> && tiles > 1;
    const int64_t steps = widened ? wide_steps(K) : sizeof(X) == 4 ? K : (K + 1) / 2;
    Ahead ahead(next, next != nullptr ? bytes : 0, tiles, steps);
    if constexpr (kIsWidened<X>) {
        if (widened) {
            return for_each_wide_stretch(panel, K, [&](const Wide* w, int64_t k, int64_t depth) {
                const Sums part_of{sums.data, sums.row, sums.continued || k > 0};
                const Rows<X> from{x.data + k, x.stride};
                in_tiles(from, rows, part_of, cols, [&](const X* a, int64_t n, const Sums& to) {
                    wide_panel(a, x.stride, w, depth, n, to, &ahead);
                });
            });
        }
    }
    in_tiles(x, rows, sums, cols, [&](const X* a, int64_t n, const Sums& to) {
        packed_panel(a, x.stride, panel, K, n, to, &ahead);
    });
}

template <typename X>
void logits_of(const HeadPart<X>& head, const Rows<X>& hidden, int64_t rows, int64_t word,
               int64_t words, float scale, float* logits, const void* after) {
    const int64_t D = head.rows.K, bytes = head.rows.panel_bytes();
    for (int64_t i = 0; i < words; i += kPanel) {
        const void* next = i + kPanel < words ? head.row_panel(word + i + kPanel) : after;
        multiply<X>(hidden, rows, head.row_panel(word + i), D, {logits + i, kVocabBlock}, kPanel,
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

}  // namespace

void pack_panel(const float* const* rows, int64_t n, int64_t K, float* out) {
    pack(rows, n, K, out);
}
void pack_panel(const float* const* rows, int64_t n, int64_t K, bf16* out) {
    pack(rows, n, K, out);
}
void pack_panel(const bf16* const* rows, int64_t n, int64_t K, float* out) {
    pack(rows, n, K, out);
}
void pack_panel(const bf16* const* rows, int64_t n, int64_t K, bf16* out) { pack(rows, n, K, out); }
void pack_words(const MatrixView& weight, int64_t first, float* out) {
    pack_of(weight, first, out);
}
Rows<float> rows_as(const MatrixView& m, int64_t begin, int64_t rows, float* copy, int64_t stride) {
    return rows_of(m, begin, rows, copy, stride);
}
void multiply_panel(const Rows<float>& x, int64_t rows, const float* panel, int64_t K, Sums sums,
                    int64_t cols, const void* next, int64_t bytes) {
    multiply(x, rows, panel, K, sums, cols, next, bytes);
}
void block_logits(const HeadPart<float>& head, const Rows<float>& hidden, int64_t rows,
                  int64_t word, int64_t words, float scale, float* logits, const void* after) {
    logits_of(head, hidden, rows, word, words, scale, logits, after);
}
void pack_words(const MatrixView& weight, int64_t first, bf16* out) { pack_of(weight, first, out); }
Rows<bf16> rows_as(const MatrixView& m, int64_t begin, int64_t rows, bf16* copy, int64_t stride) {
    return rows_of(m, begin, rows, copy, stride);
}
void multiply_panel(const Rows<bf16>& x, int64_t rows, const bf16* panel, int64_t K, Sums sums,
                    int64_t cols, const void* next, int64_t bytes) {
    multiply(x, rows, panel, K, sums, cols, next, bytes);
}
void block_logits(const HeadPart<bf16>& head, const Rows<bf16>& hidden, int64_t rows, int64_t word,
                  int64_t words, float scale, float* logits, const void* after) {
    logits_of(head, hidden, rows, word, words, scale, logits, after);
}

}  // namespace pe::cpu::PE_ISA
