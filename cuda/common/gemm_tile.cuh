// The block tile every matrix product here is made of: C (ROWS x COLS) = or += A . B on plain FMA
// units.
//
// Each output owns one f32 accumulator in one thread's register that walks K in order, as in the
// CPU's gemm_tile.h: the tile's shape, the number of rows beside a row, and stopping after some K
// and going on later change no bit.
//
// Threads   8 warps. A warp owns ROWS / 8 rows and all columns, a lane COLS / 32 of the columns.
// Shared    kTileK steps of A (k, row) and B (k, column), as f32. A warp reads A as a broadcast and
// B as one vector a lane
//           without bank conflicts; a step costs ROWS/8 + COLS/32 floats read for ROWS/8 * COLS/32
//           fused multiply-adds.
#pragma once

#include "common/math.cuh"
#include "pyengine/dtype.h"

namespace pe::cuda {
namespace {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / kWarp;
constexpr int kTileK = 8;

template <int N>
struct alignas(4 * N) Vec {
    float v[N];
};

// A matrix in memory, seen as (i, k): i the row of A or the column of B. K_INNER says which of the
// two is contiguous.
template <typename T, bool K_INNER>
struct Operand {
    static constexpr bool kInner = K_INNER;
    const T* data;
    int64_t stride;  // of the dimension that is not contiguous
    int64_t count;   // i at and past this reads as zero

    __device__ float at(int64_t i, int64_t k) const {
        return to_float(K_INNER ? data[i * stride + k] : data[k * stride + i]);
    }
};

// Column j of a lane, and the place of a column in shared memory: neighbours side by side.
template <int COLS>
struct PlainColumns {
    static constexpr int kCols = COLS;
    static constexpr int kPerLane = COLS / kWarp;
    static_assert(kPerLane == 2 || kPerLane == 4);
    __device__ static int column(int lane, int j) { return lane * kPerLane + j; }
    __device__ static int place(int column) { return column; }
};

template <int ROWS, typename Columns>
struct Tile {
    static constexpr int kRows = ROWS / kTileWarps;  // of a warp
    static constexpr int kCols = Columns::kPerLane;  // of a lane
    static constexpr int kRowVec = kRows < 4 ? kRows : 4;
    static constexpr int kColVec = kCols < 4 ? kCols : 4;
    // One vector of padding a step spreads the stores of neighbouring k over the banks.
    static constexpr int kRowPitch = ROWS / kRowVec + 1;
    static constexpr int kColPitch = Columns::kCols / kColVec + 1;

    struct Shared {
        Vec<kRowVec> a[kTileK][kRowPitch];
        Vec<kColVec> b[kTileK][kColPitch];
    };

    float acc[kRows][kCols];

    __device__ static int warp_row(int i) {
        return static_cast<int>(threadIdx.x) / kWarp * kRows + i;
    }
    __device__ static int lane_column(int j) {
        return Columns::column(static_cast<int>(threadIdx.x) % kWarp, j);
    }

    // acc += A[row.., k] . B[k, column..] for k in [0, K); every thread of the block calls it. PAIRS: of each two steps the
    // second comes first, the order of the CPU's bf16 tile (packed_tile.h).
    template <bool PAIRS = false, typename A, typename B>
    __device__ void multiply(Shared& s, const A& a, int64_t row, const B& b, int64_t column,
                             int64_t K) {
        for (int64_t k0 = 0; k0 < K; k0 += kTileK) {
            load<ROWS>(a, row, k0, K, [&](int i, int k, float x) {
                s.a[PAIRS ? k ^ 1 : k][i / kRowVec].v[i % kRowVec] = x;
            });
            load<Columns::kCols>(b, column, k0, K, [&](int j, int k, float x) {
                const int place = Columns::place(j);
                s.b[PAIRS ? k ^ 1 : k][place / kColVec].v[place % kColVec] = x;
            });
            __syncthreads();
            if (K - k0 >= kTileK) {
#pragma unroll
                for (int k = 0; k < kTileK; ++k) step(s, k);
            } else {
                const int64_t steps = PAIRS ? (K - k0 + 1) / 2 * 2 : K - k0;
                for (int k = 0; k < static_cast<int>(steps); ++k) step(s, k);
            }
            __syncthreads();
        }
    }

  private:
    // Neighbouring threads read neighbouring addresses, whichever dimension is contiguous.
    template <int N, typename Matrix, typename Store>
    __device__ static void load(const Matrix& m, int64_t first, int64_t k0, int64_t K,
                                const Store& store) {
#pragma unroll 4
        for (int u = 0; u < N * kTileK / kTileThreads; ++u) {
            const int n = u * kTileThreads + static_cast<int>(threadIdx.x);
            const int i = Matrix::kInner ? n / kTileK : n % N,
                      k = Matrix::kInner ? n % kTileK : n / N;
            const bool present = first + i < m.count && k0 + k < K;
            store(i, k, present ? m.at(first + i, k0 + k) : 0.0f);
        }
    }

    __device__ void step(const Shared& s, int k) {
        const int warp = static_cast<int>(threadIdx.x) / kWarp,
                  lane = static_cast<int>(threadIdx.x) % kWarp;
        Vec<kRowVec> a[kRows / kRowVec];
        Vec<kColVec> b[kCols / kColVec];
#pragma unroll
        for (int q = 0; q < kRows / kRowVec; ++q) a[q] = s.a[k][warp * (kRows / kRowVec) + q];
#pragma unroll
        for (int q = 0; q < kCols / kColVec; ++q) b[q] = s.b[k][q * kWarp + lane];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kCols; ++j) {
                acc[i][j] =
                    fmaf(a[i / kRowVec].v[i % kRowVec], b[j / kColVec].v[j % kColVec], acc[i][j]);
            }
        }
    }
};

// f(row, column, value) for each output of the tile at (row, column) that lies inside (rows,
// columns).
template <int ROWS, typename Columns, typename F>
__device__ void for_each_output(Tile<ROWS, Columns>& tile, int64_t row, int64_t rows,
                                int64_t column, int64_t columns, const F& f) {
#pragma unroll
    for (int i = 0; i < Tile<ROWS, Columns>::kRows; ++i) {
        const int64_t r = row + tile.warp_row(i);
#pragma unroll
        for (int j = 0; j < Tile<ROWS, Columns>::kCols; ++j) {
            const int64_t c = column + tile.lane_column(j);
            if (r < rows && c < columns) f(r, c, tile.acc[i][j]);
        }
    }
}

}  // namespace
}  // namespace pe::cuda
