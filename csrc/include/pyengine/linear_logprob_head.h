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

// Some words of the head: rows (words, D) and, where p times the head is wanted, columns (D, words).
template <typename X>
struct HeadPart {
    PackedMatrix rows, columns;
    int64_t first_row = 0, first_column = 0;  // the word that stands first in each

    PE_INLINE const X* row_panel(int64_t word) const {
        return reinterpret_cast<const X*>(rows.panel((word - first_row) / kPanel));
    }
    // Panel `p` of columns from an even word on.
    PE_INLINE const X* column_panel(int64_t p, int64_t word) const {
        return reinterpret_cast<const X*>(columns.panel(p)) + (word - first_column) * kPanel;
    }
};

// Rows of X, `stride` elements apart.
template <typename X>
struct Rows {
    const X* data;
    int64_t stride;
};

// Compiled once for all passes: linear_logprob_head.cpp. With X = float or bf16:

// Up to 32 rows (n, K) as one panel; absent rows are zero.
void pack_panel(const float* const* rows, int64_t n, int64_t K, float* out);
void pack_panel(const float* const* rows, int64_t n, int64_t K, bf16* out);
void pack_panel(const bf16* const* rows, int64_t n, int64_t K, float* out);
void pack_panel(const bf16* const* rows, int64_t n, int64_t K, bf16* out);

// Words [first, first + 32), those that there are, of a weight.
void pack_words(const MatrixView& weight, int64_t first, float* out);
void pack_words(const MatrixView& weight, int64_t first, bf16* out);

// Rows where they are, or converted in `copy`.
Rows<float> rows_as(const MatrixView& m, int64_t begin, int64_t rows, float* copy, int64_t stride);
Rows<bf16> rows_as(const MatrixView& m, int64_t begin, int64_t rows, bf16* copy, int64_t stride);

// Columns [0, cols), at most 32, of sums (rows, 32) = or += x (rows, K) times a panel, while `bytes` from `next` on are fetched.
void multiply_panel(const Rows<float>& x, int64_t rows, const float* panel, int64_t K, Sums sums,
                    int64_t cols, const void* next, int64_t bytes);
void multiply_panel(const Rows<bf16>& x, int64_t rows, const bf16* panel, int64_t K, Sums sums,
                    int64_t cols, const void* next, int64_t bytes);

// logits (rows, kVocabBlock) of up to kVocabBlock words from `word` on.
void block_logits(const HeadPart<float>& head, const Rows<float>& hidden, int64_t rows,
                  int64_t word, int64_t words, float scale, float* logits, const void* after);
void block_logits(const HeadPart<bf16>& head, const Rows<bf16>& hidden, int64_t rows, int64_t word,
                  int64_t words, float scale, float* logits, const void* after);

namespace {

PE_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename X>
constexpr PackedKind kKindOf = sizeof(X) == 4 ? PackedKind::kF32 : PackedKind::kBF16;

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
