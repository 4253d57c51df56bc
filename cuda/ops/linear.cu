// Layout  bf16 and int8 weights, on tensor cores: tensor_tile.cuh. A warp makes whole panels, so that a gate and its up end in one
//         thread.
//         f32 weights: gemm_tile.cuh's plain FMAs, the CPU's chain and bits.
// Order   an output walks K from one accumulator in steps of 16 (f32: of 1), whatever T, tile and
//         neighbours: decoding a row and prefilling it give the same bits. Small tiles are for few
//         rows, where the weights' way from memory is what counts.
#include "pyengine/ops/linear.h"

#include "common/gemm_tile.cuh"
#include "common/launch.cuh"
#include "common/linear_outputs.cuh"
#include "common/packed_operands.cuh"
#include "common/tensor_tile.cuh"

namespace pe::cuda {
namespace {

constexpr int64_t kFewRows = 16, kSomeRows = 512;  // up to which the smaller tiles are taken

template <int WM, int WN, int MT, typename Tile>
__device__ void finish(const LinearForwardArgs& a, const Tile& tile,
                       const typename Tile::Sums& sums) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp,
              lane = static_cast<int>(threadIdx.x) % kWarp;
    if (tile.panel + warp % WN >= a.weight.panels()) return;
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
        for (int j = 0; j < kPanelTiles / 2; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int64_t t = tile.row + (warp / WN * MT + i) * kMmaRows + mma_row(lane, e);
                if (t >= a.x.rows) continue;
                finish_sums(a, t, tile.panel + warp % WN, j * kMmaColumns + mma_column(lane, e),
                            sums.of[i][j].c[e], sums.of[i][j + kPanelTiles / 2].c[e]);
            }
        }
    }
}

template <typename W, int WM, int WN, int MT, int STAGES>
__global__ void __launch_bounds__(WM * WN * kWarp) linear_tensor_kernel(LinearForwardArgs a) {
    using Tile = TensorTile<W, WM, WN, MT, STAGES>;
    __shared__ typename Tile::Shared s;
    const TensorProduct product{a.x, a.weight, a.x.rows};
    const Tile tile(product);
    typename Tile::Sums sums = {};
    tile.multiply(s, sums);
    finish<WM, WN, MT>(a, tile, sums);
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

constexpr int kPlainRows = 64;
using PlainTile = Tile<kPlainRows, PanelColumns>;

__global__ void __launch_bounds__(kTileThreads, 1) linear_plain_kernel(LinearForwardArgs a) {
    __shared__ PlainTile::Shared s;
    PlainTile tile{};
    const int64_t row = int64_t{blockIdx.x} * kPlainRows,
                  column = int64_t{blockIdx.y} * PanelColumns::kCols;
    const Operand<float, true> x{row_ptr<float>(a.x, 0), a.x.row_stride, a.x.rows};
    const PackedOutputs w{static_cast<const float*>(a.weight.data), a.weight.K,
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
    return launch(linear_tensor_kernel<W, WM, WN, MT, STAGES>, grid, T::kThreads, stream, a);
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
