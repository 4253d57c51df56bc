// kv_cache: writes the keys and values of T tokens to their slots in the pages of one layer
// shapes       k, v (T, K*hd), row stride free, last dim contiguous, K heads of head_dim hd; keys, values: kv_pages.h;
//              slots (T,): page * page_tokens + offset in the page, all different; where a call writes both tokens of a pair
//              of bf16 values (offsets 2i and 2i+1), they are neighbouring rows in that order
// dtypes       k, v each f32 or bf16; keys, values the same, f32 or bf16; slots i64; values are rounded to the pages' dtype
// aliasing     none
// gradient     none
// determinism  bitwise for any thread count, the same bits on cuda, where a row whose slot is outside the pages is not
//              written: nobody has looked at it. Padding of head_dim is written as zeros. In bf16 pages a token at an even
//              offset clears the value of its odd partner unless that comes with it, so that attention, which walks
//              pairs, never multiplies by what an earlier owner of the page left there
// source       paged keys and values: arXiv:2309.06180
// proof        tests/reference/kv_cache.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/kv_pages.h"
#include "pyengine/view.h"

namespace pe {

struct KvCacheWriteArgs {
    MatrixView k;
    MatrixView v;
    KvPages keys;
    KvPages values;
    VectorView slots;
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(kv_cache_write, KvCacheWriteArgs)
}  // namespace cpu

namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t.
int kv_cache_write(const KvCacheWriteArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
