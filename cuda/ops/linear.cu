// Layout  bf16 and int8 weights, on tensor cores: a warp makes 16 MT rows x 32 outputs, one packed
//         panel, so that a gate and its up end in one thread. A packed word is two neighbours along
//         K of one output, which is a register of the B fragment: panels are read as they lie. A
//         block walks K in stages of 32, fetched ahead by cp.async; chunks of 16 bytes are swizzled
//         so that neither ldmatrix nor the reads of words meet in a bank.
//         f32 weights: gemm_tile.cuh's plain FMAs, the CPU's chain and bits.
// Order   an output walks K from one accumulator in steps of 16 (f32: of 1), whatever T, tile and
//         neighbours: decoding a row and prefilling it give the same bits. Small tiles are for few
//         rows, where the weights' way from memory is what counts.
#include "pyengine/ops/linear.h"

#include "common/gemm_tile.cuh"
#include "common/launch.cuh"
#include "common/linear_outputs.cuh"
#include "common/mma.cuh"
#include "common/shared_tiles.cuh"

namespace pe::cuda {
namespace {

constexpr int kPanelTiles = kPanelWidth / kMmaColumns;
constexpr int64_t kFewRows = 16, kSomeRows = 512;  // up to which the smaller tiles are taken

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

    // What a block multiplies.
    int64_t row, panel;
    bool aligned;  // rows of x start on 16 bytes

    __device__ TensorTile(const LinearForwardArgs& a)
        : row(int64_t{blockIdx.x} * kRows),
          panel(int64_t{blockIdx.y} * WN),
          aligned(reinterpret_cast<uintptr_t>(a.x.data) % 16 == 0 && a.x.row_stride % 8 == 0) {}

    __device__ void fetch_x(RowsOfX<kRows>& to, const LinearForwardArgs& a, int64_t k0) const {
        for (int i = static_cast<int>(threadIdx.x); i < kRows * 4; i += kThreads) {
            const int r = i / 4, c = i % 4;
            const int64_t t = row + r, k = k0 + c * 8;
            uint32_t* place = to.word + to.chunk(r, c);
            const bool whole = t < a.x.rows && k + 8 <= a.x.cols;
            const bf16* from = row_ptr<bf16>(a.x, t < a.x.rows ? t : 0) + (k < a.x.cols ? k : 0);
            if (aligned && (whole || t >= a.x.rows || k >= a.x.cols)) {
                copy_async_16(place, from, whole);
                continue;
            }
#pragma unroll
            for (int w = 0; w < 4; ++w) {  // the end of a row, or rows that start anywhere
                const auto at = [&](int e) -> uint32_t {
                    return t < a.x.rows && k + e < a.x.cols ? from[e].bits : 0u;
                };
                place[w] = at(2 * w) | at(2 * w + 1) << 16;
            }
        }
    }

    __device__ void fetch_w(PanelOfW<W> (&to)[WN], const LinearForwardArgs& a, int64_t k0) const {
        constexpr int kChunks = PanelOfW<W>::kChunks;
        const int64_t pairs = (a.weight.K + 1) / 2;
        for (int i = static_cast<int>(threadIdx.x); i < WN * kStagePairs * kChunks; i += kThreads) {
            const int p = i / (kStagePairs * kChunks), pair = i / kChunks % kStagePairs,
                      c = i % kChunks;
            const int64_t from = k0 / 2 + pair;
            const bool present = panel + p < a.weight.panels() && from < pairs;
            const auto* words =
                reinterpret_cast<const uint32_t*>(a.weight.panel(present ? panel + p : 0));
            copy_async_16(to[p].word + to[p].chunk(pair, c),
                          words + (present ? from : 0) * PanelOfW<W>::kWords + c * 4, present);
        }
    }

    __device__ void multiply(Shared& s, const LinearForwardArgs& a, Sums& sums) const {
        const int warp = static_cast<int>(threadIdx.x) / kWarp,
                  lane = static_cast<int>(threadIdx.x) % kWarp;
        const int64_t steps = (a.weight.K + kStageDepth - 1) / kStageDepth;
        const auto fetch = [&](int64_t step) {
            if (step < steps) {
                Stage& to = s.stage[step % STAGES];
                fetch_x(to.x, a, step * kStageDepth);
                fetch_w(to.w, a, step * kStageDepth);
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

    __device__ void finish(const LinearForwardArgs& a, const Sums& sums) const {
        const int warp = static_cast<int>(threadIdx.x) / kWarp,
                  lane = static_cast<int>(threadIdx.x) % kWarp;
        if (panel + warp % WN >= a.weight.panels()) return;
#pragma unroll
        for (int i = 0; i < MT; ++i) {
#pragma unroll
            for (int j = 0; j < kPanelTiles / 2; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int64_t t = row + (warp / WN * MT + i) * kMmaRows + mma_row(lane, e);
                    if (t >= a.x.rows) continue;
                    finish_sums(a, t, panel + warp % WN, j * kMmaColumns + mma_column(lane, e),
                                sums.of[i][j].c[e], sums.of[i][j + kPanelTiles / 2].c[e]);
                }
            }
        }
    }
};

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads) linear_tensor_kernel(LinearForwardArgs a) {
    __shared__ typename Tile::Shared s;
    const Tile tile(a);
    typename Tile::Sums sums = {};
    tile.multiply(s, a, sums);
    tile.finish(a, sums);
}

// f32: lanes 0 to 15 have a panel, the others the next one, and a lane both outputs of its place, as finish_sums wants them.
struct PanelColumns {
    static constexpr int kCols = 2 * kPanelWidth;
    static constexpr int kPerLane = 2;
    __device__ static int place(int column) {
        const int lane = column / kPanelWidth * kHalfPanel + column % kHalfPanel;
        return lane * kPerLane + column / kHalfPanel % 2;
    }
};

// A packed f32 matrix, seen as (k, output).
struct PackedOperand {
    static constexpr bool kInner = false;
    const float* data;
    int64_t K, count;

    __device__ float at(int64_t n, int64_t k) const {
        return data[(n / kPanel * K + k) * kPanel + n % kPanel];
    }
};

constexpr int kPlainRows = 64;
using PlainTile = Tile<kPlainRows, PanelColumns>;

__global__ void __launch_bounds__(kTileThreads, 1) linear_plain_kernel(LinearForwardArgs a) {
    __shared__ PlainTile::Shared s;
    PlainTile tile{};
    const int64_t row = int64_t{blockIdx.x} * kPlainRows,
                  column = int64_t{blockIdx.y} * PanelColumns::kCols;
    const Operand<float, true> x{row_ptr<float>(a.x, 0), a.x.row_stride, a.x.rows};
    const PackedOperand w{static_cast<const float*>(a.weight.data), a.weight.K,
                          a.weight.panels() * kPanel};
    tile.multiply(s, x, row, w, column, a.weight.K);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t panel = column / kPanel + lane / kHalfPanel;
    if (panel >= a.weight.panels()) return;
#pragma unroll
    for (int i = 0; i < PlainTile::kRows; ++i) {
        const int64_t t = row + PlainTile::warp_row(i);
        if (t < a.x.rows)
            finish_sums(a, t, panel, lane % kHalfPanel, tile.acc[i][0], tile.acc[i][1]);
    }
}

template <typename W, int WM, int WN, int MT, int STAGES>
int launch_tensor(const LinearForwardArgs& a, void* stream) {
    using T = TensorTile<W, WM, WN, MT, STAGES>;
    const dim3 grid(ceil_div(a.x.rows, T::kRows), ceil_div(a.weight.panels(), WN));
    return launch(linear_tensor_kernel<T>, grid, T::kThreads, stream, a);
}

template <typename W>
int forward_on_tensor_cores(const LinearForwardArgs& a, void* stream) {
    if (a.x.rows <= kFewRows) return launch_tensor<W, 1, 1, 1, 8>(a, stream);
    if (a.x.rows <= kSomeRows) return launch_tensor<W, 2, 2, 2, 4>(a, stream);
    return launch_tensor<W, 2, 4, 4, 3>(a, stream);
}

}  // namespace

int linear_forward(const LinearForwardArgs& a, void* stream) {
    if (a.x.rows == 0 || a.weight.N == 0) return cudaSuccess;
    switch (a.weight.kind) {
        case PackedKind::kF32: {
            const dim3 grid(ceil_div(a.x.rows, kPlainRows), ceil_div(a.weight.panels(), 2));
            return launch(linear_plain_kernel, grid, kTileThreads, stream, a);
        }
        case PackedKind::kBF16: return forward_on_tensor_cores<bf16>(a, stream);
        case PackedKind::kI8: return forward_on_tensor_cores<int8_t>(a, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace pe::cuda
