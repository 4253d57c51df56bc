// The products and the packing of packed_tile.h.
#include "pyengine/packed_tile.h"

namespace pe::cpu::PE_ISA {
namespace {

// Sums of columns [0, 2 kLanes) for rows of x; `w` stands at the first of these columns of the panel. Elements of x, in bf16 pairs of
// them, follow each other along K STEP words apart: 1 in a matrix, kPanel in a matrix that is packed itself.
template <int ROWS, int STEP>
[[gnu::noinline]] void packed_tile(const float* x, int64_t stride, const float* w, int64_t K,
                                   Ahead* ahead, const Sums& sums) {
    Accumulators<ROWS> acc(sums);
    Ahead fetches = *ahead;
    for (int64_t k = 0; k < K;) {
        for (const int64_t end = k + fetches.fetch(K - k); k < end; ++k) {
            const vec w0 = load(w), w1 = load(w + kLanes);
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; ++i) {
                const vec a = broadcast(x[i * stride + k * STEP]);
                acc.v[i][0] = fma(a, w0, acc.v[i][0]);
                acc.v[i][1] = fma(a, w1, acc.v[i][1]);
            }
            w += kPanel;
        }
    }
    ahead->at = fetches.at;
    acc.store_to(sums);
}

template <int ROWS, int STEP, typename W>
[[gnu::noinline]] void packed_tile(const bf16* x, int64_t stride, const W* w, int64_t K,
                                   Ahead* ahead, const Sums& sums) {
    [[maybe_unused]] const FlushOutsideInstruction flush;
    Accumulators<ROWS> acc(sums);
    Ahead fetches = *ahead;
    for (int64_t pair = 0; pair < K / 2;) {
        for (const int64_t end = pair + fetches.fetch(K / 2 - pair); pair < end; ++pair) {
            const Pairs w0 = load_pairs(w), w1 = load_pairs(w + 2 * kLanes);
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; ++i) {
                const Pairs a = broadcast_pair(pair_at(x + i * stride + 2 * pair * STEP));
                acc.v[i][0] = dot_pairs(a, w0, acc.v[i][0]);
                acc.v[i][1] = dot_pairs(a, w1, acc.v[i][1]);
            }
            w += 2 * kPanel;
        }
    }
    ahead->at = fetches.at;
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
                        Ahead* ahead, const Sums& sums) {
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

template <int STEP, typename X, typename W>
void multiply(const X* x, int64_t stride, const W* panel, int64_t K, int64_t rows, Sums sums,
              Ahead* ahead) {
    constexpr int64_t kPerColumn = sizeof(W) == 4 ? 1 : 2;
    for (int64_t column = 0; column < kPanel; column += 2 * kLanes) {
        packed_rows<STEP>(x, stride, panel + column * kPerColumn, K, rows, ahead, sums);
        sums.data += 2 * kLanes;
    }
}

#if defined(__AVX512BF16__)
template <typename W>
void widen(const W* w, int64_t pairs, bf16* out) {
    for (int64_t i = 0; i < 2 * kPanel * pairs; i += 2 * kLanes) {
        const Pairs wide = load_pairs(w + i);
        memcpy(out + i, &wide.bits, sizeof wide.bits);
    }
}
#else
template <typename W>
void widen(const W* w, int64_t pairs, float* out) {
    for (int64_t pair = 0; pair < pairs; ++pair, w += 2 * kPanel, out += 2 * kPanel) {
        for (int64_t n = 0; n < kPanel; n += kLanes) {
            const Pairs wide = load_pairs(w + 2 * n);
            store(out + n, wide.odd);
            store(out + kPanel + n, wide.even);
        }
    }
}

// A row of x in the order of a widened panel; an odd K ends with a zero before its last element, as there.
void widen_row(const bf16* x, int64_t K, float* out) {
    typedef uint32_t words __attribute__((vector_size(sizeof(hvec))));
    int64_t k = 0;
    for (; k + kLanes <= K; k += kLanes) {
        words pairs;
        memcpy(&pairs, x + k, sizeof pairs);
        const hvec swapped = (hvec)((pairs << 16) | (pairs >> 16));
        store(out + k, (vec)(__builtin_convertvector(swapped, uvec) << 16));
    }
    for (; k < K; k += 2) {
        out[k] = k + 1 < K ? to_float(x[k + 1]) : 0.0f;
        out[k + 1] = to_float(x[k]);
    }
}
#endif

typedef uint32_t quad __attribute__((vector_size(16)));

// Four words of four rows, `row` words apart, become four steps along K of four lanes.
PE_INLINE void turn_over(const uint32_t* from, int64_t row, uint32_t* out) {
    quad r[4];
    for (int i = 0; i < 4; ++i) memcpy(&r[i], from + i * row, sizeof r[i]);
    const quad low01 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
    const quad low23 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    const quad high01 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const quad high23 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    const quad turned[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                            __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                            __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                            __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
    for (int i = 0; i < 4; ++i) memcpy(out + i * kPanel, &turned[i], sizeof turned[i]);
}

// Rows become elements E of words a stretch at a time, then are turned over.
template <typename E, typename T>
void pack(const T* const* w, int count, int64_t K, uint32_t* out) {
    constexpr int64_t kStretch = 64, kPerWord = 4 / sizeof(E), kRow = kStretch / kPerWord;
    alignas(64) uint32_t words[16][kRow] = {};
    for (int64_t first = 0; first < K; first += kStretch) {
        const int64_t n = K - first < kStretch ? K - first : kStretch;
        const int64_t steps = (n + kPerWord - 1) / kPerWord;
        for (int i = 0; i < count; ++i) {
            alignas(64) E row[kStretch];
            int64_t k = 0;
            for (; k + kLanes <= n; k += kLanes) store(row + k, load(w[i] + first + k));
            for (; k < n; ++k) store_float(row + k, to_float(w[i][first + k]));
            if (n % kPerWord != 0) store_float(row + n, 0.0f);
            memcpy(words[i], row, static_cast<size_t>(steps) * sizeof(uint32_t));
        }
        int64_t step = 0;
        for (; step + 4 <= steps; step += 4) {
            for (int i = 0; i < 16; i += 4) {
                turn_over(words[i] + step, kRow, out + step * kPanel + i);
            }
        }
        for (; step < steps; ++step) {
            for (int i = 0; i < 16; ++i) out[step * kPanel + i] = words[i][step];
        }
        out += steps * kPanel;
    }
}

}  // namespace

void packed_panel(const float* x, int64_t stride, const float* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead* ahead) {
    multiply<1>(x, stride, panel, K, rows, sums, ahead);
}

void packed_panel(const bf16* x, int64_t stride, const bf16* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead* ahead) {
    multiply<1>(x, stride, panel, K, rows, sums, ahead);
}

void packed_panel(const bf16* x, int64_t stride, const int8_t* panel, int64_t K, int64_t rows,
                  Sums sums, Ahead* ahead) {
    multiply<1>(x, stride, panel, K, rows, sums, ahead);
}

void tile_by_panel(const float* x, const float* panel, int64_t K, int64_t rows, Sums sums) {
    Ahead none;  // what is packed itself is in cache as its panel is
    multiply<kTileWidth>(x, 1, panel, K, rows, sums, &none);
}

void panel_by_panel(const bf16* x, const bf16* panel, int64_t K, int64_t rows, Sums sums) {
    Ahead none;
    multiply<kPanel>(x, 2, panel, K, rows, sums, &none);
}

void widen_pairs(const bf16* w, int64_t pairs, Wide* out) { widen(w, pairs, out); }
void widen_pairs(const int8_t* w, int64_t pairs, Wide* out) { widen(w, pairs, out); }

void wide_panel(const bf16* x, int64_t stride, const Wide* panel, int64_t K, int64_t rows,
                Sums sums, Ahead* ahead) {
#if defined(__AVX512BF16__)
    multiply<1>(x, stride, panel, K, rows, sums, ahead);
#else
    // Widened for each panel again: a few operations beside the 32 products of each element.
    constexpr int64_t kStride = kWideDepth + 16;  // rows do not share the places of a cache
    alignas(64) float wide[kPackedRows * kStride];
    for (int64_t i = 0; i < rows; ++i) widen_row(x + i * stride, K, wide + i * kStride);
    const FlushDenormals flush;
    multiply<1>(wide, kStride, panel, (K + 1) / 2 * 2, rows, sums, ahead);
#endif
}

void pack_pairs(const float* const* w, int count, int64_t K, uint32_t* out) {
    pack<bf16>(w, count, K, out);
}

void pack_pairs(const bf16* const* w, int count, int64_t K, uint32_t* out) {
    pack<bf16>(w, count, K, out);
}

void pack_singles(const float* const* w, int count, int64_t K, uint32_t* out) {
    pack<float>(w, count, K, out);
}

void pack_singles(const bf16* const* w, int count, int64_t K, uint32_t* out) {
    pack<float>(w, count, K, out);
}

}  // namespace pe::cpu::PE_ISA
