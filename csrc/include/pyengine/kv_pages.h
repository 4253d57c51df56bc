// Pages of keys and values: where a token's numbers lie, so that attention reads a page as it is.
//
// With hd = head_dim rounded up to a multiple of 16 (padding holds zeros), a page of one layer is
//   keys    bf16 [heads][hd/2][page_tokens][2]    f32 [heads][hd][page_tokens]
//   values  bf16 [heads][page_tokens/2][hd][2]    f32 [heads][page_tokens][hd]
// A bf16 pair is one 32-bit word, so both dtypes are arrays of words with SIMD lanes along the inner dimension: tokens for
// the scores, head_dim for the weighted sum.
#pragma once

#include <cstdint>

#include "pyengine/dtype.h"

namespace pe {

inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kKeyBlock = 64;  // keys that one step of the online softmax takes
inline constexpr int64_t kKeyGroup = 16;  // keys that certainly lie in one page

// The keys or the values of one layer in every page of the pool. Pages should start on 64 bytes for speed.
struct KvPages {
    void* data = nullptr;
    DType dtype = DType::kF32;  // f32 or bf16
    int64_t page_stride = 0;    // elements from one page to the next: a page may hold every layer
    int64_t num_pages = 0;
    int64_t heads = 0;
    int64_t head_dim = 0;     // 1 to kMaxHeadDim
    int64_t page_tokens = 0;  // 16, 32 or 64
};

namespace {  // internal linkage: see isa.h

constexpr bool valid_page_tokens(int64_t n) { return n == 16 || n == 32 || n == 64; }

PE_HOST_DEVICE constexpr int64_t padded_head_dim(int64_t head_dim) {
    return (head_dim + 15) / 16 * 16;
}

// Of the keys, and as many of the values.
constexpr int64_t kv_elements_per_page(int64_t heads, int64_t head_dim, int64_t page_tokens) {
    return heads * padded_head_dim(head_dim) * page_tokens;
}

// Start of one head in one page.
template <typename T>
PE_HOST_DEVICE inline T* page_head_ptr(const KvPages& p, int64_t page, int64_t head) {
    return static_cast<T*>(p.data) + page * p.page_stride +
           head * padded_head_dim(p.head_dim) * p.page_tokens;
}

}  // namespace
}  // namespace pe
