// The register tile over packed weights: ROWS rows of x times one panel of 32 outputs.
//
// Each output owns one f32 accumulator that walks K in order; bf16 and i8 walk pairs, the odd element first, which is what
// dpbf16ps does. Compiled once per instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include <type_traits>

#include "pyengine/flush_denormals.h"
#include "pyengine/packed.h"
#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {

// 12 x 2 vectors fill the 32 registers of AVX-512; 6 x 2 the 16 of the others.
inline constexpr int kPackedRows = kLanes == 16 ? 12 : 6;

// How often a tile walks along K: two vectors of columns at a time.
inline constexpr int64_t kPasses = kPanel / (2 * kLanes);

// Where the sums of a tile go, rows `row` floats apart. `continued`: they start from what stands there, so that a chain along
// K may stop, be stored and go on.
struct Sums {
    float* data;
    int64_t row;
    bool continued = false;
};

// Weights to fetch while tiles are multiplied, each line once and as evenly as can be: memory would else be idle meanwhile, or
// asked for more than it gives. `near` is for few tiles of rows: they read a panel once or twice and want it in the first-level
// cache, where the panel in use must stay for many.
struct Ahead {
    const char* at = nullptr;   // the next line
    const char* end = nullptr;  // of all of them
    int64_t every = 1;          // steps along K for a fetch
    int64_t lines = 1;          // of a fetch
    bool near = false;

    Ahead() = default;

    // So many bytes, shared by so many tiles of so many steps along K.
    Ahead(const void* from, int64_t bytes, int64_t tiles, int64_t steps)
        : at(static_cast<const char*>(from)), end(at + bytes), near(tiles <= 2) {
        const int64_t in_all = tiles * kPasses * steps, needed = (bytes + 63) / 64;
        if (in_all < needed) lines = 2;
        if (tiles == 1 || in_all <= needed || needed == 0) return;
        // A short loop between two fetches costs more than it hides.
        constexpr int64_t kLeast = 8;
        every = in_all / needed;
        if (every < kLeast) {
            lines = (kLeast + every - 1) / every;
            every *= lines;
        }
    }

    // How many of the steps that are left come before the next fetch.
    PE_INLINE int64_t fetch(int64_t left) {
        if (at >= end) return left;
        for (int64_t i = 0; i < lines; ++i, at += 64) {
            near ? __builtin_prefetch(at, 0, 3) : __builtin_prefetch(at, 0, 2);
        }
        return every < left ? every : left;
    }
};

// sums (rows, 32) = or += x (rows, K) times a panel; rows <= kPackedRows. `ahead` goes on from tile to tile. Compiled once for all
// products: packed_tile.cpp.
void packed_panel(const float* x, int64_t stride, const float* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead* ahead);
void packed_panel(const bf16* x, int64_t stride, const bf16* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead* ahead);
void packed_panel(const bf16* x, int64_t stride, const int8_t* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead* ahead);

// What products of many rows are made of where the weights are not f32: bf16, or, where no instruction multiplies pairs of bf16,
// f32, since every tile would have to take the pairs apart again. In f32 the odd element of a pair stands before the even one: the
// order of the chain.
#if defined(__AVX512BF16__)
using Wide = bf16;
#else
using Wide = float;
#endif

template <typename W>
inline constexpr bool kIsWidened = !std::is_same_v<W, float> && !std::is_same_v<W, Wide>;

inline constexpr int64_t kWideDepth = 768;  // along K, of a panel that is widened: 96 KB in f32

void widen_pairs(const bf16* w, int64_t pairs, Wide* out);
void widen_pairs(const int8_t* w, int64_t pairs, Wide* out);

// packed_panel of at most kWideDepth of a panel that widen_pairs has widened, in as many steps as wide_steps says.
void wide_panel(const bf16* x, int64_t stride, const Wide* panel, int64_t K, int64_t rows,
                Sums sums, Ahead* ahead);

// packed_panel where x is packed itself: rows of it are lanes of a panel, of which x is the first.
void panel_by_panel(const bf16* x, const bf16* panel, int64_t K, int64_t rows, Sums sums);

// packed_panel where x stands in a tile: kTileWidth floats for each step along K, the first `rows` of which are factors.
inline constexpr int64_t kTileWidth = kPackedRows == 12 ? 16 : 8;
void tile_by_panel(const float* x, const float* panel, int64_t K, int64_t rows, Sums sums);

// Packs `count` <= 16 rows into 16 lanes of a panel of pairs, `out` standing at the first of them; lanes past `count` are
// zeroed.
void pack_pairs(const float* const* w, int count, int64_t K, uint32_t* out);
void pack_pairs(const bf16* const* w, int count, int64_t K, uint32_t* out);

// The same of a panel in f32.
void pack_singles(const float* const* w, int count, int64_t K, uint32_t* out);
void pack_singles(const bf16* const* w, int count, int64_t K, uint32_t* out);

namespace {

#if defined(__AVX512BF16__)
struct FlushOutsideInstruction {};  // dpbf16ps does it by itself
#else
using FlushOutsideInstruction = FlushDenormals;
#endif

// Two neighbours along K of each lane: in 32 bits, or, where no instruction multiplies pairs, as two floats.
#if defined(__AVX512BF16__)
struct Pairs {
    uvec bits;
};

PE_INLINE Pairs pairs_of(uvec bits) { return {bits}; }

PE_INLINE Pairs load_pairs(const bf16* p) {
    Pairs r;
    memcpy(&r.bits, p, sizeof r.bits);
    return r;
}

// i8 values are exact in bf16.
PE_INLINE Pairs load_pairs(const int8_t* p) {
    const auto floats = [](const int8_t* from) {
        __m128i bytes;
        memcpy(&bytes, from, sizeof bytes);
        // "maskz", of all lanes: g++ 12 warns of an undefined vector in the others.
        const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xffff, bytes);
        return _mm512_maskz_cvtepi32_ps(0xffff, wide);
    };
    return {(uvec)_mm512_cvtne2ps_pbh(floats(p + 16), floats(p))};
}

PE_INLINE vec dot_pairs(Pairs a, Pairs b, vec acc) {
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a.bits, (__m512bh)b.bits);
}
#else
struct Pairs {
    vec odd, even;
};

PE_INLINE Pairs pairs_of(uvec bits) { return {(vec)(bits & 0xffff0000u), (vec)(bits << 16)}; }

PE_INLINE Pairs load_pairs(const bf16* p) {
    uvec bits;
    memcpy(&bits, p, sizeof bits);
    return pairs_of(bits);
}

PE_INLINE Pairs load_pairs(const int8_t* p) {
#if defined(__AVX2__)
    // A pair of i16 in each 32-bit lane; "maskz" as above.
#if defined(__AVX512BW__)
    __m256i bytes;
    memcpy(&bytes, p, sizeof bytes);
    const ivec both = (ivec)_mm512_maskz_cvtepi8_epi16(0xffffffffu, bytes);
#else
    __m128i bytes;
    memcpy(&bytes, p, sizeof bytes);
    const ivec both = (ivec)_mm256_cvtepi8_epi16(bytes);
#endif
    const ivec odd = both >> 16, even = (both << 16) >> 16;
#else
    hvec bytes;
    memcpy(&bytes, p, sizeof bytes);
    const ivec both = (ivec) __builtin_convertvector(bytes, uvec);
    const ivec odd = (both << 16) >> 24, even = (both << 24) >> 24;
#endif
    return {__builtin_convertvector(odd, vec), __builtin_convertvector(even, vec)};
}

PE_INLINE vec dot_pairs(const Pairs& a, const Pairs& b, vec acc) {
    return fma(a.even, b.even, fma(a.odd, b.odd, acc));
}
#endif

PE_INLINE Pairs broadcast_pair(uint32_t pair) { return pairs_of(uvec{} + pair); }

PE_INLINE uint32_t pair_at(const bf16* p) {
    uint32_t pair;
    memcpy(&pair, p, sizeof pair);
    return pair;
}

template <int ROWS>
struct Accumulators {
    vec v[ROWS][2];

    PE_INLINE explicit Accumulators(const Sums& from) {
        if (from.continued) {
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; ++i) {
                v[i][0] = load(from.data + i * from.row);
                v[i][1] = load(from.data + i * from.row + kLanes);
            }
        } else {
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; ++i) v[i][0] = v[i][1] = broadcast(0.0f);
        }
    }
    PE_INLINE void store_to(const Sums& to) const {
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            store(to.data + i * to.row, v[i][0]);
            store(to.data + i * to.row + kLanes, v[i][1]);
        }
    }
};

inline int64_t wide_steps(int64_t K) { return sizeof(Wide) == 4 ? (K + 1) / 2 * 2 : (K + 1) / 2; }

// f(a stretch of the panel, widened; where along K it begins; its depth)
template <typename W, typename F>
inline void for_each_wide_stretch(const W* panel, int64_t K, const F& f) {
    alignas(64) Wide wide[kWideDepth * kPanel];
    for (int64_t k = 0; k < K; k += kWideDepth) {
        const int64_t depth = K - k < kWideDepth ? K - k : kWideDepth;
        widen_pairs(panel + k * kPanel, (depth + 1) / 2, wide);
        f(static_cast<const Wide*>(wide), k, depth);
    }
}

inline int64_t num_tiles(int64_t rows) { return (rows + kPackedRows - 1) / kPackedRows; }

// Calls f(row, rows) for tiles of nearly equal height.
template <typename F>
inline void for_each_tile(int64_t rows, const F& f) {
    const int64_t tiles = num_tiles(rows);
    for (int64_t i = 0; i < tiles; ++i) {
        const int64_t begin = rows * i / tiles;
        f(begin, rows * (i + 1) / tiles - begin);
    }
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
