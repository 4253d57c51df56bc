#include "pyengine/ops/kv_cache.h"

#include "pyengine/parallel.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kRowsPerTask = 8;

// One head of a token in the pages' dtype, padded with zeros.
template <typename P>
struct HeadRow {
    alignas(64) P x[kMaxHeadDim];

    template <typename X>
    void round_from(const X* row, int64_t head_dim) {
        for_each_16(head_dim, [&](int64_t d, int64_t n) { store16(x + d, read(row + d, n)); });
    }
};

void write_key(const HeadRow<float>& row, float* head, int64_t hd, int64_t offset,
               int64_t page_tokens) {
    for (int64_t d = 0; d < hd; ++d) head[d * page_tokens + offset] = row.x[d];
}

void write_key(const HeadRow<bf16>& row, bf16* head, int64_t hd, int64_t offset,
               int64_t page_tokens) {
    for (int64_t d = 0; d < hd; d += 2) {
        memcpy(head + d * page_tokens + 2 * offset, row.x + d, 2 * sizeof(bf16));
    }
}

// The slots of a call, and which of its rows are the two tokens of one pair.
struct Slots {
    const int64_t* slot;
    int64_t rows;

    bool pair_starts(int64_t t) const {
        return slot[t] % 2 == 0 && t + 1 < rows && slot[t + 1] == slot[t] + 1;
    }
};

template <typename X>
void write_value(const X* row, int64_t, float* head, int64_t head_dim, const Slots& slots,
                 int64_t t, int64_t page_tokens) {
    HeadRow<float> value;
    value.round_from(row, head_dim);
    const int64_t hd = padded_head_dim(head_dim);
    memcpy(head + slots.slot[t] % page_tokens * hd, value.x, static_cast<size_t>(hd) * 4);
}

// Pairs of tokens: one row writes both, so that no two threads meet in a word.
template <typename X>
void write_value(const X* row, int64_t row_stride, bf16* head, int64_t head_dim, const Slots& slots,
                 int64_t t, int64_t page_tokens) {
    if (t > 0 && slots.pair_starts(t - 1)) return;
    HeadRow<bf16> value, partner;
    value.round_from(row, head_dim);
    const int64_t offset = slots.slot[t] % page_tokens, hd = padded_head_dim(head_dim);
    bf16* pair = head + offset / 2 * hd * 2;
    if (offset % 2 != 0) {
        for (int64_t d = 0; d < hd; ++d) {  // a word at a time, so that it is vectorised
            uint32_t word;
            memcpy(&word, pair + 2 * d, sizeof word);
            word = (word & 0xffffu) | static_cast<uint32_t>(value.x[d].bits) << 16;
            memcpy(pair + 2 * d, &word, sizeof word);
        }
        return;
    }
    if (slots.pair_starts(t)) {
        partner.round_from(row + row_stride, head_dim);
    } else {
        memset(partner.x, 0, sizeof partner.x);
    }
    for (int64_t d = 0; d < hd; ++d) {
        const uint32_t word = value.x[d].bits | static_cast<uint32_t>(partner.x[d].bits) << 16;
        memcpy(pair + 2 * d, &word, sizeof word);
    }
}

template <typename P, typename K, typename V>
void write_row(const KvCacheWriteArgs& a, const Slots& slots, int64_t t) {
    const int64_t page_tokens = a.keys.page_tokens, head_dim = a.keys.head_dim;
    const int64_t page = slots.slot[t] / page_tokens, offset = slots.slot[t] % page_tokens;
    HeadRow<P> key;
    for (int64_t h = 0; h < a.keys.heads; ++h) {
        key.round_from(row_ptr<K>(a.k, t) + h * head_dim, head_dim);
        write_key(key, page_head_ptr<P>(a.keys, page, h), padded_head_dim(head_dim), offset,
                  page_tokens);
        write_value(row_ptr<V>(a.v, t) + h * head_dim, a.v.row_stride,
                    page_head_ptr<P>(a.values, page, h), head_dim, slots, t, page_tokens);
    }
}

}  // namespace

void kv_cache_write(const KvCacheWriteArgs& a) {
    const Slots slots{ptr<int64_t>(a.slots), a.slots.size};
    dispatch_dtype(a.keys.dtype, [&]<typename P>(P*) {
        dispatch_dtype(a.k.dtype, [&]<typename K>(K*) {
            dispatch_dtype(a.v.dtype, [&]<typename V>(V*) {
                parallel_rows(slots.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
                    for (int64_t t = begin; t < end; ++t) write_row<P, K, V>(a, slots, t);
                });
            });
        });
    });
}

}  // namespace pe::cpu::PE_ISA
