// A pool of pages of exactly the stated size, full of NaN until written, and where each of its numbers lies.
#pragma once

#include <numeric>

#include "check.h"
#include "pyengine/kv_pages.h"

namespace native {

struct PageShape {
    pe::DType dtype = pe::DType::kBF16;
    int64_t heads = 2, head_dim = 40, page_tokens = 16;

    int64_t hd() const { return pe::padded_head_dim(head_dim); }
    int64_t elements() const { return pe::kv_elements_per_page(heads, head_dim, page_tokens); }
    std::string text() const {
        return std::string(dtype == pe::DType::kF32 ? " f32" : " bf16") + " pages of " +
               std::to_string(page_tokens) + ", K " + std::to_string(heads) + " hd " +
               std::to_string(head_dim);
    }
    int64_t key(int64_t h, int64_t d, int64_t offset) const {
        if (dtype == pe::DType::kF32) return (h * hd() + d) * page_tokens + offset;
        return ((h * hd() + d) / 2 * page_tokens + offset) * 2 + d % 2;
    }
    int64_t value(int64_t h, int64_t d, int64_t offset) const {
        if (dtype == pe::DType::kF32) return (h * page_tokens + offset) * hd() + d;
        return ((h * page_tokens + offset) / 2 * hd() + d) * 2 + offset % 2;
    }
};

// The keys or the values of one layer: `pad` elements of others lie between its pages.
class Pool {
  public:
    Pool(const PageShape& shape, int64_t pages, int64_t pad = 0)
        : shape_(shape), memory_(shape.dtype, pages, shape.elements(), pad) {}

    pe::KvPages view() const {
        const pe::MatrixView m = memory_.view();
        return {m.data,       m.dtype,         m.row_stride,      m.rows,
                shape_.heads, shape_.head_dim, shape_.page_tokens};
    }
    Matrix& memory() { return memory_; }
    const Matrix& memory() const { return memory_; }

  private:
    PageShape shape_;
    Matrix memory_;
};

// Slots of `tokens` tokens from position `first` of a sequence whose pages are in `table`.
inline std::vector<int64_t> slots_of(const std::vector<int32_t>& table, int64_t first,
                                     int64_t tokens, int64_t page_tokens) {
    std::vector<int64_t> slots;
    for (int64_t t = first; t < first + tokens; ++t) {
        const int64_t page = table[static_cast<size_t>(t / page_tokens)];
        slots.push_back(page * page_tokens + t % page_tokens);
    }
    return slots;
}

inline std::vector<int32_t> shuffled_pages(Rng& rng, int64_t pages) {
    std::vector<int32_t> order(static_cast<size_t>(pages));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; --i) {
        std::swap(order[i - 1], order[static_cast<size_t>(rng.below(static_cast<int64_t>(i)))]);
    }
    return order;
}

template <typename T>
inline pe::VectorView view_of(std::vector<T>& v, pe::DType dtype) {
    return {v.data(), dtype, static_cast<int64_t>(v.size())};
}

}  // namespace native
