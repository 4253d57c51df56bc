// The register tile every matrix product here is made of: C (rows x cols) = or += A . B, B's columns in SIMD lanes.
//
// Each output owns one f32 accumulator that walks K in order. Stopping after some K, storing C and going on later
// (`accumulate`) is therefore the same chain, bit for bit, and so is any number of rows, any tile shape and any
// instruction set with FMA.
#pragma once

#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {

// 12 x 2 vectors fill the 32 registers of AVX-512; 6 x 2 the 16 of the others.
inline constexpr int kTileRows = kLanes == 16 ? 12 : 6;
inline constexpr int kTileCols = 2 * kLanes;

namespace {

struct TileOperands {
    const float* a;  // A(i, k) = a[i * a_row + k * a_k]
    int64_t a_row;
    int64_t a_k;
    const float* b;  // B(k, j) = b[k * b_k + j]
    int64_t b_k;
    float* c;  // C(i, j) = c[i * c_row + j]
    int64_t c_row;
    int64_t K;
    bool accumulate;
};

template <int ROWS>
[[gnu::noinline]] void tile(const TileOperands& t) {
    vec acc[ROWS][2];
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
        acc[i][0] = t.accumulate ? load(t.c + i * t.c_row) : broadcast(0.0f);
        acc[i][1] = t.accumulate ? load(t.c + i * t.c_row + kLanes) : broadcast(0.0f);
    }
    const float* a = t.a;
    const float* b = t.b;
    const int64_t a_row = t.a_row;
    for (int64_t k = 0; k < t.K; ++k) {
        const vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            const vec x = broadcast(a[i * a_row]);
            acc[i][0] = fma(x, b0, acc[i][0]);
            acc[i][1] = fma(x, b1, acc[i][1]);
        }
        a += t.a_k;
        b += t.b_k;
    }
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
        store(t.c + i * t.c_row, acc[i][0]);
        store(t.c + i * t.c_row + kLanes, acc[i][1]);
    }
}

// Fewer columns than a tile: one lane at a time, the same operations.
inline void tile_columns(const TileOperands& t, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; ++j) {
            float* c = t.c + i * t.c_row + j;
            float acc = t.accumulate ? *c : 0.0f;
            for (int64_t k = 0; k < t.K; ++k) {
                acc = fma(t.a[i * t.a_row + k * t.a_k], t.b[k * t.b_k + j], acc);
            }
            *c = acc;
        }
    }
}

inline void tile_rows(const TileOperands& t, int64_t rows) {
    static_assert(kTileRows <= 12);
    switch (rows) {
        case 1: return tile<1>(t);
        case 2: return tile<2>(t);
        case 3: return tile<3>(t);
        case 4: return tile<4>(t);
        case 5: return tile<5>(t);
        case 6: return tile<6>(t);
#if defined(__AVX512F__)
        case 7: return tile<7>(t);
        case 8: return tile<8>(t);
        case 9: return tile<9>(t);
        case 10: return tile<10>(t);
        case 11: return tile<11>(t);
        case 12: return tile<12>(t);
#endif
        default: return;
    }
}

// C (rows x cols) from tiles, columns outermost so that a strip of B stays in cache.
inline void gemm(TileOperands t, int64_t rows, int64_t cols) {
    for (int64_t j = 0; j < cols; j += kTileCols) {
        for (int64_t i = 0; i < rows; i += kTileRows) {
            TileOperands part = t;
            part.a += i * t.a_row;
            part.b += j;
            part.c += i * t.c_row + j;
            const int64_t n = rows - i < kTileRows ? rows - i : kTileRows;
            if (cols - j >= kTileCols) {
                tile_rows(part, n);
            } else {
                tile_columns(part, n, cols - j);
            }
        }
    }
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
