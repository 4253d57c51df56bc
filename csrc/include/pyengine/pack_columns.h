// Rows that lie along K, packed as panels (packed.h): lanes are their columns. Compiled once per instruction set.
#pragma once

#include "pyengine/packed.h"
#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {

// Elements [k, k + count) along K, both even, of every panel. rows[i] lies at k + i, or is null: its elements are zeroed, or
// with `clear` false left as they are. Compiled once for all that pack: pack_columns.cpp.
void pack_rows_in_pairs(const PackedMatrix& p, int64_t k, int64_t count, const float* const* rows,
                        bool clear);
void pack_rows_in_pairs(const PackedMatrix& p, int64_t k, int64_t count, const bf16* const* rows,
                        bool clear);

namespace {

// The same with row_at(k), the row that lies at k.
template <typename T, typename RowAt>
void pack_pairs_of_rows(const PackedMatrix& p, int64_t k, int64_t count, const RowAt& row_at,
                        bool clear) {
    constexpr int64_t kRows = 64;  // at once
    const T* rows[kRows];
    const int64_t end = k + count + count % 2;  // pairs are whole
    for (; k < end; k += kRows) {
        const int64_t n = end - k < kRows ? end - k : kRows;
        for (int64_t i = 0; i < n; ++i) rows[i] = row_at(k + i);
        pack_rows_in_pairs(p, k, n, rows, clear);
    }
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
