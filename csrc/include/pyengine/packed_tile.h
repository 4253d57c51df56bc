// The register tile over packed weights: ROWS rows of x times one panel of 32 outputs.
//
// Each output owns one f32 accumulator that walks K in order; bf16 and i8 walk pairs, the odd element first, which is what
// dpbf16ps does. Compiled once per instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include "pyengine/flush_denormals.h"
#include "pyengine/packed.h"
#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {

// 12 x 2 vectors fill the 32 registers of AVX-512; 6 x 2 the 16 of the others.
inline constexpr int kPackedRows = kLanes == 16 ? 12 : 6;

// Where the sums of a tile go, rows `row` floats apart. `continued`: they start from what stands there, so that a chain along
// K may stop, be stored and go on.
struct Sums {
    float* data;
    int64_t row;
    bool continued = false;
};

// Weights to fetch while a tile is multiplied: memory would else be idle meanwhile. `near` is for few tiles of rows: they read
// a panel once or twice and want it in the first-level cache, where the panel in use must stay for many.
struct Ahead {
    const char* at = nullptr;
    int64_t step = 0;  // bytes for each step along K, at most two cache lines
    bool near = false;

    PE_INLINE void fetch() {
        if (near) {
            __builtin_prefetch(at, 0, 3);
            __builtin_prefetch(at + 64, 0, 3);
        } else {
            __builtin_prefetch(at, 0, 2);
            __builtin_prefetch(at + 64, 0, 2);
        }
        at += step;
    }
};

// sums (rows, 32) = or += x (rows, K) times a panel; rows <= kPackedRows. Compiled once for all products: packed_tile.cpp.
void packed_panel(const float* x, int64_t stride, const float* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead ahead);
void packed_panel(const bf16* x, int64_t stride, const bf16* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead ahead);
void packed_panel(const bf16* x, int64_t stride, const int8_t* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead ahead);

// The same where x is packed itself: rows of it are lanes of a panel, of which x is the first.
void panel_by_panel(const float* x, const float* panel, int64_t K, int64_t rows, Sums sums);
void panel_by_panel(const bf16* x, const bf16* panel, int64_t K, int64_t rows, Sums sums);

// Packs `count` <= 16 rows into 16 lanes of a panel of pairs, `out` standing at the first of them; lanes past `count` are
// zeroed.
void pack_pairs(const float* const* w, int count, int64_t K, uint32_t* out);
void pack_pairs(const bf16* const* w, int count, int64_t K, uint32_t* out);

namespace {

#if defined(__AVX512BF16__)
struct FlushOutsideInstruction {};  // dpbf16ps does it by itself
#else
using FlushOutsideInstruction = FlushDenormals;
#endif

// Two neighbours along K in each 32-bit lane.
struct Pairs {
    uvec bits;
};

PE_INLINE Pairs load_pairs(const bf16* p) {
    Pairs r;
    memcpy(&r.bits, p, sizeof r.bits);
    return r;
}

// i8 values are exact in bf16.
PE_INLINE Pairs load_pairs(const int8_t* p) {
#if defined(__AVX512BF16__)
    const auto floats = [](const int8_t* from) {
        __m128i bytes;
        memcpy(&bytes, from, sizeof bytes);
        // "maskz", of all lanes: g++ 12 warns of an undefined vector in the others.
        const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xffff, bytes);
        return _mm512_maskz_cvtepi32_ps(0xffff, wide);
    };
    return {(uvec)_mm512_cvtne2ps_pbh(floats(p + 16), floats(p))};
#else
    hvec h;
    memcpy(&h, p, sizeof h);
    const ivec wide = (ivec) __builtin_convertvector(h, uvec);
    const vec even = __builtin_convertvector((wide << 24) >> 24, vec);
    const vec odd = __builtin_convertvector((wide << 16) >> 24, vec);
    return {((uvec)odd & 0xffff0000u) | ((uvec)even >> 16)};
#endif
}

PE_INLINE Pairs broadcast_pair(uint32_t pair) { return {uvec{} + pair}; }

PE_INLINE uint32_t pair_at(const bf16* p) {
    uint32_t pair;
    memcpy(&pair, p, sizeof pair);
    return pair;
}

PE_INLINE vec dot_pairs(Pairs a, Pairs b, vec acc) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a.bits, (__m512bh)b.bits);
#else
    acc = fma((vec)(a.bits & 0xffff0000u), (vec)(b.bits & 0xffff0000u), acc);
    return fma((vec)(a.bits << 16), (vec)(b.bits << 16), acc);
#endif
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
