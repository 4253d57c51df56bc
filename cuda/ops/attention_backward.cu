// Layout  bf16, on tensor cores, two kernels of one shape: a block owns 16 rows a warp of one sequence, keys of a kv head (for dk and
//         dv) or queries of a head (for dq), and walks its partners, the rows that see them or the keys that they see, a stage at a
//         time. Scores and dout . v are made again by each kernel, so that no sum has two writers: no atomics. p and ds become the
//         left operand in the registers in which they were made; partners stand in shared memory once, row by row, and ldmatrix
//         turns them over for the second product. f32: attention_backward_plain.cu.
// Order   one accumulator an element: for dk and dv over the group's heads, in order, for each of them the rows of the key's own
//         sequence, then response after response, in steps of 16 from each sequence's start; for dq the prompt's keys, then its
//         own. What else is in the call changes no step.
#include "pyengine/ops/attention_backward.h"

#include "common/attention_trees.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/shared_tiles.cuh"

namespace pe::cuda {
namespace {

constexpr int kDeltaThreads = 128;
constexpr int kDeltaLanes = 16;  // of a sum, as on the CPU

__global__ void __launch_bounds__(kDeltaThreads)
    attention_delta_kernel(AttentionBackwardArgs a, float* delta) {
    const int64_t item =
        (int64_t{blockIdx.x} * kDeltaThreads + static_cast<int>(threadIdx.x)) / kDeltaLanes;
    const int64_t last = a.q.rows * a.num_heads - 1;
    const int64_t at = item < last ? item : last;  // all lanes fold
    const int64_t row = at / a.num_heads, column = at % a.num_heads * a.head_dim;
    const int lane = static_cast<int>(threadIdx.x) % kDeltaLanes;
    float total = 0.0f;
    for (int64_t d = lane; d < a.head_dim; d += kDeltaLanes)
        total =
            fmaf(read_value(a.dout, row, column + d), read_value(a.out, row, column + d), total);
    total = fold16(total);
    if (lane == 0 && item <= last) delta[item] = total;
}

enum class Side { kKeys, kQueries };  // whose gradients a kernel makes

// HD       the head's elements, at most
// WARPS    of a block, 16 rows each
// STAGE    partners at a time
// COLUMNS  of the head that a block makes; more take blocks of their own
template <int HD_, int WARPS_, int STAGE_, int COLUMNS_>
struct Shape {
    static constexpr int HD = HD_, STAGE = STAGE_, COLUMNS = COLUMNS_;
    static constexpr int kThreads = WARPS_ * kWarp, kRows = WARPS_ * kMmaRows;
    static constexpr int kTiles = STAGE / kMmaColumns, kSteps = STAGE / kMmaDepth;
    static constexpr int kOutTiles = COLUMNS / kMmaColumns;
    static_assert(kTiles % 2 == 0 && kOutTiles % 2 == 0);
};

template <typename S>
struct Shared {
    RowsOfQ<S::kRows, S::HD> own[2];      // k and v, or q and dout
    RowsOfQ<S::STAGE, S::HD> partner[2];  // the other two
    float lse[S::STAGE], delta[S::STAGE];
};

template <typename S, Side SIDE>
struct Gradients {
    static constexpr bool kKeys = SIDE == Side::kKeys;

    const AttentionBackwardArgs& a;
    const float* delta;
    Shared<S>& s;
    Trees trees;
    TreeRows own;
    int warp, lane, hd, first_column;
    int64_t head, kv;  // `head` changes where keys are owned
    FragmentC sum[S::kOutTiles] = {};
    FragmentC of_values[kKeys ? S::kOutTiles : 1] = {};
    float own_lse[2] = {}, own_delta[2] = {};

    __device__ Gradients(const AttentionBackwardArgs& args, const float* delta_, Shared<S>& shared)
        : a(args),
          delta(delta_),
          s(shared),
          trees(args),
          own(trees.tile(static_cast<int>(blockIdx.x), S::kRows)),
          warp(static_cast<int>(threadIdx.x) / kWarp),
          lane(static_cast<int>(threadIdx.x) % kWarp),
          hd(static_cast<int>(padded_head_dim(args.head_dim))),
          first_column(static_cast<int>(blockIdx.z) * S::COLUMNS) {
        const int64_t G = a.num_heads / a.num_kv_heads;
        head = kKeys ? int64_t{blockIdx.y} * G : int64_t{blockIdx.y};
        kv = kKeys ? int64_t{blockIdx.y} : head / G;
    }

    // Zeros past the rows and past head_dim.
    template <int ROWS>
    __device__ void fetch(RowsOfQ<ROWS, S::HD>& to, const MatrixView& m, int64_t of_head,
                          const TreeRows& rows) const {
        const int64_t D = a.head_dim, column = of_head * D;
        const bool aligned = m.dtype == DType::kBF16 &&
                             reinterpret_cast<uintptr_t>(m.data) % 16 == 0 &&
                             m.row_stride % 8 == 0 && D % 8 == 0;
        const int chunks = hd / 8;
        for (int i = static_cast<int>(threadIdx.x); i < ROWS * chunks; i += S::kThreads) {
            const int r = i / chunks, c = i % chunks;
            const bool present = r < rows.count && c * 8 < D;
            bf16* out = to.value + RowsOfQ<ROWS, S::HD>::place(r, c);
            const int64_t row = present ? rows.row + r : rows.row;
            if (aligned) {
                copy_async_16(out, row_ptr<bf16>(m, row) + column + (present ? c * 8 : 0), present);
                continue;
            }
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const bool there = present && c * 8 + e < D;
                out[e] = to_bf16(there ? read_value(m, row, column + c * 8 + e) : 0.0f);
            }
        }
    }

    // sums (16, STAGE) of the warp's own rows and all partners, along the head.
    template <int ROWS, int PARTNERS>
    __device__ void products(FragmentC (&sums)[S::kTiles], const RowsOfQ<ROWS, S::HD>& x,
                             const RowsOfQ<PARTNERS, S::HD>& y) const {
#pragma unroll
        for (int j = 0; j < S::kTiles; ++j) sums[j] = {};
#pragma unroll
        for (int step = 0; step < S::HD / kMmaDepth; ++step) {
            if (step * kMmaDepth >= hd) break;
            FragmentA left;
            load_matrices(left.a, x.chunk(warp * kMmaRows + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < S::kTiles; j += 2) {
                uint32_t right[4];  // of two tiles, the lower half of the step first
                load_matrices(right,
                              y.chunk((j + lane / 16) * 8 + lane % 8, step * 2 + lane / 8 % 2));
                mma_bf16(sums[j], left, {{right[0], right[1]}});
                mma_bf16(sums[j + 1], left, {{right[2], right[3]}});
            }
        }
    }

    // out (16, COLUMNS) goes on with weights (16, STAGE) times the partners.
    template <int PARTNERS>
    __device__ void add(FragmentC (&out)[S::kOutTiles], const FragmentA (&weights)[S::kSteps],
                        const RowsOfQ<PARTNERS, S::HD>& y) const {
#pragma unroll
        for (int step = 0; step < S::kSteps; ++step) {
#pragma unroll
            for (int j = 0; j < S::kOutTiles; j += 2) {
                if (first_column + j * kMmaColumns >= hd) break;
                uint32_t right[4];
                load_matrices_transposed(right,
                                         y.chunk(step * kMmaDepth + lane / 8 % 2 * 8 + lane % 8,
                                                 first_column / kMmaColumns + j + lane / 16));
                mma_bf16(out[j], weights[step], {{right[0], right[1]}});
                mma_bf16(out[j + 1], weights[step], {{right[2], right[3]}});
            }
        }
    }

    __device__ static void to_left(FragmentA (&left)[S::kSteps],
                                   const FragmentC (&tiles)[S::kTiles]) {
#pragma unroll
        for (int i = 0; i < S::kSteps; ++i) left[i] = left_of(tiles[2 * i], tiles[2 * i + 1]);
    }

    // Scores become p, and dout . v becomes ds.
    __device__ void gradients_of_scores(const TreeRows& partner, FragmentC (&score)[S::kTiles],
                                        FragmentC (&dp)[S::kTiles]) const {
#pragma unroll
        for (int j = 0; j < S::kTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int mine = warp * kMmaRows + mma_row(lane, e);
                const int other = j * kMmaColumns + mma_column(lane, e);
                const int here = own.position + mine, there = partner.position + other;
                const bool present = mine < own.count && other < partner.count &&
                                     trees.sees(kKeys ? there : here, kKeys ? here : there);
                const float lse = kKeys ? s.lse[other] : own_lse[e / 2];
                const float less = kKeys ? s.delta[other] : own_delta[e / 2];
                const float p = exp_f32(score[j].c[e] * a.scale - lse);
                score[j].c[e] = present ? p : 0.0f;
                dp[j].c[e] = present ? p * (dp[j].c[e] - less) : 0.0f;
            }
        }
    }

    __device__ void meet(const TreeRows& partner) {
        __syncthreads();  // the partners before have been read
        fetch(s.partner[0], kKeys ? a.q : a.k, kKeys ? head : kv, partner);
        fetch(s.partner[1], kKeys ? a.dout : a.v, kKeys ? head : kv, partner);
        commit_copies();
        if constexpr (kKeys) {
            for (int i = static_cast<int>(threadIdx.x); i < S::STAGE; i += S::kThreads) {
                const bool present = i < partner.count;
                const int64_t row = present ? partner.row + i : partner.row;
                s.lse[i] = present ? row_ptr<float>(a.lse, row)[head] : 0.0f;
                s.delta[i] = present ? delta[row * a.num_heads + head] : 0.0f;
            }
        }
        wait_for_copies<0>();
        __syncthreads();
        FragmentC score[S::kTiles], dp[S::kTiles];
        products(score, s.own[0], s.partner[0]);
        products(dp, s.own[1], s.partner[1]);
        gradients_of_scores(partner, score, dp);
        FragmentA weights[S::kSteps];
        if constexpr (kKeys) {
            to_left(weights, score);
            add(of_values, weights, s.partner[1]);
        }
        to_left(weights, dp);
        add(sum, weights, s.partner[0]);
    }

    __device__ void write(const MatrixView& m, int64_t of_head, float scale,
                          const FragmentC (&out)[S::kOutTiles]) const {
#pragma unroll
        for (int j = 0; j < S::kOutTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int r = warp * kMmaRows + mma_row(lane, e);
                const int64_t d = first_column + j * kMmaColumns + mma_column(lane, e);
                if (r < own.count && d < a.head_dim)
                    write_value(m, own.row + r, of_head * a.head_dim + d, out[j].c[e] * scale);
            }
        }
    }

    __device__ void run() {
        fetch(s.own[0], kKeys ? a.k : a.q, kKeys ? kv : head, own);
        fetch(s.own[1], kKeys ? a.v : a.dout, kKeys ? kv : head, own);
        commit_copies();
        if constexpr (kKeys) {
            for (const int64_t end = head + a.num_heads / a.num_kv_heads; head < end; ++head) {
                trees.for_each_reader(own, S::STAGE, [&](const TreeRows& rows) { meet(rows); });
            }
            write(a.dk, kv, a.scale, sum);
            write(a.dv, kv, 1.0f, of_values);
        } else {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = warp * kMmaRows + lane / 4 + h * 8;
                if (r >= own.count) continue;
                own_lse[h] = row_ptr<float>(a.lse, own.row + r)[head];
                own_delta[h] = delta[(own.row + r) * a.num_heads + head];
            }
            trees.for_each_seen(own, S::STAGE, [&](const TreeRows& keys) { meet(keys); });
            write(a.dq, head, a.scale, sum);
        }
    }
};

template <typename S, Side SIDE>
__global__ void __launch_bounds__(S::kThreads, 1)
    attention_gradients_kernel(AttentionBackwardArgs a, const float* delta) {
    __shared__ Shared<S> s;
    Gradients<S, SIDE> gradients(a, delta, s);
    if (gradients.own.count > 0) gradients.run();
}

template <typename S>
int launch_gradients(const AttentionBackwardArgs& a, const float* delta, void* stream) {
    const auto tiles = static_cast<unsigned>(a.q.rows / S::kRows + a.prefix_rows.size);
    const unsigned parts = ceil_div(padded_head_dim(a.head_dim), S::COLUMNS);
    const int status = launch(attention_gradients_kernel<S, Side::kKeys>,
                              dim3(tiles, static_cast<unsigned>(a.num_kv_heads), parts),
                              S::kThreads, stream, a, delta);
    if (status != cudaSuccess) return status;
    return launch(attention_gradients_kernel<S, Side::kQueries>,
                  dim3(tiles, static_cast<unsigned>(a.num_heads), parts), S::kThreads, stream, a,
                  delta);
}

}  // namespace

int64_t attention_backward_workspace_bytes(int64_t T, int64_t num_heads) {
    return T * num_heads * static_cast<int64_t>(sizeof(float));
}

int attention_backward(const AttentionBackwardArgs& a, void* stream) {
    if (a.q.rows == 0) return cudaSuccess;
    auto* sums = static_cast<float*>(a.workspace);
    const dim3 grid(ceil_div(a.q.rows * a.num_heads * kDeltaLanes, kDeltaThreads));
    const int status = launch(attention_delta_kernel, grid, kDeltaThreads, stream, a, sums);
    if (status != cudaSuccess) return status;
    const float* delta = sums;
    if (a.q.dtype == DType::kF32) return attention_plain_backward(a, delta, stream);
    if (a.head_dim <= 64) return launch_gradients<Shape<64, 4, 64, 64>>(a, delta, stream);
    if (a.head_dim <= 128) return launch_gradients<Shape<128, 2, 32, 128>>(a, delta, stream);
    return launch_gradients<Shape<256, 1, 16, 128>>(a, delta, stream);
}

}  // namespace pe::cuda
