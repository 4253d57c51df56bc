// Layout  a block per token and head; its threads take the words of the page: an element each in f32, a pair in bf16.
//         In bf16 pages both tokens of a pair of values share words: the row at the even offset writes them whole, with its partner's
//         elements where that comes next, else with zeros, so that no two blocks meet in a word.
// Bits    the CPU's.
#include "pyengine/ops/kv_cache.h"

#include "common/launch.cuh"

namespace pe::cuda {
namespace {

constexpr int kThreads = 64;

// Slots of a call, and which of its rows are the two tokens of one pair.
struct Slots {
    const int64_t* slot;
    int64_t rows;

    __device__ bool pair_starts(int64_t t) const {
        return slot[t] % 2 == 0 && t + 1 < rows && slot[t + 1] == slot[t] + 1;
    }
};

// Element d of a head, rounded to the pages' dtype; zero where it is padding.
template <typename P, typename X>
__device__ P element(const X* head, int64_t d, int64_t head_dim) {
    P x;
    store_float(&x, d < head_dim ? to_float(head[d]) : 0.0f);
    return x;
}

template <typename K, typename V>
__device__ void write(const KvCacheWriteArgs& a, const K* k, const V* v, float* keys, float* values,
                      const Slots&, int64_t, int64_t offset) {
    const int64_t D = a.keys.head_dim, hd = padded_head_dim(D), P = a.keys.page_tokens;
    for (int64_t d = static_cast<int>(threadIdx.x); d < hd; d += kThreads) {
        keys[d * P + offset] = element<float>(k, d, D);
        values[offset * hd + d] = element<float>(v, d, D);
    }
}

template <typename K, typename V>
__device__ void write(const KvCacheWriteArgs& a, const K* k, const V* v, bf16* keys, bf16* values,
                      const Slots& slots, int64_t t, int64_t offset) {
    const int64_t D = a.keys.head_dim, hd = padded_head_dim(D), P = a.keys.page_tokens;
    for (int64_t d = 2 * static_cast<int>(threadIdx.x); d < hd; d += 2 * kThreads) {
        keys[d * P + 2 * offset] = element<bf16>(k, d, D);
        keys[d * P + 2 * offset + 1] = element<bf16>(k, d + 1, D);
    }
    if (t > 0 && slots.pair_starts(t - 1)) return;  // the row before writes both
    const bool both = slots.pair_starts(t), odd = offset % 2 != 0;
    bf16* pairs = values + offset / 2 * hd * 2;
    for (int64_t d = static_cast<int>(threadIdx.x); d < hd; d += kThreads) {
        const bf16 own = element<bf16>(v, d, D);
        if (odd) {
            pairs[2 * d + 1] = own;
            continue;
        }
        pairs[2 * d] = own;
        pairs[2 * d + 1] = both ? element<bf16>(v + a.v.row_stride, d, D) : bf16{0};
    }
}

template <typename P, typename K, typename V>
__global__ void __launch_bounds__(kThreads) kv_cache_kernel(KvCacheWriteArgs a) {
    const int64_t t = int64_t{blockIdx.x}, h = int64_t{blockIdx.y};
    const Slots slots{ptr<int64_t>(a.slots), a.slots.size};
    const int64_t page = slots.slot[t] / a.keys.page_tokens,
                  offset = slots.slot[t] % a.keys.page_tokens;
    write(a, row_ptr<K>(a.k, t) + h * a.keys.head_dim, row_ptr<V>(a.v, t) + h * a.keys.head_dim,
          page_head_ptr<P>(a.keys, page, h), page_head_ptr<P>(a.values, page, h), slots, t, offset);
}

}  // namespace

int kv_cache_write(const KvCacheWriteArgs& a, void* stream) {
    if (a.slots.size == 0) return cudaSuccess;
    const dim3 grid(static_cast<unsigned>(a.slots.size), static_cast<unsigned>(a.keys.heads));
    int status = cudaSuccess;
    dispatch_dtype(a.keys.dtype, [&]<typename P>(P*) {
        dispatch_dtype(a.k.dtype, [&]<typename K>(K*) {
            dispatch_dtype(a.v.dtype, [&]<typename V>(V*) {
                status = launch(kv_cache_kernel<P, K, V>, grid, kThreads, stream, a);
            });
        });
    });
    return status;
}

}  // namespace pe::cuda
