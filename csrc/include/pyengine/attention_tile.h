// The two products of attention, read straight from pages: scores (queries . keys, lanes are keys) and weighted sums
// (probabilities . values, lanes are head_dim).
//
// Pages are arrays of 32-bit words (kv_pages.h). A format says what one word adds to an accumulator; a row of queries or
// probabilities, the left operand, lies in memory as the format wants it. Compiled once per instruction set.
#pragma once

#include "pyengine/kv_pages.h"
#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {

inline constexpr int64_t kLeftStride = kMaxHeadDim + 16;  // of the queries; not a power of two

#if defined(__AVX512F__)
inline constexpr int kMaxTileRows = 12;
#else
inline constexpr int kMaxTileRows = 6;
#endif

namespace {

PE_INLINE uvec load_words(const uint32_t* p) {
    uvec v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <typename T>
PE_INLINE vec splat_word(const T* p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return (vec)(uvec{} + word);
}

// A word is a float.
struct F32Format {
    using Element = float;
    using Left = float;
    static constexpr int kPack = 1;    // elements in a word
    static constexpr int kPhases = 1;  // multiply-adds for a word
    PE_INLINE static vec left(const float* a, int) { return splat_word(a); }
    PE_INLINE static vec right(const uint32_t* b, int) { return (vec)load_words(b); }
    PE_INLINE static vec mac(vec a, vec b, vec c) { return fma(a, b, c); }
    PE_INLINE static void store_left(float* p, const vec16& v) { store16(p, v); }
};

// A word is two bf16: acc = fma(odd, odd, acc), then fma(even, even, acc), which is what dpbf16ps does.
struct Bf16Format {
    using Element = bf16;
    static constexpr int kPack = 2;
#if defined(__AVX512BF16__)
    using Left = bf16;
    static constexpr int kPhases = 1;
    PE_INLINE static vec left(const bf16* a, int) { return splat_word(a); }
    PE_INLINE static vec right(const uint32_t* b, int) { return (vec)load_words(b); }
    PE_INLINE static vec mac(vec a, vec b, vec c) {
        return (vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
    }
    PE_INLINE static void store_left(bf16* p, const vec16& v) {
        const __m256bh h = _mm512_cvtneps_pbh((__m512)v.part[0]);
        memcpy(p, &h, sizeof h);
    }
#else
    using Left = float;  // holding bf16 values: splitting words again for each row would cost more
    static constexpr int kPhases = 2;
    PE_INLINE static vec left(const float* a, int phase) { return splat_word(a + 1 - phase); }
    PE_INLINE static vec right(const uint32_t* b, int phase) {
        const uvec words = load_words(b);
        return (vec)(phase == 0 ? words & 0xffff0000u : words << 16);
    }
    PE_INLINE static vec mac(vec a, vec b, vec c) { return fma(a, b, c); }
    PE_INLINE static void store_left(float* p, const vec16& v) {
        alignas(32) bf16 rounded[16];
        store16(rounded, v);
        store16(p, load16(rounded));
    }
#endif
};

// acc[i][n] takes in one word of each row and each column.
template <typename F, int ROWS, int COLS, int STRIDE>
PE_INLINE void multiply_word(vec (&acc)[ROWS][COLS], const typename F::Left* a,
                             const uint32_t* const (&b)[COLS]) {
#pragma GCC unroll 2
    for (int phase = 0; phase < F::kPhases; ++phase) {
        vec right[COLS];
#pragma GCC unroll 4
        for (int n = 0; n < COLS; ++n) right[n] = F::right(b[n], phase);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            const vec left = F::left(a + i * STRIDE, phase);
#pragma GCC unroll 4
            for (int n = 0; n < COLS; ++n) acc[i][n] = F::mac(left, right[n], acc[i][n]);
        }
    }
}

// A block of 64 keys: where each group of 16 starts.
struct Block {
    const uint32_t* key[kKeyBlock / kKeyGroup];
    const uint32_t* value[kKeyBlock / kKeyGroup];
};

// Asks for what the next block will read: its page lies elsewhere, where no hardware prefetcher would look.
template <int COLS>
PE_INLINE void prefetch(const uint32_t* const (&next)[COLS]) {
#pragma GCC unroll 4
    for (int n = 0; n < COLS; n += kKeyGroup / kLanes) __builtin_prefetch(next[n]);
}

template <typename F>
struct ScoresTile {
    const typename F::Left* q;  // (rows, hd), kLeftStride apart
    const Block* block;
    const Block* next;
    int64_t keys;   // the first of the 64 that some row sees; the others get no score
    int64_t words;  // of head_dim
    int64_t step;   // words from one to the next: page_tokens
    float scale;
    float* scores;  // (rows, 64)
};

// scores = (q . k) * scale
template <typename F, int ROWS>
[[gnu::noinline]] void scores_tile(const ScoresTile<F>& t) {
    constexpr int COLS = kLanes == 16 && ROWS <= 6 ? 4 : 2;
    for (int first = 0; first < t.keys; first += COLS * kLanes) {
        const uint32_t *b[COLS], *next[COLS];
        for (int n = 0; n < COLS; ++n) {
            const int key = first + n * kLanes;
            b[n] = t.block->key[key / kKeyGroup] + key % kKeyGroup;
            next[n] = t.next->key[key / kKeyGroup] + key % kKeyGroup;
        }
        vec acc[ROWS][COLS] = {};
        const typename F::Left* a = t.q;
        for (int64_t k = 0; k < t.words; ++k) {
            prefetch<COLS>(next);
            multiply_word<F, ROWS, COLS, kLeftStride>(acc, a, b);
            a += F::kPack;
            for (int n = 0; n < COLS; ++n) b[n] += t.step, next[n] += t.step;
        }
        const vec scale = broadcast(t.scale);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
            for (int n = 0; n < COLS; ++n)
                store(t.scores + i * kKeyBlock + first + n * kLanes, acc[i][n] * scale);
        }
    }
}

template <typename F>
struct ValuesTile {
    const typename F::Left* p;  // (rows, 64)
    const Block* block;
    const Block* next;
    int64_t keys;         // the first of the 64 that some row sees
    int64_t hd;           // padded head_dim, words from one pair of keys to the next
    const float* factor;  // (rows,)
    float* acc;           // (rows, hd), kLeftStride apart
};

// acc = acc * factor + p . v in columns [first, first + COLS vectors)
template <typename F, int ROWS, int COLS>
PE_INLINE void values_columns(const ValuesTile<F>& t, int64_t first) {
    vec acc[ROWS][COLS];
    float* out = t.acc + first;
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
        const vec factor = splat_word(t.factor + i);
#pragma GCC unroll 4
        for (int n = 0; n < COLS; ++n)
            acc[i][n] = load(out + i * kLeftStride + n * kLanes) * factor;
    }
    const typename F::Left* a = t.p;
    for (int64_t key = 0; key < t.keys; key += kKeyGroup) {
        const uint32_t *b[COLS], *next[COLS];
        for (int n = 0; n < COLS; ++n) {
            b[n] = t.block->value[key / kKeyGroup] + first + n * kLanes;
            next[n] = t.next->value[key / kKeyGroup] + first + n * kLanes;
        }
        const int64_t keys = t.keys - key < kKeyGroup ? t.keys - key : kKeyGroup;
#pragma GCC unroll 1
        for (int64_t k = 0; k < keys; k += F::kPack) {
            prefetch<COLS>(next);
            multiply_word<F, ROWS, COLS, kKeyBlock>(acc, a, b);
            a += F::kPack;
            for (int n = 0; n < COLS; ++n) b[n] += t.hd, next[n] += t.hd;
        }
    }
    for (int64_t key = (t.keys + kKeyGroup - 1) / kKeyGroup * kKeyGroup; key < kKeyBlock;
         key += kKeyGroup) {  // of these only the next block's are wanted
        const uint32_t* next = t.next->value[key / kKeyGroup] + first;
        for (int64_t k = 0; k < kKeyGroup; k += F::kPack, next += t.hd) {
            for (int n = 0; n < COLS * kLanes; n += 16) __builtin_prefetch(next + n);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 4
        for (int n = 0; n < COLS; ++n) store(out + i * kLeftStride + n * kLanes, acc[i][n]);
    }
}

template <typename F, int ROWS>
[[gnu::noinline]] void values_tile(const ValuesTile<F>& t) {
    int64_t d = 0;
    if constexpr (kLanes == 16 && ROWS <= 6) {
        for (; d + 4 * kLanes <= t.hd; d += 4 * kLanes) values_columns<F, ROWS, 4>(t, d);
    }
    for (; d + 2 * kLanes <= t.hd; d += 2 * kLanes) values_columns<F, ROWS, 2>(t, d);
    if constexpr (kLanes == 16) {
        if (d < t.hd) values_columns<F, ROWS, 1>(t, d);
    }
}

// The two products for one number of rows.
template <typename F>
struct TilePair {
    void (*scores)(const ScoresTile<F>&);
    void (*values)(const ValuesTile<F>&);
};

template <typename F>
inline const TilePair<F>& tile_of(int64_t rows) {
    static constexpr TilePair<F> kTable[kMaxTileRows] = {
        {scores_tile<F, 1>, values_tile<F, 1>},   {scores_tile<F, 2>, values_tile<F, 2>},
        {scores_tile<F, 3>, values_tile<F, 3>},   {scores_tile<F, 4>, values_tile<F, 4>},
        {scores_tile<F, 5>, values_tile<F, 5>},   {scores_tile<F, 6>, values_tile<F, 6>},
#if defined(__AVX512F__)
        {scores_tile<F, 7>, values_tile<F, 7>},   {scores_tile<F, 8>, values_tile<F, 8>},
        {scores_tile<F, 9>, values_tile<F, 9>},   {scores_tile<F, 10>, values_tile<F, 10>},
        {scores_tile<F, 11>, values_tile<F, 11>}, {scores_tile<F, 12>, values_tile<F, 12>},
#endif
    };
    return kTable[rows - 1];
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
