// What a head's gradients are made of, once coefficients c (rows, V) of some rows are there: dhidden = c . weight, and dweight += c^T .
// hidden. A block of dhidden walks all words in order, a block of dweight all rows: one accumulator an element, and dweight's goes on
// from wave to wave.
//
// Plain: c in f32, a row of it a row. On tensor cores: c in bf16, a row of it a place (tensor_dweight.cuh), and the words of a packed
// panel are taken apart and paired again along the words: two neighbours' halves.
#pragma once

#include "common/head_logits.cuh"
#include "common/launch.cuh"
#include "common/tensor_dweight.cuh"

namespace pe::cuda {
namespace {

constexpr int64_t kCoefficientBytes = int64_t{128} << 20;

// dhidden has the rows of the whole call that head.row_at names; null: not wanted. So has dweight.
struct HeadGradients {
    Head head;
    MatrixView dhidden, dweight;
};

constexpr int kDhiddenTokens = 32, kDhiddenColumns = 64;
constexpr int kDweightWords = 64, kDweightColumns = 128;

template <typename Words>
__global__ void __launch_bounds__(kTileThreads)
    head_dhidden_plain_kernel(HeadGradients a, const float* c) {
    using Product = Tile<kDhiddenTokens, PlainColumns<kDhiddenColumns>>;
    __shared__ Product::Shared s;
    Product tile{};
    const int64_t D = a.head.hidden.cols, V = a.head.words();
    const int64_t row = int64_t{blockIdx.y} * kDhiddenTokens,
                  column = int64_t{blockIdx.x} * kDhiddenColumns;
    const Operand<float, true> coefficients{c, V, a.head.rows};
    tile.multiply(s, coefficients, row, Words::across(a.head), column, V);
    for_each_output(tile, row, a.head.rows, column, D,
                    [&](int64_t t, int64_t d, float& x) { row_ptr<float>(a.dhidden, t)[d] = x; });
}

template <typename H>
__global__ void __launch_bounds__(kTileThreads, 2)
    head_dweight_plain_kernel(HeadGradients a, const float* c) {
    using Product = Tile<kDweightWords, PlainColumns<kDweightColumns>>;
    __shared__ Product::Shared s;
    Product tile{};
    const int64_t D = a.head.hidden.cols, V = a.head.words();
    const int64_t row = int64_t{blockIdx.x} * kDweightWords,
                  column = int64_t{blockIdx.y} * kDweightColumns;
    const Operand<float, false> coefficients{c, V, V};
    const Operand<H, false> hidden{row_ptr<H>(a.head.hidden, 0), a.head.hidden.row_stride, D};
    for_each_output(tile, row, V, column, D,
                    [&](int64_t v, int64_t d, float& x) { x = row_ptr<float>(a.dweight, v)[d]; });
    tile.multiply(s, coefficients, row, hidden, column, a.head.rows);
    for_each_output(tile, row, V, column, D,
                    [&](int64_t v, int64_t d, float& x) { row_ptr<float>(a.dweight, v)[d] = x; });
}

template <typename H, typename Words>
int plain_gradients(const HeadGradients& a, const float* c, void* stream) {
    const int64_t D = a.head.hidden.cols, V = a.head.words();
    int status = cudaSuccess;
    if (a.dhidden) {
        const dim3 grid(ceil_div(D, kDhiddenColumns), ceil_div(a.head.rows, kDhiddenTokens));
        status = launch(head_dhidden_plain_kernel<Words>, grid, kTileThreads, stream, a, c);
    }
    if (a.dweight && status == cudaSuccess) {
        const dim3 grid(ceil_div(V, kDweightWords), ceil_div(D, kDweightColumns));
        status = launch(head_dweight_plain_kernel<H>, grid, kTileThreads, stream, a, c);
    }
    return status;
}

constexpr int kOfDepths = 64;  // elements of dhidden that a block makes of a row
constexpr int kDepthWarps = 4, kDepthStages = 4;

// 32 words of 64 elements: a row of them for each two elements. Four rows' words would meet in a bank.
struct DepthsOfPanel {
    alignas(16) uint32_t word[kOfDepths / 2 * kPanelWidth];

    __device__ static int chunk(int pair, int c) {
        return pair * kPanelWidth + (c ^ pair % 4 * 2) * 4;
    }
    // Words v and v + 1 (v even) of element d, as a pair.
    __device__ uint32_t pair_of(int d, int v) const {
        const uint32_t* at = word + chunk(d / 2, v / 4) + v % 4;
        const uint32_t first = at[0], second = at[1];
        return d % 2 == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
    }
};

struct DepthStage {
    RowsOfX<kHeadRows> c;
    DepthsOfPanel w;
};

// `c` has a row a place; bf16 heads alone.
__global__ void __launch_bounds__(kDepthWarps* kWarp, 1)
    head_dhidden_tensor_kernel(HeadGradients a, MatrixView c) {
    __shared__ DepthStage stages[kDepthStages];
    constexpr int kThreads = kDepthWarps * kWarp;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int64_t row = int64_t{blockIdx.y} * kHeadRows, depth = int64_t{blockIdx.x} * kOfDepths;
    const PackedMatrix& packed = a.head.packed;
    const int64_t steps = packed.panels(), pairs = (packed.K + 1) / 2;
    const auto fetch = [&](int64_t step) {
        if (step < steps) {
            DepthStage& to = stages[step % kDepthStages];
            for (int i = thread; i < kHeadRows * 4; i += kThreads) {
                const int r = i / 4, k = i % 4;
                const int64_t t = row + r, v = step * kPanelWidth + k * 8;
                const bool present = t < c.rows && v < c.row_stride;  // whose end is zeros
                copy_async_16(to.c.word + to.c.chunk(r, k),
                              row_ptr<bf16>(c, present ? t : 0) + (present ? v : 0), present);
            }
            const auto* words = reinterpret_cast<const uint32_t*>(packed.panel(step));
            for (int i = thread; i < kOfDepths / 2 * (kPanelWidth / 4); i += kThreads) {
                const int pair = i / (kPanelWidth / 4), k = i % (kPanelWidth / 4);
                const int64_t from = depth / 2 + pair;
                const bool present = from < pairs;
                copy_async_16(to.w.word + to.w.chunk(pair, k),
                              words + (present ? from : 0) * kPanelWidth + k * 4, present);
            }
        }
        commit_copies();  // an empty group too: they are counted
    };
    FragmentC sums[kOfDepths / kMmaColumns] = {};
    for (int i = 0; i < kDepthStages - 1; ++i) fetch(i);
    for (int64_t step = 0; step < steps; ++step) {
        wait_for_copies<kDepthStages - 2>();
        __syncthreads();  // all have read the stage that is fetched next
        fetch(step + kDepthStages - 1);
        const DepthStage& stage = stages[step % kDepthStages];
#pragma unroll
        for (int half = 0; half < kPanelWidth / kMmaDepth; ++half) {
            FragmentA left;
            load_matrices(left.a,
                          stage.c.address(warp * kMmaRows + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < kOfDepths / kMmaColumns; ++j) {
                const int d = j * kMmaColumns + lane / 4, v = half * kMmaDepth + lane % 4 * 2;
                mma_bf16(sums[j], left, {{stage.w.pair_of(d, v), stage.w.pair_of(d, v + 8)}});
            }
        }
    }
    wait_for_copies<0>();
#pragma unroll
    for (int j = 0; j < kOfDepths / kMmaColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int64_t t = a.head.row_of(row + warp * kMmaRows + mma_row(lane, e));
            const int64_t d = depth + j * kMmaColumns + mma_column(lane, e);
            if (t >= 0 && d < a.head.hidden.cols) row_ptr<float>(a.dhidden, t)[d] = sums[j].c[e];
        }
    }
}

inline int tensor_gradients(const HeadGradients& a, const MatrixView& c, void* stream) {
    int status = cudaSuccess;
    if (a.dhidden) {
        const dim3 grid(ceil_div(a.head.packed.K, kOfDepths), ceil_div(a.head.rows, kHeadRows));
        status = launch(head_dhidden_tensor_kernel, grid, kDepthWarps * kWarp, stream, a, c);
    }
    if (a.dweight && status == cudaSuccess) {
        status = launch_tensor_dweight<bf16, true>(
            {c, a.head.hidden, a.dweight, a.head.row_at, a.head.rows}, stream);
    }
    return status;
}

// How a backward pass goes through its rows: some of them, or of their places, at a time.
struct HeadWaves {
    bool on_tensor_cores = false;
    int64_t count = 0;   // rows, or places
    int64_t wave = 0;    // of them at a time: whole stages
    int64_t stride = 0;  // of c

    HeadWaves(const Head& head, const VectorView& groups) {
        on_tensor_cores = !head.weight && head.packed.kind != PackedKind::kF32;
        const int64_t T = head.hidden.rows, V = head.words();
        count = on_tensor_cores ? num_places(T, groups ? groups.size - 1 : 1) : T;
        stride = on_tensor_cores ? (V + 7) / 8 * 8 : V;
        wave = kCoefficientBytes / (stride * element()) / kHeadRows * kHeadRows;
        if (wave < kHeadRows) wave = kHeadRows;
        if (wave > count) wave = count;
    }
    int64_t element() const { return on_tensor_cores ? 2 : 4; }
    // Coefficients, then which row stands at each place.
    int64_t coefficient_bytes() const { return (wave * stride * element() + 15) / 16 * 16; }
    int64_t bytes() const {
        return coefficient_bytes() +
               (on_tensor_cores ? count * static_cast<int64_t>(sizeof(int32_t)) : 0);
    }
};

// The gradients of a head: make(part of `head` whose rows a wave has, first row or place, c) writes coefficients.
template <typename Make>
int head_gradients(const Head& head, const VectorView& groups, const MatrixView& dhidden,
                   const MatrixView& dweight, void* workspace, void* stream, const Make& make) {
    const HeadWaves waves(head, groups);
    auto* row_at =
        reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + waves.coefficient_bytes());
    int status = cudaSuccess;
    if (waves.on_tensor_cores)
        status = find_places(groups, head.hidden.rows, row_at, waves.count, stream);
    for (int64_t begin = 0; begin < waves.count && status == cudaSuccess; begin += waves.wave) {
        const int64_t n = begin + waves.wave < waves.count ? waves.wave : waves.count - begin;
        if (waves.on_tensor_cores) {
            Head part = head;
            part.rows = n;
            part.row_at = row_at + begin;
            const MatrixView c{workspace, DType::kBF16, n, head.words(), waves.stride};
            status = make(part, 0, c);
            if (status == cudaSuccess)
                status = tensor_gradients({part, dhidden, dweight}, c, stream);
            continue;
        }
        const Head part = some_rows(head, begin, n);
        const MatrixView c{workspace, DType::kF32, n, head.words(), waves.stride};
        status = make(part, begin, c);
        if (status != cudaSuccess) break;
        HeadGradients a{part, dhidden, dweight};
        if (dhidden) a.dhidden.data = row_ptr<float>(dhidden, begin);
        const auto* values = static_cast<const float*>(workspace);
        if (!head.weight) {
            status = plain_gradients<float, PackedHead>(a, values, stream);
            continue;
        }
        dispatch_dtype(head.hidden.dtype, [&]<typename H>(H*) {
            dispatch_dtype(head.weight.dtype, [&]<typename W>(W*) {
                status = plain_gradients<H, RawHead<W>>(a, values, stream);
            });
        });
    }
    return status;
}

}  // namespace
}  // namespace pe::cuda
