// Layout  a block takes 16 rows of one head. Keys: it reads them along head_dim into shared memory and writes them along the
//         tokens, where they are neighbours in a page. Values: neighbouring threads read and write neighbouring words. A
//         thread owns each word that it writes; only the half of an odd token is a store of 16 bits, beside which no other
//         thread writes.
#include "pyengine/ops/kv_cache.h"

#include "common/launch.cuh"
#include "common/math.cuh"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 16;
constexpr int kPitch = kRows + 1;  // spreads the stores of neighbouring words over the banks

__device__ inline uint32_t word_of(bf16 low, bf16 high) {
    return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

__device__ inline void store_word(float* p, uint32_t word) { *p = float_of(word); }

// Pages of bf16 may start on two bytes: a word is then stored by halves.
__device__ inline void store_word(bf16* p, uint32_t word) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof word == 0) {
        *reinterpret_cast<uint32_t*>(p) = word;
    } else {
        p[0] = {static_cast<uint16_t>(word)}, p[1] = {static_cast<uint16_t>(word >> 16)};
    }
}

template <typename X>
__device__ float read_padded(const X* row, int64_t d, int64_t head_dim) {
    return d < head_dim ? to_float(row[d]) : 0.0f;
}

// Word w of a head's key: one number of f32, two neighbours of bf16.
template <typename X>
__device__ uint32_t key_word(const X* row, int64_t w, int64_t head_dim, float) {
    return bits_of(read_padded(row, w, head_dim));
}

template <typename X>
__device__ uint32_t key_word(const X* row, int64_t w, int64_t head_dim, bf16) {
    return word_of(to_bf16(read_padded(row, 2 * w, head_dim)),
                   to_bf16(read_padded(row, 2 * w + 1, head_dim)));
}

// The slots of a call, and which of its rows are the two tokens of one pair.
struct Slots {
    const int64_t* slot;
    int64_t rows, page_tokens, end;

    __device__ Slots(const KvCacheWriteArgs& a)
        : slot(ptr<int64_t>(a.slots)),
          rows(a.slots.size),
          page_tokens(a.keys.page_tokens),
          end(a.keys.num_pages * a.keys.page_tokens) {}

    __device__ bool known(int64_t t) const { return t < rows && slot[t] >= 0 && slot[t] < end; }
    __device__ int64_t page(int64_t t) const { return slot[t] / page_tokens; }
    __device__ int64_t offset(int64_t t) const { return slot[t] % page_tokens; }
    __device__ bool pair_starts(int64_t t) const {
        return slot[t] % 2 == 0 && t + 1 < rows && slot[t + 1] == slot[t] + 1;
    }
};

template <typename V>
__device__ void write_value(const KvCacheWriteArgs& a, const Slots& slots, int64_t t, int64_t h,
                            int64_t d, float) {
    const int64_t head_dim = a.values.head_dim, hd = padded_head_dim(head_dim);
    float* head = page_head_ptr<float>(a.values, slots.page(t), h);
    head[slots.offset(t) * hd + d] = read_padded(row_ptr<V>(a.v, t) + h * head_dim, d, head_dim);
}

// Pairs of tokens: the first row writes both.
template <typename V>
__device__ void write_value(const KvCacheWriteArgs& a, const Slots& slots, int64_t t, int64_t h,
                            int64_t d, bf16) {
    if (t > 0 && slots.pair_starts(t - 1)) return;
    const int64_t head_dim = a.values.head_dim, hd = padded_head_dim(head_dim);
    const int64_t offset = slots.offset(t);
    const V* row = row_ptr<V>(a.v, t) + h * head_dim;
    const bf16 value = to_bf16(read_padded(row, d, head_dim));
    bf16* pair = page_head_ptr<bf16>(a.values, slots.page(t), h) + (offset / 2 * hd + d) * 2;
    if (offset % 2 != 0) {
        pair[1] = value;
        return;
    }
    const bf16 partner =
        slots.pair_starts(t) ? to_bf16(read_padded(row + a.v.row_stride, d, head_dim)) : bf16{0};
    store_word(pair, word_of(value, partner));
}

template <typename P, typename K, typename V>
__global__ void __launch_bounds__(kThreads) kv_cache_kernel(KvCacheWriteArgs a) {
    __shared__ uint32_t words[kMaxHeadDim * kPitch];
    const int64_t heads = a.keys.heads, head_dim = a.keys.head_dim;
    const int64_t h = blockIdx.x % heads, first = blockIdx.x / heads * kRows;
    const int hd = static_cast<int>(padded_head_dim(head_dim));
    const int per_word = static_cast<int>(4 / sizeof(P)), of_key = hd / per_word;
    const int thread = static_cast<int>(threadIdx.x);
    const Slots slots(a);
    for (int n = thread; n < kRows * of_key; n += kThreads) {
        const int i = n / of_key, w = n % of_key;
        if (!slots.known(first + i)) continue;
        const K* row = row_ptr<K>(a.k, first + i) + h * head_dim;
        words[w * kPitch + i] = key_word(row, w, head_dim, P{});
    }
    __syncthreads();
    for (int n = thread; n < kRows * of_key; n += kThreads) {
        const int i = n % kRows, w = n / kRows;
        const int64_t t = first + i;
        if (!slots.known(t)) continue;
        P* head = page_head_ptr<P>(a.keys, slots.page(t), h);
        store_word(head + (w * slots.page_tokens + slots.offset(t)) * per_word,
                   words[w * kPitch + i]);
    }
    for (int n = thread; n < kRows * hd; n += kThreads) {
        const int64_t t = first + n / hd;
        if (slots.known(t)) write_value<V>(a, slots, t, h, n % hd, P{});
    }
}

}  // namespace

int kv_cache_write(const KvCacheWriteArgs& a, void* stream) {
    if (a.slots.size == 0) return cudaSuccess;
    int status = cudaSuccess;
    dispatch_dtype(a.keys.dtype, [&]<typename P>(P*) {
        dispatch_dtype(a.k.dtype, [&]<typename K>(K*) {
            dispatch_dtype(a.v.dtype, [&]<typename V>(V*) {
                const auto blocks =
                    static_cast<unsigned>(ceil_div(a.slots.size, kRows) * a.keys.heads);
                status = launch(kv_cache_kernel<P, K, V>, dim3(blocks), kThreads, stream, a);
            });
        });
    });
    return status;
}

}  // namespace pe::cuda
