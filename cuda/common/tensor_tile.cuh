// Products on tensor cores with a packed matrix: a warp makes 16 MT rows x 32 outputs, one packed panel. A packed word is two
// neighbours along K of one output, which is a register of the B fragment: panels are read as they lie. A block walks K in stages
// of 32, fetched ahead by cp.async; chunks of 16 bytes are swizzled so that neither ldmatrix nor the reads of words meet in a bank.
//
// An output walks K from one accumulator in steps of 16, whatever the tile and its neighbours: one chain for every op that makes it.
#pragma once

#include "common/shared_tiles.cuh"
#include "pyengine/view.h"

namespace pe::cuda {
namespace {

constexpr int kPanelTiles = kPanelWidth / kMmaColumns;

// x (rows, K) bf16 times a packed matrix, bf16 or int8.
struct TensorProduct {
    MatrixView x;
    PackedMatrix weight;
    int64_t rows = 0;                 // of the result
    const int32_t* row_at = nullptr;  // of x, for each of them; -1: zeros. Null: as they are

    // -1: none
    __device__ int64_t row_of(int64_t t) const {
        if (t >= rows) return -1;
        return row_at == nullptr ? t : row_at[t];
    }
};

// WM x WN warps; a warp has MT tiles of 16 rows, and a panel.
template <typename W, int WM, int WN, int MT, int STAGES>
struct TensorTile {
    static constexpr int kThreads = WM * WN * kWarp;
    static constexpr int kRows = WM * MT * kMmaRows;

    struct Stage {
        RowsOfX<kRows> x;
        PanelOfW<W> w[WN];
    };
    struct Shared {
        Stage stage[STAGES];
    };
    struct Sums {
        FragmentC of[MT][kPanelTiles];
    };

    const TensorProduct& p;
    int64_t row, panel;  // where the block begins
    bool aligned;        // rows of x start on 16 bytes

    __device__ explicit TensorTile(const TensorProduct& product)
        : p(product),
          row(int64_t{blockIdx.x} * kRows),
          panel(int64_t{blockIdx.y} * WN),
          aligned(reinterpret_cast<uintptr_t>(p.x.data) % 16 == 0 && p.x.row_stride % 8 == 0) {}

    __device__ void fetch_x(RowsOfX<kRows>& to, int64_t k0) const {
        for (int i = static_cast<int>(threadIdx.x); i < kRows * 4; i += kThreads) {
            const int r = i / 4, c = i % 4;
            const int64_t t = p.row_of(row + r), k = k0 + c * 8;
            uint32_t* place = to.word + to.chunk(r, c);
            const bool whole = t >= 0 && k + 8 <= p.x.cols;
            const bf16* from = row_ptr<bf16>(p.x, t >= 0 ? t : 0) + (k < p.x.cols ? k : 0);
            if (aligned && (whole || t < 0 || k >= p.x.cols)) {
                copy_async_16(place, from, whole);
                continue;
            }
#pragma unroll
            for (int w = 0; w < 4; ++w) {  // the end of a row, or rows that start anywhere
                const auto at = [&](int e) -> uint32_t {
                    return t >= 0 && k + e < p.x.cols ? from[e].bits : 0u;
                };
                place[w] = at(2 * w) | at(2 * w + 1) << 16;
            }
        }
    }

    __device__ void fetch_w(PanelOfW<W> (&to)[WN], int64_t k0) const {
        constexpr int kChunks = PanelOfW<W>::kChunks;
        const int64_t pairs = (p.weight.K + 1) / 2;
        for (int i = static_cast<int>(threadIdx.x); i < WN * kStagePairs * kChunks; i += kThreads) {
            const int n = i / (kStagePairs * kChunks), pair = i / kChunks % kStagePairs,
                      c = i % kChunks;
            const int64_t from = k0 / 2 + pair;
            const bool present = panel + n < p.weight.panels() && from < pairs;
            const auto* words =
                reinterpret_cast<const uint32_t*>(p.weight.panel(present ? panel + n : 0));
            copy_async_16(to[n].word + to[n].chunk(pair, c),
                          words + (present ? from : 0) * PanelOfW<W>::kWords + c * 4, present);
        }
    }

    __device__ void multiply(Shared& s, Sums& sums) const {
        const int warp = static_cast<int>(threadIdx.x) / kWarp,
                  lane = static_cast<int>(threadIdx.x) % kWarp;
        const int64_t steps = (p.weight.K + kStageDepth - 1) / kStageDepth;
        const auto fetch = [&](int64_t step) {
            if (step < steps) {
                Stage& to = s.stage[step % STAGES];
                fetch_x(to.x, step * kStageDepth);
                fetch_w(to.w, step * kStageDepth);
            }
            commit_copies();  // an empty group too: they are counted
        };
        for (int i = 0; i < STAGES - 1; ++i) fetch(i);
        for (int64_t step = 0; step < steps; ++step) {
            wait_for_copies<STAGES - 2>();
            __syncthreads();  // all have read the stage that is fetched next
            fetch(step + STAGES - 1);
            const Stage& stage = s.stage[step % STAGES];
#pragma unroll
            for (int half = 0; half < kStageDepth / kMmaDepth; ++half) {
                FragmentB b[kPanelTiles];
#pragma unroll
                for (int j = 0; j < kPanelTiles; ++j) {
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        b[j].b[r] = stage.w[warp % WN].pair_of(half * 8 + r * 4 + lane % 4,
                                                               j * kMmaColumns + lane / 4);
                    }
                }
#pragma unroll
                for (int i = 0; i < MT; ++i) {
                    const int r = (warp / WN * MT + i) * kMmaRows + lane % 16;
                    FragmentA fragment;
                    load_matrices(fragment.a, stage.x.address(r, half * 2 + lane / 16));
#pragma unroll
                    for (int j = 0; j < kPanelTiles; ++j) mma_bf16(sums.of[i][j], fragment, b[j]);
                }
            }
        }
        wait_for_copies<0>();
    }
};

}  // namespace
}  // namespace pe::cuda
