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

// Pairs of a panel, in bf16.
inline void widen_pairs(const int8_t* w, int64_t pairs, bf16* out) {
    for (int64_t i = 0; i < 2 * kPanel * pairs; i += 2 * kLanes) {
        const Pairs wide = load_pairs(w + i);
        memcpy(out + i, &wide.bits, sizeof wide.bits);
    }
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

// Where the sums of a tile go, rows `row` floats apart. `continued`: they start from what stands there, so that a chain along
// K may stop, be stored and go on.
struct Sums {
    float* data;
    int64_t row;
    bool continued = false;
};

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

// Sums of columns [0, 2 kLanes) for rows of x; `w` stands at the first of these columns of the panel. Elements of x, in bf16 pairs of
// them, follow each other along K STEP words apart: 1 in a matrix, kPanel in a matrix that is packed itself.
template <int ROWS, int STEP>
[[gnu::noinline]] void packed_tile(const float* x, int64_t stride, const float* w, int64_t K,
                                   Ahead ahead, const Sums& sums) {
    Accumulators<ROWS> acc(sums);
    for (int64_t k = 0; k < K; ++k) {
        ahead.fetch();
        const vec w0 = load(w), w1 = load(w + kLanes);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            const vec a = broadcast(x[i * stride + k * STEP]);
            acc.v[i][0] = fma(a, w0, acc.v[i][0]);
            acc.v[i][1] = fma(a, w1, acc.v[i][1]);
        }
        w += kPanel;
    }
    acc.store_to(sums);
}

template <int ROWS, int STEP, typename W>
[[gnu::noinline]] void packed_tile(const bf16* x, int64_t stride, const W* w, int64_t K,
                                   Ahead ahead, const Sums& sums) {
    [[maybe_unused]] const FlushOutsideInstruction flush;
    Accumulators<ROWS> acc(sums);
    for (int64_t k = 0; k + 2 <= K; k += 2) {
        ahead.fetch();
        const Pairs w0 = load_pairs(w), w1 = load_pairs(w + 2 * kLanes);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            const Pairs a = broadcast_pair(pair_at(x + i * stride + k * STEP));
            acc.v[i][0] = dot_pairs(a, w0, acc.v[i][0]);
            acc.v[i][1] = dot_pairs(a, w1, acc.v[i][1]);
        }
        w += 2 * kPanel;
    }
    if (K % 2 != 0) {  // the odd half of the last pair is zero
        const Pairs w0 = load_pairs(w), w1 = load_pairs(w + 2 * kLanes);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            const Pairs a = broadcast_pair(x[i * stride + (K - 1) * STEP].bits);
            acc.v[i][0] = dot_pairs(a, w0, acc.v[i][0]);
            acc.v[i][1] = dot_pairs(a, w1, acc.v[i][1]);
        }
    }
    acc.store_to(sums);
}

template <int STEP, typename X, typename W>
inline void packed_rows(const X* x, int64_t stride, const W* w, int64_t K, int64_t rows,
                        Ahead ahead, const Sums& sums) {
    switch (rows) {
        case 1: return packed_tile<1, STEP>(x, stride, w, K, ahead, sums);
        case 2: return packed_tile<2, STEP>(x, stride, w, K, ahead, sums);
        case 3: return packed_tile<3, STEP>(x, stride, w, K, ahead, sums);
        case 4: return packed_tile<4, STEP>(x, stride, w, K, ahead, sums);
        case 5: return packed_tile<5, STEP>(x, stride, w, K, ahead, sums);
        case 6: return packed_tile<6, STEP>(x, stride, w, K, ahead, sums);
#if defined(__AVX512F__)
        case 7: return packed_tile<7, STEP>(x, stride, w, K, ahead, sums);
        case 8: return packed_tile<8, STEP>(x, stride, w, K, ahead, sums);
        case 9: return packed_tile<9, STEP>(x, stride, w, K, ahead, sums);
        case 10: return packed_tile<10, STEP>(x, stride, w, K, ahead, sums);
        case 11: return packed_tile<11, STEP>(x, stride, w, K, ahead, sums);
        case 12: return packed_tile<12, STEP>(x, stride, w, K, ahead, sums);
#endif
        default: return;
    }
}

// sums (rows, 32) = or += x (rows, K) times a panel; rows <= kPackedRows.
template <int STEP = 1, typename X, typename W>
inline void packed_panel(const X* x, int64_t stride, const W* panel, int64_t K, int64_t rows,
                         Sums sums, Ahead ahead = {}) {
    constexpr int64_t kPerColumn = sizeof(W) == 4 ? 1 : 2;
    for (int64_t column = 0; column < kPanel; column += 2 * kLanes) {
        packed_rows<STEP>(x, stride, panel + column * kPerColumn, K, rows, ahead, sums);
        sums.data += 2 * kLanes;
    }
}

// Packs `count` <= 16 rows into 16 lanes of a panel of pairs, `out` standing at the first of them; lanes past `count` are
// zeroed. Each row is rounded to bf16 a stretch at a time, then moved pair by pair.
template <typename T>
void pack_pairs(const T* const* w, int count, int64_t K, uint32_t* out) {
    constexpr int64_t kStretch = 64;
    alignas(64) bf16 rounded[16][kStretch] = {};
    for (int64_t first = 0; first < K; first += kStretch) {
        const int64_t n = K - first < kStretch ? K - first : kStretch, pairs = (n + 1) / 2;
        for (int i = 0; i < count; ++i) {
            int64_t k = 0;
            for (; k + kLanes <= n; k += kLanes) store(rounded[i] + k, load(w[i] + first + k));
            for (; k < n; ++k) rounded[i][k] = to_bf16(to_float(w[i][first + k]));
            if (n % 2 != 0) rounded[i][n] = {0};
        }
        for (int64_t pair = 0; pair < pairs; ++pair) {
            for (int i = 0; i < 16; ++i) out[pair * kPanel + i] = pair_at(rounded[i] + 2 * pair);
        }
        out += pairs * kPanel;
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
