// The register tile of attention_backward, and the two layouts that its operands are copied into.
//
// An operand is an array of 32-bit words: a float, or two bf16 that are neighbours along the sum. Compiled once per
// instruction set.
#pragma once

#include "pyengine/attention_backward_workspace.h"
#include "pyengine/packed_tile.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {

// 8 x 2 accumulators hide the latency of a multiply-add with registers to spare; 4 x 2 where there are only 16.
inline constexpr int kGradientRows = kLanes == 16 ? 8 : 4;

namespace {

struct F32Words {
    using Element = float;
    static constexpr int kPack = 1;
    PE_INLINE static vec mac(uvec a, uvec b, vec c) { return fma((vec)a, (vec)b, c); }
};

struct Bf16Words {
    using Element = bf16;
    static constexpr int kPack = 2;
    PE_INLINE static vec mac(uvec a, uvec b, vec c) {
        return dot_pairs(pairs_of(a), pairs_of(b), c);
    }
};

PE_INLINE uvec read_words(const uint32_t* p) {
    uvec v;
    memcpy(&v, p, sizeof v);
    return v;
}

PE_INLINE void write_words(uint32_t* p, uvec v) { memcpy(p, &v, sizeof v); }

// The left operand, by its strides in words: from row to row, from word to word of the sum.
template <typename W>
struct ByRow {
    static constexpr int64_t kRow = kRowBlock / W::kPack, kWord = 1;
};
struct ByWord {
    static constexpr int64_t kRow = 1, kWord = kRowBlock;
};

// out (kGradientRows, COLS vectors) continues (or begins) its chains over `words`.
template <typename W, typename Left, int COLS>
[[gnu::noinline]] void gradient_tile(const uint32_t* left, const uint32_t* right,
                                     int64_t right_stride, int64_t words, float* out,
                                     int64_t out_stride, bool begin) {
    vec acc[kGradientRows][COLS] = {};
    if (!begin) {
#pragma GCC unroll 8
        for (int i = 0; i < kGradientRows; ++i) {
#pragma GCC unroll 2
            for (int n = 0; n < COLS; ++n) acc[i][n] = load(out + i * out_stride + n * kLanes);
        }
    }
    for (int64_t w = 0; w < words; ++w) {
        uvec b[COLS];
#pragma GCC unroll 2
        for (int n = 0; n < COLS; ++n) b[n] = read_words(right + n * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kGradientRows; ++i) {
            const uvec a = uvec{} + left[i * Left::kRow];
#pragma GCC unroll 2
            for (int n = 0; n < COLS; ++n) acc[i][n] = W::mac(a, b[n], acc[i][n]);
        }
        left += Left::kWord;
        right += right_stride;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kGradientRows; ++i) {
#pragma GCC unroll 2
        for (int n = 0; n < COLS; ++n) store(out + i * out_stride + n * kLanes, acc[i][n]);
    }
}

// The same for `columns`, a multiple of 16.
template <typename W, typename Left>
PE_INLINE void gradient_rows(const uint32_t* left, const uint32_t* right, int64_t right_stride,
                             int64_t words, int64_t columns, float* out, int64_t out_stride,
                             bool begin) {
    int64_t c = 0;
    for (; c + 2 * kLanes <= columns; c += 2 * kLanes)
        gradient_tile<W, Left, 2>(left, right + c, right_stride, words, out + c, out_stride, begin);
    if constexpr (kLanes == 16) {
        if (c < columns)
            gradient_tile<W, Left, 1>(left, right + c, right_stride, words, out + c, out_stride,
                                      begin);
    }
}

// Copies up to 16 rows of one head. `across` (null: not wanted) stands at the first of their lanes in [word of hd][64 rows];
// `along` is [word of rows][hd]. Rows and columns past the end are zero.
template <typename W, typename T>
void pack_rows(const T* rows, int64_t stride, int64_t count, int64_t head_dim, uint32_t* across,
               uint32_t* along) {
    using E = typename W::Element;
    constexpr int64_t kStride = kMaxHeadDim + 16;  // not a power of two
    alignas(64) E copy[16][kStride];
    const int64_t hd = padded_head_dim(head_dim);
    for (int64_t i = 0; i < 16; ++i) {
        if (sizeof(T) == sizeof(E) || i >= count) {
            const int64_t n = i < count ? head_dim : 0;
            memcpy(copy[i], rows + (i < count ? i : 0) * stride,
                   static_cast<size_t>(n) * sizeof(E));
            memset(copy[i] + n, 0, static_cast<size_t>(hd - n) * sizeof(E));
        } else {
            for_each_16(head_dim, [&](int64_t d, int64_t n) {
                store16(copy[i] + d, read(rows + i * stride + d, n));
            });
        }
    }
    if (across != nullptr) {
        for (int64_t w = 0; w < hd / W::kPack; ++w) {
            for (int64_t i = 0; i < 16; ++i)
                memcpy(across + w * kRowBlock + i, copy[i] + w * W::kPack, sizeof(uint32_t));
        }
    }
    if (along == nullptr) return;
    for (int64_t i = 0; i < 16; i += W::kPack, along += hd) {
        if constexpr (W::kPack == 1) {
            memcpy(along, copy[i], static_cast<size_t>(hd) * sizeof(uint32_t));
        } else {
            for (int64_t d = 0; d < hd; ++d)
                along[d] = copy[i][d].bits | static_cast<uint32_t>(copy[i + 1][d].bits) << 16;
        }
    }
}

// Stores rows k and k + 1 of p or ds in [key][64 rows], and as pairs of keys where `pairs` is not null.
PE_INLINE void store_pair(float* out, int64_t row, vec a, vec b, uint32_t*) {
    store(out, a);
    store(out + row, b);
}

PE_INLINE void store_pair(bf16* out, int64_t row, vec a, vec b, uint32_t* pairs) {
    uvec low, high;
#if defined(__AVX512BF16__)
    const __m256bh x = _mm512_cvtneps_pbh((__m512)a), y = _mm512_cvtneps_pbh((__m512)b);
    memcpy(out, &x, sizeof x);
    memcpy(out + row, &y, sizeof y);
    low = (uvec)_mm512_maskz_cvtepu16_epi32(kAllLanes, (__m256i)x),
    high = (uvec)_mm512_maskz_cvtepu16_epi32(kAllLanes, (__m256i)y);
#else
    store(out, a);
    store(out + row, b);
    low = (uvec)load(out) >> 16, high = (uvec)load(out + row) >> 16;
#endif
    if (pairs != nullptr) write_words(pairs, low | high << 16);
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
