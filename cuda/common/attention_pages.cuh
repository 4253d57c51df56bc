// What attention's kernels share: which keys a row sees, where they lie, and how rows are read and written.
#pragma once

#include "common/math.cuh"
#include "pyengine/ops/attention.h"

namespace pe::cuda {

// Of f32 pages: attention_plain.cu.
int attention_plain_forward(const AttentionForwardArgs& a, void* stream);

namespace {

constexpr int kBlock = static_cast<int>(kKeyBlock);

// The first block that a row at `position` sees.
__device__ inline int64_t start_of(int64_t window, int64_t position) {
    const int64_t hidden = window > 0 ? position + 1 - window : 0;
    return hidden > 0 ? hidden / kBlock * kBlock : 0;
}

__device__ inline bool sees(int64_t window, int64_t position, int64_t key) {
    return key <= position && (window == 0 || key > position - window);
}

__device__ inline float read_value(const MatrixView& m, int64_t row, int64_t column) {
    return m.dtype == DType::kBF16 ? to_float(row_ptr<bf16>(m, row)[column])
                                   : row_ptr<float>(m, row)[column];
}

// Adding zero makes +0 of -0, the one bit that masked keys could change.
__device__ inline void write_value(const MatrixView& m, int64_t row, int64_t column, float x) {
    if (m.dtype == DType::kBF16) {
        row_ptr<bf16>(m, row)[column] = to_bf16(x + 0.0f);
    } else {
        row_ptr<float>(m, row)[column] = x + 0.0f;
    }
}

// The last s in [0, sequences) with start(s) <= i.
template <typename Start>
__device__ int64_t last_not_after(int64_t sequences, int64_t i, const Start& start) {
    int64_t s = 0, after = sequences;
    while (after - s > 1) {
        const int64_t middle = s + (after - s) / 2;
        (start(middle) <= i ? s : after) = middle;
    }
    return s;
}

// Where a word of one kv head in the pages of one sequence lies.
struct Paged {
    const KvPages& pages;
    const int32_t* table;
    int64_t head;

    // Of token `t`, its page's words of the head, to which a kernel adds what its layout says.
    __device__ const uint32_t* page_of(int64_t t) const {
        const int64_t page = table[t / pages.page_tokens];
        return pages.dtype == DType::kBF16
                   ? reinterpret_cast<const uint32_t*>(page_head_ptr<bf16>(pages, page, head))
                   : reinterpret_cast<const uint32_t*>(page_head_ptr<float>(pages, page, head));
    }
};

}  // namespace
}  // namespace pe::cuda
