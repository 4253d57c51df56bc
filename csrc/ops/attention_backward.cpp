#include "pyengine/ops/attention_backward.h"

#include <initializer_list>
#include <type_traits>

#include "pyengine/attention_backward_tile.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kTasksPerThread = 4;  // fewer trees and kv heads are split into query heads

// Up to 64 rows of a sequence. Its keys are seen by the tree's blocks from itself to `end`, as far as a window reaches.
struct RowsBlock {
    int64_t row;  // of the call
    int32_t count, end;
    int32_t position;  // of the first row in its text
    int32_t first;     // of the blocks whose keys it sees
};
static_assert(sizeof(RowsBlock) <= kBlockWords * sizeof(float));

// Query heads [begin, end) of one kv head in the tree whose prompt is `sequence`.
struct Heads {
    int64_t sequence, kv, begin, end;
};

// Where dk and dv of a task go: (rows of a tree in blocks, hd), or (T, hd) for one query head.
struct Gathered {
    float *dk, *dv;
    bool by_row;  // of the call
};

// One thread's share of the workspace.
struct Scratch {
    uint32_t *q_across, *q_along, *dout_across, *dout_along, *k_across, *k_along, *v_across;
    float *dq, *dk, *dv, *lse, *delta, *dk_block, *dv_block;
    void *p, *ds;
    uint32_t* ds_pairs;
    float *scores, *dp;
    RowsBlock* blocks;

    Scratch(const AttentionBackwardWorkspace& w, float* memory) {
        const auto take = [&](auto*& array, int64_t floats) {
            array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(memory);
            memory += floats;
        };
        take(blocks, kBlockWords * ((w.blocks() + 7) / 8 * 8));
        for (uint32_t** m :
             {&q_across, &q_along, &dout_across, &dout_along, &k_across, &k_along, &v_across})
            take(*m, w.matrix_floats());
        for (float** m : {&dq, &dk, &dv}) take(*m, w.matrix_floats());
        for (float** m : {&lse, &delta}) take(*m, w.rows());
        for (float** m : {&dk_block, &dv_block}) take(*m, w.block_floats());
        take(ds_pairs, w.square_floats());
        float *p_, *ds_;
        take(p_, w.square_floats()), take(ds_, w.square_floats());
        p = p_, ds = ds_;
        for (float** m : {&scores, &dp}) take(*m, kScratchRows * kRowBlock);
    }
};

PE_INLINE int64_t up_to_16(int64_t n) { return (n + 15) / 16 * 16; }

template <typename W, typename D>
class Tree {
    using E = typename W::Element;

  public:
    Tree(const AttentionBackwardArgs& a, const Heads& heads, const Scratch& s)
        : a_(a), heads_(heads), s_(s), hd_(padded_head_dim(a.head_dim)) {
        const int32_t *cu = ptr<int32_t>(a.cu_seqlens), *prefix = ptr<int32_t>(a.prefix_rows);
        int64_t last = heads.sequence + 1;
        while (last < a.prefix_rows.size && prefix[last] != 0) ++last;
        for (int64_t sequence = heads.sequence; sequence < last; ++sequence) {
            const int64_t rows = cu[sequence + 1] - cu[sequence];
            const int64_t end = blocks_ + (rows + kRowBlock - 1) / kRowBlock;
            for (int64_t row = 0; row < rows; row += kRowBlock) {
                const int64_t count = rows - row < kRowBlock ? rows - row : kRowBlock;
                s_.blocks[blocks_++] = {cu[sequence] + row, static_cast<int32_t>(count),
                                        static_cast<int32_t>(end),
                                        static_cast<int32_t>(prefix[sequence] + row), 0};
            }
            if (sequence == heads.sequence) prompt_blocks_ = end;
        }
        for (int64_t b = 0; b < prompt_blocks_; ++b)
            s_.blocks[b].end = static_cast<int32_t>(blocks_);
        if (a.window > 0) find_first();
    }

    void run(const Gathered& sums) {
        for (int64_t b = 0; b < blocks_; ++b) pack_keys(b);
        for (int64_t head = heads_.begin; head < heads_.end; ++head) {
            for (int64_t b = 0; b < blocks_; ++b) pack_queries(b, head);
            for (int64_t b = 0; b < blocks_; ++b) {
                for (int64_t i = b; i < s_.blocks[b].end; ++i) {
                    if (sees(b, i)) step(b, i);
                }
                keep(sums, b, head == heads_.begin);
            }
            dispatch_dtype(a_.dq.dtype, [&]<typename O>(O*) {
                for_each_row([&](int64_t at, int64_t row) {
                    write_row(row_ptr<O>(a_.dq, row) + head * a_.head_dim, s_.dq + at * hd_,
                              a_.scale);
                });
            });
        }
        if (!sums.by_row) write_keys(sums);
    }

  private:
    // Whether a row of block i sees a key of block b, which stands before it in their text.
    bool sees(int64_t b, int64_t i) const {
        return a_.window == 0 || s_.blocks[i].position - last_position(b) < a_.window;
    }

    int64_t last_position(int64_t b) const {
        return s_.blocks[b].position + s_.blocks[b].count - 1;
    }

    void find_first() const {
        for (int64_t b = blocks_ - 1; b >= 0; --b) {
            for (int64_t i = b; i < s_.blocks[b].end; ++i) {
                if (sees(b, i)) s_.blocks[i].first = static_cast<int32_t>(b);
            }
        }
    }

    // f(row in the tree's blocks, row of the call)
    template <typename F>
    void for_each_row(const F& f) const {
        for (int64_t b = 0; b < blocks_; ++b) {
            for (int64_t r = 0; r < s_.blocks[b].count; ++r)
                f(b * kRowBlock + r, s_.blocks[b].row + r);
        }
    }

    // Adding zero makes +0 of -0, the one bit that keys and rows of weight 0 could change.
    template <typename O>
    void write_row(O* out, const float* sum, float scale) const {
        for_each_16(a_.head_dim, [&](int64_t d, int64_t n) {
            write(out + d, load16(sum + d) * broadcast16(scale) + broadcast16(0.0f), n);
        });
    }

    void write_keys(const Gathered& sums) const {
        dispatch_dtype(a_.dk.dtype, [&]<typename O>(O*) {
            for_each_row([&](int64_t at, int64_t row) {
                write_row(row_ptr<O>(a_.dk, row) + heads_.kv * a_.head_dim, sums.dk + at * hd_,
                          a_.scale);
            });
        });
        dispatch_dtype(a_.dv.dtype, [&]<typename O>(O*) {
            for_each_row([&](int64_t at, int64_t row) {
                write_row(row_ptr<O>(a_.dv, row) + heads_.kv * a_.head_dim, sums.dv + at * hd_,
                          1.0f);
            });
        });
    }

    // Copies one head of a block's rows, 16 at a time.
    template <typename T>
    void pack(int64_t b, const MatrixView& m, int64_t head, uint32_t* across,
              uint32_t* along) const {
        const RowsBlock& block = s_.blocks[b];
        for (int64_t r = 0; r < block.count; r += 16) {
            const int64_t count = block.count - r < 16 ? block.count - r : 16;
            pack_rows<W>(row_ptr<T>(m, block.row + r) + head * a_.head_dim, m.row_stride, count,
                         a_.head_dim, across + words(b) + r,
                         along == nullptr ? nullptr : along + words(b) + r / W::kPack * hd_);
        }
    }

    void pack_keys(int64_t b) const {
        pack<E>(b, a_.k, heads_.kv, s_.k_across, s_.k_along);
        pack<E>(b, a_.v, heads_.kv, s_.v_across, nullptr);
    }

    void pack_queries(int64_t b, int64_t head) const {
        pack<E>(b, a_.q, head, s_.q_across, s_.q_along);
        pack<D>(b, a_.dout, head, s_.dout_across, s_.dout_along);
        const RowsBlock& block = s_.blocks[b];
        float *lse = s_.lse + b * kRowBlock, *delta = s_.delta + b * kRowBlock;
        for (int64_t r = 0; r < block.count; ++r) {
            const D* dout = row_ptr<D>(a_.dout, block.row + r) + head * a_.head_dim;
            const E* out = row_ptr<E>(a_.out, block.row + r) + head * a_.head_dim;
            vec16 total = broadcast16(0.0f);
            for_each_16(a_.head_dim, [&](int64_t d, int64_t n) {
                total = fma(read(dout + d, n), read(out + d, n), total);
            });
            delta[r] = sum(total);
            lse[r] = row_ptr<float>(a_.lse, block.row + r)[head];
        }
        for (int64_t r = block.count; r < up_to_16(block.count); ++r) lse[r] = delta[r] = 0.0f;
    }

    // Of a block's copy: words are packed along hd or along rows, so all are of one size.
    int64_t words(int64_t b) const { return b * kRowBlock * hd_ / W::kPack; }

    // What the keys of block b and the rows of block i give each other.
    void step(int64_t b, int64_t i) const {
        const int64_t keys = s_.blocks[b].count, rows = s_.blocks[i].count;
        const bool diagonal = b == i;
        for (int64_t key = 0; key < keys; key += kGradientRows) probabilities(b, i, key);
        const E *p = static_cast<const E*>(s_.p), *ds = static_cast<const E*>(s_.ds);
        for (int64_t key = 0; key < keys; key += kGradientRows) {
            // Rows before the key do not see it.
            const int64_t first = diagonal ? key / W::kPack : 0;
            const int64_t count = (rows + W::kPack - 1) / W::kPack - first;
            const int64_t skip = words(i) + first * hd_;
            const auto product = [&](const E* left, const uint32_t* right, float* out) {
                const auto* l = reinterpret_cast<const uint32_t*>(left + key * kRowBlock);
                gradient_rows<W, ByRow<W>>(l + first, right + skip, hd_, count, hd_,
                                           out + key * hd_, hd_, diagonal);
            };
            product(p, s_.dout_along, s_.dv_block);
            product(ds, s_.q_along, s_.dk_block);
        }
        const uint32_t* pairs = W::kPack == 1 ? reinterpret_cast<const uint32_t*>(ds) : s_.ds_pairs;
        for (int64_t row = 0; row < rows; row += kGradientRows) {
            const int64_t seen =
                diagonal && row + kGradientRows < keys ? row + kGradientRows : keys;
            gradient_rows<W, ByWord>(
                pairs + row, s_.k_along + words(b), hd_, (seen + W::kPack - 1) / W::kPack, hd_,
                s_.dq + (i * kRowBlock + row) * hd_, hd_, b == s_.blocks[i].first);
        }
    }

    // p and ds of kGradientRows keys from `key` on, for the rows that see one of them.
    void probabilities(int64_t b, int64_t i, int64_t key) const {
        const int64_t rows = up_to_16(s_.blocks[i].count), all = hd_ / W::kPack;
        const int64_t first = b == i ? key / 16 * 16 : 0;
        const bool far = a_.window > 0 && last_position(i) - s_.blocks[b].position >= a_.window;
        const uint32_t *k = s_.k_across + words(b) + key, *v = s_.v_across + words(b) + key;
        gradient_rows<W, ByWord>(k, s_.q_across + words(i) + first, kRowBlock, all, rows - first,
                                 s_.scores + first, kRowBlock, true);
        gradient_rows<W, ByWord>(v, s_.dout_across + words(i) + first, kRowBlock, all, rows - first,
                                 s_.dp + first, kRowBlock, true);
        for (int64_t row = first; row < rows; row += kLanes) {
            for (int64_t j = 0; j < kGradientRows; j += 2) softmax(b, i, key + j, j, row, far);
        }
    }

    // Two keys, of which the first two lines of `at` in scores and dp hold the products, and kLanes rows,
    // some of which do not see them any more (`far`).
    PE_INLINE void softmax(int64_t b, int64_t i, int64_t key, int64_t at, int64_t row,
                           bool far) const {
        const vec lse = load(s_.lse + i * kRowBlock + row);
        const vec delta = load(s_.delta + i * kRowBlock + row);
        vec p[2], ds[2];
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const int64_t offset = (at + j) * kRowBlock + row;
            p[j] = exp(load(s_.scores + offset) * broadcast(a_.scale) - lse);
            ds[j] = p[j] * (load(s_.dp + offset) - delta);
            if (b == i || key + j >= s_.blocks[b].count) {
                const bool real = key + j < s_.blocks[b].count;
                const int64_t before = real ? key + j - row : kLanes;  // rows that do not see it
                const ivec hidden = lanes() < ivec{} + static_cast<int32_t>(before);
                p[j] = hidden ? broadcast(0.0f) : p[j];
                ds[j] = hidden ? broadcast(0.0f) : ds[j];
            }
            if (far) {
                const int64_t apart =
                    s_.blocks[i].position + row - (s_.blocks[b].position + key + j);
                const int64_t near = a_.window > apart ? a_.window - apart : 0;
                const ivec hidden = lanes() >= ivec{} + static_cast<int32_t>(near);
                p[j] = hidden ? broadcast(0.0f) : p[j];
                ds[j] = hidden ? broadcast(0.0f) : ds[j];
            }
        }
        const int64_t offset = key * kRowBlock + row;
        store_pair(static_cast<E*>(s_.p) + offset, kRowBlock, p[0], p[1], nullptr);
        store_pair(static_cast<E*>(s_.ds) + offset, kRowBlock, ds[0], ds[1],
                   s_.ds_pairs + key / 2 * kRowBlock + row);
    }

    PE_INLINE static ivec lanes() {
        ivec v;
        for (int i = 0; i < kLanes; ++i) v[i] = i;
        return v;
    }

    // A head's dk and dv of block b are added to those of the heads before it.
    void keep(const Gathered& sums, int64_t b, bool first) const {
        const int64_t at = sums.by_row ? s_.blocks[b].row : b * kRowBlock;
        for (int64_t x = 0; x < s_.blocks[b].count * hd_; x += 16) {
            float *dk = sums.dk + at * hd_ + x, *dv = sums.dv + at * hd_ + x;
            const vec16 k = load16(s_.dk_block + x), v = load16(s_.dv_block + x);
            store16(dk, first ? k : load16(dk) + k);
            store16(dv, first ? v : load16(dv) + v);
        }
    }

    const AttentionBackwardArgs& a_;
    const Heads heads_;
    const Scratch& s_;
    const int64_t hd_;
    int64_t blocks_ = 0, prompt_blocks_ = 0;
};

// dk and dv of one row and kv head from those of its query heads.
template <typename O>
void add_heads(const AttentionBackwardArgs& a, const float* partial, int64_t row, int64_t kv,
               float scale, O* out) {
    const int64_t hd = padded_head_dim(a.head_dim), G = a.num_heads / a.num_kv_heads;
    for_each_16(a.head_dim, [&](int64_t d, int64_t n) {
        const float* x = partial + (kv * G * a.q.rows + row) * hd + d;
        vec16 total = load16(x);
        for (int64_t g = 1; g < G; ++g) total = total + load16(x + g * a.q.rows * hd);
        write(out + d, total * broadcast16(scale) + broadcast16(0.0f), n);
    });
}

void add_all_heads(const AttentionBackwardArgs& a, const float* dk, const float* dv) {
    parallel_rows(a.q.rows, 32, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        for (int64_t row = begin; row < end; ++row) {
            for (int64_t kv = 0; kv < a.num_kv_heads; ++kv) {
                const int64_t column = kv * a.head_dim;
                dispatch_dtype(a.dk.dtype, [&]<typename O>(O*) {
                    add_heads(a, dk, row, kv, a.scale, row_ptr<O>(a.dk, row) + column);
                });
                dispatch_dtype(a.dv.dtype, [&]<typename O>(O*) {
                    add_heads(a, dv, row, kv, 1.0f, row_ptr<O>(a.dv, row) + column);
                });
            }
        }
    });
}

int64_t count_trees(const VectorView& prefix_rows) {
    int64_t trees = 0;
    for (int64_t s = 0; s < prefix_rows.size; ++s) trees += ptr<int32_t>(prefix_rows)[s] == 0;
    return trees;
}

template <typename W, typename D>
void run_trees(const AttentionBackwardArgs& a) {
    const int64_t T = a.q.rows, S = a.prefix_rows.size, H = a.num_heads, K = a.num_kv_heads;
    const int64_t G = H / K;
    const AttentionBackwardWorkspace layout(T, S, H, K, a.head_dim, a.threads);
    auto* memory = static_cast<float*>(a.workspace);
    float* partial_dk = memory + a.threads * layout.thread_floats();
    float* partial_dv = partial_dk + H * T * layout.hd;
    const bool split = G > 1 && count_trees(a.prefix_rows) * K < kTasksPerThread * a.threads;
    const int64_t units = split ? H : K;
    const bool alone = parallel_scope() == ParallelScope::kTask;
    parallel_tasks(S * units, a.threads, [&](int64_t task) {
        const int64_t sequence = task / units, unit = task % units;
        if (ptr<int32_t>(a.prefix_rows)[sequence] != 0) return;  // of another sequence's tree
        const FlushDenormals flush;
        const Scratch scratch(layout,
                              memory + (alone ? 0 : thread_index()) * layout.thread_floats());
        if (split) {
            const int64_t at = unit * T * layout.hd;
            Tree<W, D>(a, {sequence, unit / G, unit, unit + 1}, scratch)
                .run({partial_dk + at, partial_dv + at, true});
        } else {
            Tree<W, D>(a, {sequence, unit, unit * G, (unit + 1) * G}, scratch)
                .run({scratch.dk, scratch.dv, false});
        }
    });
    if (split) add_all_heads(a, partial_dk, partial_dv);
}

}  // namespace

void attention_backward(const AttentionBackwardArgs& a) {
    if (a.q.rows == 0) return;
    dispatch_dtype(a.dout.dtype, [&]<typename D>(D*) {
        if (a.q.dtype == DType::kBF16) {
            run_trees<Bf16Words, D>(a);
        } else {
            run_trees<F32Words, D>(a);
        }
    });
}

}  // namespace pe::cpu::PE_ISA
