// Logits of a head, 64 rows and 256 words a block: one link of a row's log-softmax (log_softmax.cuh). No logit reaches memory.
//
// Packed bf16 heads run on tensor cores with the bits of `linear`, so that a sampler's logits are these. Packed f32 heads, and
// weights that are not packed, run on plain units with the CPU's bits.
#pragma once

#include "common/gemm_tile.cuh"
#include "common/launch.cuh"
#include "common/log_softmax.cuh"
#include "common/packed_operands.cuh"
#include "common/tensor_tile.cuh"

namespace pe::cuda {
namespace {

constexpr int kHeadRows = 64;  // of a block
constexpr int kHeadThreads = 256;
static_assert(kHeadThreads == kTileThreads);

constexpr int64_t kForwardWave = 4096;  // rows whose links exist at one time

inline int64_t forward_rows(int64_t T) { return T < kForwardWave ? T : kForwardWave; }

inline int64_t vocab_blocks(int64_t V) { return (V + kVocabBlock - 1) / kVocabBlock; }

// Some rows of one distribution.
struct Head {
    MatrixView hidden;
    MatrixView weight;  // null: packed
    PackedMatrix packed;
    float inverse_temperature = 1.0f;
    int64_t rows = 0;
    const int32_t* row_at = nullptr;  // of hidden, for each of them; -1: none. Null: as they are

    PE_HOST_DEVICE int64_t words() const { return weight ? weight.rows : packed.N; }
    __device__ int64_t row_of(int64_t t) const {
        if (t >= rows) return -1;
        return row_at == nullptr ? t : row_at[t];
    }
};

// A block makes the logits of 64 rows and 256 words.
inline dim3 logit_grid(const Head& head) {
    return {ceil_div(head.rows, kHeadRows), static_cast<unsigned>(vocab_blocks(head.words()))};
}

inline Head some_rows(const Head& head, int64_t begin, int64_t rows) {
    Head part = head;
    part.hidden.data = static_cast<char*>(head.hidden.data) +
                       begin * head.hidden.row_stride * dtype_bytes(head.hidden.dtype);
    part.hidden.rows = part.rows = rows;
    return part;
}

// Where a plain product finds the head: along its words, and across them.
template <typename W>
struct RawHead {
    using Element = W;
    __device__ static Operand<W, true> along(const Head& h) {
        return {row_ptr<W>(h.weight, 0), h.weight.row_stride, h.weight.rows};
    }
    __device__ static Operand<W, false> across(const Head& h) {
        return {row_ptr<W>(h.weight, 0), h.weight.row_stride, h.weight.cols};
    }
};

struct PackedHead {
    using Element = float;
    __device__ static PackedOutputs along(const Head& h) {
        return {static_cast<const float*>(h.packed.data), h.packed.K, h.packed.panels() * kPanel};
    }
    __device__ static PackedDepths across(const Head& h) {
        return {static_cast<const float*>(h.packed.data), h.packed.K, h.packed.K};
    }
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

// Both kinds of logits: multiply() by every thread of the block, then for_each_row(), which calls f(row of the block, its words in
// the lanes of the link, of one or two tables of logits) with whole warps.
template <typename H, typename Words>
struct PlainLogits {
    using T = Tile<kHeadRows, ChainColumns>;
    using Shared = typename T::Shared;
    using Coefficient = float;
    T tile{};
    float scale = 1.0f;

    __device__ void multiply(Shared& s, const Head& h) {
        constexpr bool kPairs = sizeof(H) == 2 && sizeof(typename Words::Element) == 2;
        const Operand<H, true> a{row_ptr<H>(h.hidden, 0), h.hidden.row_stride, h.rows};
        scale = h.inverse_temperature;
        tile.template multiply<kPairs>(s, a, int64_t{blockIdx.x} * kHeadRows, Words::along(h),
                                       int64_t{blockIdx.y} * kVocabBlock, h.hidden.cols);
    }
    __device__ void read(int i, float (&x)[kLaneWords]) const {
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j) x[j] = tile.acc[i][j] * scale;
    }
    template <typename F>
    __device__ static void for_each_row(Shared&, const PlainLogits& z, const F& f) {
#pragma unroll
        for (int i = 0; i < T::kRows; ++i) {
            float x[kLaneWords];
            z.read(i, x);
            f(T::warp_row(i), x);
        }
    }
    template <typename Other, typename F>
    __device__ static void for_each_row(Shared&, const PlainLogits& z, const Other& z2,
                                        const F& f) {
#pragma unroll
        for (int i = 0; i < T::kRows; ++i) {
            float x[kLaneWords], y[kLaneWords];
            z.read(i, x);
            z2.read(i, y);
            f(T::warp_row(i), x, y);
        }
    }
};

struct TensorLogits {
    static constexpr int kRowTiles = kHeadRows / kMmaRows, kPanels = kVocabBlock / kPanelWidth;
    using T = TensorTile<bf16, 1, kPanels, kRowTiles, 2>;
    using Coefficient = bf16;
    static constexpr int kPitch = kVocabBlock + 8;  // two rows' neighbours do not share a bank
    union Shared {
        T::Shared tile;
        float table[2][kMmaRows][kPitch];
    };
    static_assert(T::kThreads == kHeadThreads && T::kRows == kHeadRows);

    T::Sums sums = {};
    float scale = 1.0f;

    __device__ void multiply(Shared& s, const Head& h) {
        const TensorProduct product{h.hidden, h.packed, h.rows, h.row_at};
        scale = h.inverse_temperature;
        __syncthreads();  // what was there has been read
        T(product).multiply(s.tile, sums);
    }

    // Of row tile i, by all warps: each has a panel.
    __device__ void store(int i, float (&table)[kMmaRows][kPitch]) const {
        const int warp = static_cast<int>(threadIdx.x) / kWarp,
                  lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
        for (int j = 0; j < kPanelTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int word = warp * kPanelWidth + j * kMmaColumns + mma_column(lane, e);
                table[mma_row(lane, e)][word] = sums.of[i][j].c[e] * scale;
            }
        }
    }
    __device__ static void read(const float (&row)[kPitch], float (&x)[kLaneWords]) {
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j)
            x[j] = row[link_word(static_cast<int>(threadIdx.x) % kWarp, j)];
    }
    template <typename F>
    __device__ static void for_each_row(Shared& s, const TensorLogits& z, const F& f) {
        for_each_tile(
            s, [&](int i) { z.store(i, s.table[0]); },
            [&](int i, int r) {
                float x[kLaneWords];
                read(s.table[0][r], x);
                f(i * kMmaRows + r, x);
            });
    }
    template <typename Other, typename F>
    __device__ static void for_each_row(Shared& s, const TensorLogits& z, const Other& z2,
                                        const F& f) {
        const auto store_both = [&](int i) {
            z.store(i, s.table[0]);
            z2.store(i, s.table[1]);
        };
        for_each_tile(s, store_both, [&](int i, int r) {
            float x[kLaneWords], y[kLaneWords];
            read(s.table[0][r], x);
            read(s.table[1][r], y);
            f(i * kMmaRows + r, x, y);
        });
    }

  private:
    template <typename Store, typename F>
    __device__ static void for_each_tile(Shared&, const Store& store_tile, const F& f) {
        constexpr int kOfWarp = kMmaRows / (kHeadThreads / kWarp);
        const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
            __syncthreads();  // the product, or the tile before, has been read
            store_tile(i);
            __syncthreads();
#pragma unroll
            for (int h = 0; h < kOfWarp; ++h) f(i, warp * kOfWarp + h);
        }
    }
};

// Calls f with the logits that a head has: f.template operator()<Logits>(). Raw weights and packed f32 ones are plain.
template <typename F>
int with_logits(const Head& h, const F& f) {
    if (h.weight) {
        int status = cudaErrorInvalidValue;
        dispatch_dtype(h.hidden.dtype, [&]<typename H>(H*) {
            dispatch_dtype(h.weight.dtype, [&]<typename W>(W*) {
                status = f.template operator()<PlainLogits<H, RawHead<W>>>();
            });
        });
        return status;
    }
    const bool f32 = h.hidden.dtype == DType::kF32;
    switch (h.packed.kind) {
        case PackedKind::kF32:
            return f32 ? f.template operator()<PlainLogits<float, PackedHead>>()
                       : static_cast<int>(cudaErrorInvalidValue);
        case PackedKind::kBF16:
            return f32 ? static_cast<int>(cudaErrorInvalidValue)
                       : f.template operator()<TensorLogits>();
        case PackedKind::kI8: break;  // of sessions alone, as on the CPU
    }
    return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace pe::cuda
