// Layout  bf16 pages, on tensor cores: a block has 16 (row, head) pairs of one sequence and kv head a warp, and walks the keys in
//         blocks of 64, whose pages are fetched by cp.async. A word of a page is two neighbours along the sum, which is a register
//         of the B fragment: keys for the scores and values for the weighted sum are read as they lie. Scores become
//         probabilities in the registers in which they are the A fragment of the second product.
//         f32 pages: attention_plain.cu.
// Order   a row and head has one softmax state, and walks the blocks from position 0 (or its window) on, whatever shares its tile:
//         decoding a row and prefilling it give the same bits.
#include "pyengine/ops/attention.h"

#include "common/attention_pages.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "common/shared_tiles.cuh"

namespace pe::cuda {
namespace {

constexpr int kKeyTiles = kBlock / kMmaColumns;

// Rows of one sequence and kv head: row r is query head r % G of the group, at token r / G.
struct Rows {
    int sequence = 0, head = 0, begin = 0, count = 0;
};

// Tile t of all sequences: sequence s starts at tile (its first row) / rows of a tile + s, which is room enough, and at most one tile
// too many.
__device__ inline Rows rows_of_tile(const AttentionForwardArgs& a, int tile, int of_tile) {
    const int32_t* cu = ptr<int32_t>(a.cu_seqlens);
    const int G = static_cast<int>(a.num_heads / a.keys.heads);
    const auto start = [&](int64_t s) { return int64_t{cu[s]} * G / of_tile + s; };
    const int64_t s = last_not_after(a.first_positions.size, tile, start);
    const int begin = (tile - static_cast<int>(start(s))) * of_tile;
    const int left = (cu[s + 1] - cu[s]) * G - begin;
    return {static_cast<int>(s), static_cast<int>(blockIdx.y), begin,
            left < 0 ? 0 : (left < of_tile ? left : of_tile)};
}

template <int HD, int WARPS>
struct AttentionTile {
    static constexpr int kThreads = WARPS * kWarp;
    static constexpr int kRows = WARPS * kMmaRows;
    static constexpr int kSlabs =
        HD > 128 ? 1 : 2;  // keys and values take turns where both do not fit
    static constexpr int kValueTiles = HD / kMmaColumns, kValueSteps = kBlock / kMmaDepth;

    struct Shared {
        RowsOfQ<kRows, HD> q;
        union Slab {
            WordRows<HD / 2, kBlock> keys;
            WordRows<kBlock / 2, HD> values;
        } slab[kSlabs];
    };

    const AttentionForwardArgs& a;
    Shared& s;
    Rows rows;
    int warp, lane;
    int G, hd, first;  // hd is padded; first: the position of the sequence's first row

    __device__ AttentionTile(const AttentionForwardArgs& args, Shared& shared)
        : a(args),
          s(shared),
          rows(rows_of_tile(args, static_cast<int>(blockIdx.x), kRows)),
          warp(static_cast<int>(threadIdx.x) / kWarp),
          lane(static_cast<int>(threadIdx.x) % kWarp),
          G(static_cast<int>(args.num_heads / args.keys.heads)),
          hd(static_cast<int>(padded_head_dim(args.keys.head_dim))),
          first(ptr<int32_t>(args.first_positions)[rows.sequence]) {}

    __device__ int position(int r) const { return first + (rows.begin + r) / G; }
    __device__ int64_t token(int r) const {
        return ptr<int32_t>(a.cu_seqlens)[rows.sequence] + (rows.begin + r) / G;
    }
    __device__ int query_head(int r) const { return rows.head * G + (rows.begin + r) % G; }
    __device__ Paged paged(const KvPages& pages) const {
        return {pages, row_ptr<int32_t>(a.block_tables, rows.sequence), rows.head};
    }

    __device__ void read_queries() const {
        for (int i = static_cast<int>(threadIdx.x); i < kRows * HD; i += kThreads) {
            const int r = i / HD, d = i % HD;
            if (d >= hd) continue;
            const bool present = r < rows.count && d < a.keys.head_dim;
            const int64_t column = present ? query_head(r) * a.keys.head_dim + d : 0;
            s.q.at(r, d) = to_bf16(present ? read_value(a.q, token(r), column) : 0.0f);
        }
    }

    // Zeros past `last`: what stands there may be anything, and 0 times it NaN.
    __device__ void fetch_keys(int begin, int last) const {
        const Paged at = paged(a.keys);
        const int P = static_cast<int>(a.keys.page_tokens);
        for (int i = static_cast<int>(threadIdx.x); i < hd / 2 * (kBlock / 4); i += kThreads) {
            const int pair = i / (kBlock / 4), c = i % (kBlock / 4);
            const int t = begin + c * 4;
            const bool present = t <= last;
            const uint32_t* from = at.page_of(present ? t : begin) + pair * P + t % P;
            copy_async_16(s.slab[0].keys.chunk(pair, c), from, present);
        }
        commit_copies();
    }

    __device__ void fetch_values(int begin, int last) const {
        const Paged at = paged(a.values);
        const int P = static_cast<int>(a.values.page_tokens), chunks = hd / 4;
        for (int i = static_cast<int>(threadIdx.x); i < kBlock / 2 * chunks; i += kThreads) {
            const int pair = i / chunks, c = i % chunks;
            const int t = begin + pair * 2;
            const bool present = t <= last;
            const uint32_t* from = at.page_of(present ? t : begin) + t % P / 2 * hd + c * 4;
            copy_async_16(s.slab[kSlabs - 1].values.chunk(pair, c), from, present);
        }
        commit_copies();
    }

    __device__ void scores(FragmentC (&score)[kKeyTiles]) const {
        const WordsOfLane words = WordsOfLane::of(s.slab[0].keys, lane);
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) score[j] = {};
#pragma unroll
        for (int step = 0; step < HD / kMmaDepth; ++step) {
            if (step * kMmaDepth >= hd) break;
            FragmentA q;
            load_matrices(q.a, s.q.chunk(warp * kMmaRows + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < kKeyTiles; ++j) {
                mma_bf16(score[j], q, words.fragment(s.slab[0].keys, step, j));
            }
        }
    }

    __device__ void values(const FragmentA (&p)[kValueSteps], FragmentC (&sum)[kValueTiles]) const {
        const auto& right = s.slab[kSlabs - 1].values;
        const WordsOfLane words = WordsOfLane::of(right, lane);
#pragma unroll
        for (int step = 0; step < kValueSteps; ++step) {
#pragma unroll
            for (int j = 0; j < kValueTiles; ++j) {
                if (j * kMmaColumns >= hd) break;
                mma_bf16(sum[j], p[step], words.fragment(right, step, j));
            }
        }
    }

    // Of the lane's rows, lane / 4 and 8 below it.
    struct State {
        int position[2];  // -1: no row
        float largest[2] = {-infinity(), -infinity()};
        float total[2] = {0.0f, 0.0f};  // of the lane's own columns
    };

    // One step of the online softmax: scores become probabilities relative to the new maximum.
    __device__ void softmax(int begin, State& state, FragmentC (&score)[kKeyTiles],
                            FragmentC (&sum)[kValueTiles]) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            // Of the lane's columns, counted from its first one.
            const int last = state.position[h] - begin - lane % 4 * 2;
            const int hidden = a.window > 0 ? last - static_cast<int>(a.window) : -kBlock;
            float next = state.largest[h];
#pragma unroll
            for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int key = j * kMmaColumns + e;
                    float& x = score[j].c[h * 2 + e];
                    x = key <= last && key > hidden ? x * a.scale : -infinity();
                    next = max_of(x, next);
                }
            }
            next = max_of(__shfl_xor_sync(kAllLanes, next, 1), next);
            next = max_of(__shfl_xor_sync(kAllLanes, next, 2), next);
            const float base = next == -infinity() ? 0.0f : next;
            const float factor = exp_f32(state.largest[h] - base);
            float added = 0.0f;
#pragma unroll
            for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& x = score[j].c[h * 2 + e];
                    x = exp_f32(x - base);
                    added = added + x;
                }
            }
            state.total[h] = state.total[h] * factor + added;
            state.largest[h] = next;
#pragma unroll
            for (int j = 0; j < kValueTiles; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) sum[j].c[h * 2 + e] *= factor;
            }
        }
    }

    __device__ void write(const State& state, const FragmentC (&sum)[kValueTiles]) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = warp * kMmaRows + lane / 4 + h * 8;
            float total = state.total[h] + __shfl_xor_sync(kAllLanes, state.total[h], 1);
            total = total + __shfl_xor_sync(kAllLanes, total, 2);
            if (r >= rows.count) continue;
            const int64_t t = token(r), column = query_head(r) * a.keys.head_dim;
#pragma unroll
            for (int j = 0; j < kValueTiles; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int d = j * kMmaColumns + lane % 4 * 2 + e;
                    if (d >= a.keys.head_dim) continue;
                    write_value(a.out, t, column + d, sum[j].c[h * 2 + e] / total);
                }
            }
            if (a.lse && lane % 4 == 0)
                row_ptr<float>(a.lse, t)[query_head(r)] = state.largest[h] + log_f32(total);
        }
    }

    __device__ void run() const {
        read_queries();
        State state;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = warp * kMmaRows + lane / 4 + h * 8;
            state.position[h] = r < rows.count ? position(r) : -1;
        }
        FragmentC sum[kValueTiles] = {};
        const int last = position(rows.count - 1);
        for (int begin = static_cast<int>(start_of(a.window, position(0))); begin <= last;
             begin += kBlock) {
            FragmentC score[kKeyTiles];
            __syncthreads();  // queries are there, and the block before has been read
            fetch_keys(begin, last);
            if constexpr (kSlabs == 2) {
                fetch_values(begin, last);
                wait_for_copies<1>();
            } else {
                wait_for_copies<0>();
            }
            __syncthreads();
            scores(score);
            softmax(begin, state, score, sum);
            FragmentA p[kValueSteps];
#pragma unroll
            for (int i = 0; i < kValueSteps; ++i) p[i] = left_of(score[2 * i], score[2 * i + 1]);
            if constexpr (kSlabs == 1) {
                __syncthreads();
                fetch_values(begin, last);
            }
            wait_for_copies<0>();
            __syncthreads();
            values(p, sum);
        }
        write(state, sum);
    }
};

template <int HD, int WARPS>
__global__ void __launch_bounds__(WARPS* kWarp, 1) attention_kernel(AttentionForwardArgs a) {
    using Tile = AttentionTile<HD, WARPS>;
    __shared__ typename Tile::Shared s;
    const Tile tile(a, s);
    if (tile.rows.count > 0) tile.run();
}

bool on_16_bytes(const KvPages& p) {
    return reinterpret_cast<uintptr_t>(p.data) % 16 == 0 && p.page_stride % 8 == 0;
}

template <int HD, int WARPS>
int launch_tiles(const AttentionForwardArgs& a, void* stream) {
    using Tile = AttentionTile<HD, WARPS>;
    const int64_t rows = a.q.rows * (a.num_heads / a.keys.heads);
    const dim3 grid(static_cast<unsigned>(rows / Tile::kRows + a.first_positions.size),
                    static_cast<unsigned>(a.keys.heads));
    return launch(attention_kernel<HD, WARPS>, grid, Tile::kThreads, stream, a);
}

template <int HD, int WARPS>
int launch_for_rows(const AttentionForwardArgs& a, void* stream) {
    // About one warp's rows a sequence: it decodes.
    const bool few = a.q.rows * (a.num_heads / a.keys.heads) <= a.first_positions.size * kMmaRows;
    return few ? launch_tiles<HD, 1>(a, stream) : launch_tiles<HD, WARPS>(a, stream);
}

}  // namespace

int attention_forward(const AttentionForwardArgs& a, void* stream) {
    if (a.q.rows == 0 || a.first_positions.size == 0) return cudaSuccess;
    if (a.keys.dtype == DType::kF32) return attention_plain_forward(a, stream);
    if (!on_16_bytes(a.keys) || !on_16_bytes(a.values)) return cudaErrorInvalidValue;
    if (a.keys.head_dim <= 64) return launch_for_rows<64, 4>(a, stream);
    if (a.keys.head_dim <= 128) return launch_for_rows<128, 4>(a, stream);
    return launch_for_rows<256, 2>(a, stream);
}

}  // namespace pe::cuda
