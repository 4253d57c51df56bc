// Layout  logits: a block makes 64 tokens x 256 words in registers and reduces them there; no logit
// reaches memory. The
//         256 words are one link of a token's chain, summed in the CPU's 16 lanes, and a second
//         kernel joins the links in order. A lane holds 8 words of one such chain: of each 16 words
//         it has its own, and lane 16 + l goes on where lane l stops. backward: the logits again,
//         as coefficients c (wave, V) in the workspace; then two products. A block of dhidden walks
//         all words in order, a block of dweight all tokens: one chain per element, continued from
//         wave to wave. Neighbouring blocks take the same words and other tokens, so that a weight
//         is read from memory about once.
#include "pyengine/ops/linear_logprob.h"

#include "common/gemm_tile.cuh"
#include "common/launch.cuh"
#include "common/log_softmax.cuh"

namespace pe::cuda {
namespace {

constexpr int kTokens = 64;
constexpr int kDhiddenTokens = 32, kDhiddenColumns = 64;
constexpr int kDweightWords = 64, kDweightColumns = 128;
constexpr int64_t kForwardWave = 4096;
constexpr int64_t kCoefficientFloats = int64_t{32} << 20;  // 128 MiB

int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t vocab_blocks(int64_t V) { return ceil_div(V, kVocabBlock); }

// Token rows whose results are in the workspace at a time.
int64_t wave_rows(int64_t T, int64_t V, bool backward) {
    int64_t rows = backward ? kCoefficientFloats / V / kTokens * kTokens : kForwardWave;
    if (rows < kTokens) rows = kTokens;
    return min_of(min_of(rows, kForwardWave), T);
}

struct Wave {
    int64_t begin;
    int64_t rows;
};

// Workspace of the forward pass: links (blocks, rows), tokens innermost, then the target's logit
// (rows,).
struct Links {
    Link* link;
    float* picked;
};

// A lane's words of a link.
struct ChainColumns {
    static constexpr int kCols = kVocabBlock;
    static constexpr int kPerLane = kLaneWords;
    __device__ static int column(int lane, int j) { return link_word(lane, j); }
    __device__ static int place(int column) {
        const int group = column / 16, lane = group / kPerLane * 16 + column % 16,
                  j = group % kPerLane;
        return j / 4 * (4 * kWarp) + lane * 4 + j % 4;
    }
};

using LogitTile = Tile<kTokens, ChainColumns>;

// The one place that makes logits, forward and backward.
template <typename H, typename W>
__device__ LogitTile logits(LogitTile::Shared& s, const MatrixView& hidden,
                            const MatrixView& weight, const Wave& wave) {
    LogitTile tile{};
    const Operand<H, true> a{row_ptr<H>(hidden, wave.begin), hidden.row_stride, wave.rows};
    const Operand<W, true> b{row_ptr<W>(weight, 0), weight.row_stride, weight.rows};
    constexpr bool kPairs = sizeof(H) == 2 && sizeof(W) == 2;
    tile.template multiply<kPairs>(s, a, int64_t{blockIdx.x} * kTokens, b,
                                   int64_t{blockIdx.y} * kVocabBlock, hidden.cols);
    return tile;
}

template <typename H, typename W>
__global__ void __launch_bounds__(kTileThreads, 2)
    linear_logprob_links_kernel(LinearLogprobForwardArgs a, Wave wave, Links out) {
    __shared__ LogitTile::Shared s;
    const LogitTile tile = logits<H, W>(s, a.hidden, a.weight, wave);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t first = int64_t{blockIdx.y} * kVocabBlock, V = a.weight.rows;
#pragma unroll
    for (int i = 0; i < LogitTile::kRows; ++i) {
        const int64_t t = int64_t{blockIdx.x} * kTokens + LogitTile::warp_row(i);
        if (t >= wave.rows) continue;  // the whole warp
        const int64_t target = ptr<int64_t>(a.targets)[wave.begin + t];
        float x[LogitTile::kCols];
#pragma unroll
        for (int j = 0; j < LogitTile::kCols; ++j) {
            const int64_t v = first + LogitTile::lane_column(j);
            x[j] = v < V ? tile.acc[i][j] : -infinity();
            if (v == target && v < V) out.picked[t] = x[j];
        }
        const Link link = link_of(x);
        if (lane == 16) out.link[int64_t{blockIdx.y} * wave.rows + t] = link;
    }
}

// Joins a token's links in order of the words; an id outside [0, V) gives NaN.
__global__ void __launch_bounds__(kTileThreads)
    linear_logprob_join_kernel(LinearLogprobForwardArgs a, Wave wave, Links in, int64_t blocks) {
    const int64_t t = int64_t{blockIdx.x} * kTileThreads + threadIdx.x;
    if (t >= wave.rows) return;
    Link chain = no_words();
#pragma unroll 4
    for (int64_t block = 0; block < blocks; ++block)
        chain = joined(chain, in.link[block * wave.rows + t]);
    const float lse = log_sum_exp(chain);
    const int64_t target = ptr<int64_t>(a.targets)[wave.begin + t];
    const bool known = target >= 0 && target < a.weight.rows;
    ptr<float>(a.lse)[wave.begin + t] = lse;
    ptr<float>(a.logprob)[wave.begin + t] = known ? in.picked[t] - lse : infinity() - infinity();
}

// c[t,v] = dlogprob[t] * (1[v == target] - exp(logit - lse))
template <typename H, typename W>
__global__ void __launch_bounds__(kTileThreads, 2)
    linear_logprob_coefficients_kernel(LinearLogprobBackwardArgs a, Wave wave, float* c) {
    __shared__ LogitTile::Shared s;
    const LogitTile tile = logits<H, W>(s, a.hidden, a.weight, wave);
    const int64_t first = int64_t{blockIdx.y} * kVocabBlock, V = a.weight.rows;
#pragma unroll
    for (int i = 0; i < LogitTile::kRows; ++i) {
        const int64_t t = int64_t{blockIdx.x} * kTokens + LogitTile::warp_row(i);
        if (t >= wave.rows) continue;
        const int64_t target = ptr<int64_t>(a.targets)[wave.begin + t];
        const float lse = ptr<float>(a.lse)[wave.begin + t];
        const float dlogprob = ptr<float>(a.dlogprob)[wave.begin + t];
#pragma unroll
        for (int j = 0; j < LogitTile::kCols; ++j) {
            const int64_t v = first + LogitTile::lane_column(j);
            if (v >= V) continue;
            const float pushed = exp_f32(tile.acc[i][j] - lse) * -dlogprob;
            c[t * V + v] = v == target ? pushed + dlogprob : pushed;
        }
    }
}

template <typename W>
__global__ void __launch_bounds__(kTileThreads)
    linear_logprob_dhidden_kernel(LinearLogprobBackwardArgs a, Wave wave, const float* c) {
    using Product = Tile<kDhiddenTokens, PlainColumns<kDhiddenColumns>>;
    __shared__ Product::Shared s;
    Product tile{};
    const int64_t D = a.weight.cols, V = a.weight.rows;
    const int64_t row = int64_t{blockIdx.y} * kDhiddenTokens,
                  column = int64_t{blockIdx.x} * kDhiddenColumns;
    const Operand<float, true> coefficients{c, V, wave.rows};
    const Operand<W, false> weight{row_ptr<W>(a.weight, 0), a.weight.row_stride, D};
    tile.multiply(s, coefficients, row, weight, column, V);
    for_each_output(tile, row, wave.rows, column, D, [&](int64_t t, int64_t d, float& x) {
        row_ptr<float>(a.dhidden, wave.begin + t)[d] = x;
    });
}

template <typename H>
__global__ void __launch_bounds__(kTileThreads, 2)
    linear_logprob_dweight_kernel(LinearLogprobBackwardArgs a, Wave wave, const float* c) {
    using Product = Tile<kDweightWords, PlainColumns<kDweightColumns>>;
    __shared__ Product::Shared s;
    Product tile{};
    const int64_t D = a.hidden.cols, V = a.weight.rows;
    const int64_t row = int64_t{blockIdx.x} * kDweightWords,
                  column = int64_t{blockIdx.y} * kDweightColumns;
    const Operand<float, false> coefficients{c, V, V};
    const Operand<H, false> hidden{row_ptr<H>(a.hidden, wave.begin), a.hidden.row_stride, D};
    for_each_output(tile, row, V, column, D,
                    [&](int64_t v, int64_t d, float& x) { x = row_ptr<float>(a.dweight, v)[d]; });
    tile.multiply(s, coefficients, row, hidden, column, wave.rows);
    for_each_output(tile, row, V, column, D,
                    [&](int64_t v, int64_t d, float& x) { row_ptr<float>(a.dweight, v)[d] = x; });
}

template <typename H, typename W>
int forward_wave(const LinearLogprobForwardArgs& a, const Wave& wave, const Links& links,
                 void* stream) {
    const int64_t blocks = vocab_blocks(a.weight.rows);
    const dim3 grid(ceil_div(wave.rows, kTokens), static_cast<unsigned>(blocks));
    const int status =
        launch(linear_logprob_links_kernel<H, W>, grid, kTileThreads, stream, a, wave, links);
    if (status != cudaSuccess) return status;
    return launch(linear_logprob_join_kernel, dim3(ceil_div(wave.rows, kTileThreads)), kTileThreads,
                  stream, a, wave, links, blocks);
}

template <typename H, typename W>
int backward_wave(const LinearLogprobBackwardArgs& a, const Wave& wave, float* c, void* stream) {
    const int64_t D = a.hidden.cols, V = a.weight.rows;
    const dim3 logit_grid(ceil_div(wave.rows, kTokens), static_cast<unsigned>(vocab_blocks(V)));
    int status = launch(linear_logprob_coefficients_kernel<H, W>, logit_grid, kTileThreads, stream,
                        a, wave, c);
    if (a.dhidden && status == cudaSuccess) {
        const dim3 grid(ceil_div(D, kDhiddenColumns), ceil_div(wave.rows, kDhiddenTokens));
        status = launch(linear_logprob_dhidden_kernel<W>, grid, kTileThreads, stream, a, wave, c);
    }
    if (a.dweight && status == cudaSuccess) {
        const dim3 grid(ceil_div(V, kDweightWords), ceil_div(D, kDweightColumns));
        status = launch(linear_logprob_dweight_kernel<H>, grid, kTileThreads, stream, a, wave, c);
    }
    return status;
}

// f(H*, W*, wave) for wave after wave until one fails.
template <typename F>
int for_each_wave(const MatrixView& hidden, const MatrixView& weight, bool backward, const F& f) {
    const int64_t T = hidden.rows, rows = wave_rows(T, weight.rows, backward);
    int status = cudaSuccess;
    dispatch_dtype(hidden.dtype, [&](auto* h) {
        dispatch_dtype(weight.dtype, [&](auto* w) {
            for (int64_t begin = 0; begin < T && status == cudaSuccess; begin += rows) {
                status = f(h, w, Wave{begin, min_of(rows, T - begin)});
            }
        });
    });
    return status;
}

}  // namespace

int64_t linear_logprob_workspace_bytes(int64_t T, int64_t, int64_t V, bool backward) {
    const int64_t floats = backward ? V : 2 * vocab_blocks(V) + 1;
    return wave_rows(T, V, backward) * floats * static_cast<int64_t>(sizeof(float));
}

int linear_logprob_forward(const LinearLogprobForwardArgs& a, void* stream) {
    const int64_t rows = wave_rows(a.hidden.rows, a.weight.rows, false);
    Link* link = static_cast<Link*>(a.workspace);
    const Links links{link, reinterpret_cast<float*>(link + vocab_blocks(a.weight.rows) * rows)};
    return for_each_wave(a.hidden, a.weight, false,
                         [&]<typename H, typename W>(H*, W*, const Wave& wave) {
                             return forward_wave<H, W>(a, wave, links, stream);
                         });
}

int linear_logprob_backward(const LinearLogprobBackwardArgs& a, void* stream) {
    if (!a.dhidden && !a.dweight) return cudaSuccess;
    float* c = static_cast<float*>(a.workspace);
    return for_each_wave(a.hidden, a.weight, true,
                         [&]<typename H, typename W>(H*, W*, const Wave& wave) {
                             return backward_wave<H, W>(a, wave, c, stream);
                         });
}

}  // namespace pe::cuda
