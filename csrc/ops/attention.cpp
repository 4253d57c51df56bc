#include "pyengine/ops/attention.h"

#include <limits>

#include "pyengine/attention_tile.h"
#include "pyengine/flush_denormals.h"
#include "pyengine/parallel.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kTasksPerThread = 8;  // enough to even out
constexpr int64_t kMaxChunk = 16;       // tiles
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Like max() of simd.h, in registers: it is taken for every row and block.
PE_INLINE float largest_of(const vec16& v) {
    vec m = v.part[0];
    for (int i = 1; i < vec16::kParts; ++i) m = max(m, v.part[i]);
#if defined(__AVX512F__)
    m = max(m, __builtin_shufflevector(m, m, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14,
                                       15));
    m = max(m, __builtin_shufflevector(m, m, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7));
#elif defined(__AVX2__)
    m = max(m, __builtin_shufflevector(m, m, 4, 5, 6, 7, 4, 5, 6, 7));
#endif
    const float a = m[0] > m[1] ? m[0] : m[1], b = m[2] > m[3] ? m[2] : m[3];
    return a > b ? a : b;
}

// Rows of one sequence and one kv head. Row r is query head r % G of the group, at token r / G.
struct Rows {
    int64_t sequence, head;
    int64_t begin, count;  // count <= kMaxTileRows
};

template <typename F>
class Tile {
  public:
    Tile(const AttentionForwardArgs& a, const Rows& rows)
        : a_(a),
          rows_(rows),
          G_(a.num_heads / a.keys.heads),
          hd_(padded_head_dim(a.keys.head_dim)) {
        const int64_t first = ptr<int32_t>(a.first_positions)[rows.sequence];
        for (int64_t r = 0; r < rows.count; ++r) position_[r] = first + (rows.begin + r) / G_;
        for (int64_t r = 0; r < 16; ++r) {
            largest_[r] = r < rows.count ? kMinusInfinity : 0.0f;
            store16(total_[r], broadcast16(0.0f));
        }
        for (int64_t r = 0; r < rows.count; ++r) {
            for (int64_t d = 0; d < hd_; d += 16)
                store16(acc_ + r * kLeftStride + d, broadcast16(0.0f));
        }
    }

    // `after` is what this thread computes next; its queries and first keys are fetched meanwhile.
    template <typename Q, typename O>
    void run(const Rows& after) {
        for (int64_t r = 0; r < rows_.count; ++r)
            read_query(head_of<Q>(a_.q, rows_, r), q_ + r * kLeftStride);
        for (int64_t r = 0; r < after.count; ++r) fetch_query(head_of<Q>(a_.q, after, r));
        const int64_t last = position_[rows_.count - 1];
        const TilePair<F>& tile = tile_of<F>(rows_.count);
        const int64_t start = start_of(position_[0]);
        Block block = block_at(rows_, start, last);
        for (int64_t begin = start; begin <= last; begin += kKeyBlock) {
            const int64_t keys = last + 1 - begin < kKeyBlock ? last + 1 - begin : kKeyBlock;
            const Block next =
                begin + keys <= last ? block_at(rows_, begin + kKeyBlock, last) : first_of(after);
            tile.scores(
                {q_, &block, &next, keys, hd_ / F::kPack, a_.keys.page_tokens, a_.scale, scores_});
            softmax(begin, keys);
            tile.values({p_, &block, &next, keys, hd_, factor_, acc_});
            block = next;
        }
        for (int64_t r = 0; r < rows_.count; ++r) write_row(head_of<O>(a_.out, rows_, r), r);
        if (a_.lse) write_lse();
    }

  private:
    int64_t token_of(const Rows& rows, int64_t r) const {
        return ptr<int32_t>(a_.cu_seqlens)[rows.sequence] + (rows.begin + r) / G_;
    }
    int64_t query_head_of(const Rows& rows, int64_t r) const {
        return rows.head * G_ + (rows.begin + r) % G_;
    }

    template <typename X>
    X* head_of(const MatrixView& m, const Rows& rows, int64_t r) const {
        return row_ptr<X>(m, token_of(rows, r)) + query_head_of(rows, r) * a_.keys.head_dim;
    }

    template <typename Q>
    void read_query(const Q* q, typename F::Left* left) const {
        for_each_16(a_.keys.head_dim, [&](int64_t d, int64_t n) {
            typename F::Element rounded[16];  // as kv_cache rounds, denormals too
            store16(rounded, read(q + d, n));
            F::store_left(left + d, load16(rounded));
        });
    }

    template <typename Q>
    void fetch_query(const Q* q) const {
        constexpr int64_t kPerLine = 64 / sizeof(Q);
        for (int64_t d = 0; d < a_.keys.head_dim; d += kPerLine) __builtin_prefetch(q + d);
    }

    // Groups that no row sees may have no page: they point at the first, and their scores are masked.
    Block block_at(const Rows& rows, int64_t begin, int64_t last) const {
        const int32_t* table = row_ptr<int32_t>(a_.block_tables, rows.sequence);
        const int64_t page_tokens = a_.keys.page_tokens;
        Block block;
        for (int64_t g = 0; g < kKeyBlock / kKeyGroup; ++g) {
            const int64_t token = begin + (begin + g * kKeyGroup <= last ? g * kKeyGroup : 0);
            const int64_t page = table[token / page_tokens], offset = token % page_tokens;
            const auto words = [&](const KvPages& pages) {
                return reinterpret_cast<const uint32_t*>(
                    page_head_ptr<typename F::Element>(pages, page, rows.head));
            };
            block.key[g] = words(a_.keys) + offset;
            block.value[g] = words(a_.values) + offset / F::kPack * hd_;
        }
        return block;
    }

    Block first_of(const Rows& rows) const {
        const int64_t first = ptr<int32_t>(a_.first_positions)[rows.sequence];
        return block_at(rows, start_of(first + rows.begin / G_),
                        first + (rows.begin + rows.count - 1) / G_);
    }

    // The first block that a row at `position` sees.
    int64_t start_of(int64_t position) const {
        const int64_t hidden = a_.window > 0 ? position + 1 - a_.window : 0;
        return hidden > 0 ? hidden / kKeyBlock * kKeyBlock : 0;
    }

    // One step of the online softmax: scores become probabilities relative to the new maximum.
    void softmax(int64_t begin, int64_t keys) {
        alignas(64) float next[16] = {};
        for (int64_t r = 0; r < rows_.count; ++r) {
            float* s = scores_ + r * kKeyBlock;
            const int64_t seen = position_[r] + 1 - begin;
            for (int64_t j = seen > 0 ? seen : 0; j < kKeyBlock; ++j) s[j] = kMinusInfinity;
            const int64_t before = a_.window > 0 ? seen - a_.window : 0;
            for (int64_t j = 0; j < before && j < kKeyBlock; ++j) s[j] = kMinusInfinity;
            const float largest = largest_of(
                max(max(load16(s), load16(s + 16)), max(load16(s + 32), load16(s + 48))));
            next[r] = largest_[r] > largest ? largest_[r] : largest;
        }
        alignas(64) float started[16] = {};  // 0 where a row has seen no key yet
        const float* base = next;
        if (a_.window > 0) {
            for (int64_t r = 0; r < rows_.count; ++r)
                started[r] = next[r] == kMinusInfinity ? 0.0f : next[r];
            base = started;
        }
        store16(factor_, exp(load16(largest_) - load16(base)));
        store16(largest_, load16(next));
        for (int64_t r = 0; r < rows_.count; ++r) {
            const float* s = scores_ + r * kKeyBlock;
            const vec16 shift = broadcast16(base[r]);
            vec16 p[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const bool seen = 16 * j < keys;  // by some row; else it is zero, and not read
                p[j] = seen ? exp(load16(s + 16 * j) - shift) : broadcast16(0.0f);
                if (seen) F::store_left(p_ + r * kKeyBlock + 16 * j, p[j]);
            }
            const vec16 total = load16(total_[r]) * broadcast16(factor_[r]);
            store16(total_[r], total + ((p[0] + p[1]) + (p[2] + p[3])));
        }
    }

    // Adding zero makes +0 of -0, the one bit that masked keys (p = 0) could change.
    template <typename O>
    void write_row(O* out, int64_t r) const {
        const float* acc = acc_ + r * kLeftStride;
        const vec16 total = broadcast16(sum(load16(total_[r]))), zero = broadcast16(0.0f);
        for_each_16(a_.keys.head_dim, [&](int64_t d, int64_t n) {
            vec16 x = load16(acc + d);
            for (int i = 0; i < vec16::kParts; ++i) x.part[i] = x.part[i] / total.part[i];
            write(out + d, x + zero, n);
        });
    }

    [[gnu::noinline]] void write_lse() const {
        alignas(64) float lse[16];
        for (int64_t r = 0; r < 16; ++r) lse[r] = sum(load16(total_[r]));
        store16(lse, load16(largest_) + log(load16(lse)));
        for (int64_t r = 0; r < rows_.count; ++r) {
            row_ptr<float>(a_.lse, token_of(rows_, r))[query_head_of(rows_, r)] = lse[r];
        }
    }

    const AttentionForwardArgs& a_;
    const Rows rows_;
    const int64_t G_, hd_;
    int64_t position_[kMaxTileRows];
    alignas(64) typename F::Left q_[kMaxTileRows * kLeftStride];
    alignas(64) typename F::Left p_[kMaxTileRows * kKeyBlock];
    alignas(64) float scores_[kMaxTileRows * kKeyBlock];
    alignas(64) float acc_[kMaxTileRows * kLeftStride];
    alignas(64) float largest_[16], factor_[16], total_[16][16];
};

template <typename F, typename Q, typename O>
[[gnu::noinline]] void run_tile(const AttentionForwardArgs& a, const Rows& rows,
                                const Rows& after) {
    Tile<F>(a, rows).template run<Q, O>(after);
}

// Numbers the tiles of all sequences without a table: sequence s starts at tile (its first row) / kMaxTileRows + s, which
// leaves room enough for it, and at most one number too many.
struct Schedule {
    const int32_t* cu_seqlens;
    int64_t sequences, G;

    int64_t start(int64_t s) const { return cu_seqlens[s] * G / kMaxTileRows + s; }

    // The rows of tile t, in tiles of even size; none for a number too many.
    Rows rows(int64_t t) const {
        int64_t s = 0, after = sequences;  // start(s) <= t < start(after)
        while (after - s > 1) {
            const int64_t middle = s + (after - s) / 2;
            (start(middle) <= t ? s : after) = middle;
        }
        const int64_t rows = (cu_seqlens[s + 1] - cu_seqlens[s]) * G;
        const int64_t tiles = (rows + kMaxTileRows - 1) / kMaxTileRows, i = t - start(s);
        if (i >= tiles) return {s, 0, 0, 0};
        const int64_t begin = rows * i / tiles;
        return {s, 0, begin, rows * (i + 1) / tiles - begin};
    }
};

// All tiles of all kv heads in the order in which they are computed.
struct Order {
    Schedule schedule;
    int64_t K, tiles;
    bool decodes;  // about one tile for each sequence and head

    int64_t size() const { return K * tiles; }
    // Tiles of a long sequence find a head's keys in cache, so heads are outermost; in decoding the heads of a page follow
    // each other in memory. The last rows see the most keys and go first.
    Rows at(int64_t i) const {
        Rows rows = schedule.rows(tiles - 1 - (decodes ? i / K : i % tiles));
        rows.head = decodes ? i % K : i / tiles;
        return rows;
    }
};

template <typename F, typename Q, typename O>
void run_tiles(const AttentionForwardArgs& a, const Order& order, int64_t begin, int64_t end) {
    const FlushDenormals flush;
    Rows rows{};
    const auto run = [&](const Rows& after) {
        if (rows.count > 0) run_tile<F, Q, O>(a, rows, after.count > 0 ? after : rows);
    };
    for (int64_t i = begin; i < end; ++i) {
        const Rows next = order.at(i);
        if (next.count == 0) continue;
        run(next);
        rows = next;
    }
    run(end < order.size() ? order.at(end) : Rows{});  // a thread's chunks follow each other
}

}  // namespace

void attention_forward(const AttentionForwardArgs& a) {
    const int64_t K = a.keys.heads, S = a.first_positions.size, G = a.num_heads / K;
    if (S == 0) return;
    const Schedule schedule{ptr<int32_t>(a.cu_seqlens), S, G};
    const bool decodes = a.q.rows * G <= S * kMaxTileRows;
    const Order order{schedule, K, schedule.start(S), decodes};
    const int64_t wanted = order.size() / (num_threads() * kTasksPerThread);
    const int64_t chunk = wanted < 1 ? 1 : wanted > kMaxChunk ? kMaxChunk : wanted;
    const auto launch = [&]<typename F, typename Q, typename O>() {
        parallel_rows(order.size(), chunk, [&](int64_t begin, int64_t end) {
            run_tiles<F, Q, O>(a, order, begin, end);
        });
    };
    dispatch_dtype(a.q.dtype, [&]<typename Q>(Q*) {
        dispatch_dtype(a.out.dtype, [&]<typename O>(O*) {
            if (a.keys.dtype == DType::kBF16) {
                launch.template operator()<Bf16Format, Q, O>();
            } else {
                launch.template operator()<F32Format, Q, O>();
            }
        });
    });
}

}  // namespace pe::cpu::PE_ISA
