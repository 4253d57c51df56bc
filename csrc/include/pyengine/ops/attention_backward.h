// attention_backward: the gradient of attention over packed prompt trees, where each response sees its prompt and itself
// shapes       q, out, dout, dq (T, H*hd), k, v, dk, dv (T, K*hd), row stride free, last dim contiguous; H = K*G, query head h
//              reads kv head h/G; lse (T, H) as the forward pass wrote it; rows cu_seqlens[s] to cu_seqlens[s+1] are sequence s,
//              (S+1,); row i of sequence s sees the prefix_rows[s] rows of its prompt, and its own sequence's rows up to i;
//              with a window only the last `window` of them
// trees        prefix_rows[s] = 0 starts a tree with s as its prompt; the sequences that follow it with prefix_rows[s] = the
//              prompt's rows are its responses. A sequence without rows is allowed
// dtypes       q, k, v, out f32 or bf16 (same); dout, dq, dk, dv each f32 or bf16; lse f32; cu_seqlens, prefix_rows i32
// workspace    attention_backward_workspace_bytes()
// aliasing     dq, dk, dv overlap nothing
// gradient     of out; dq, dk, dv are assigned (=)
// determinism  bitwise for any thread count, other trees in the call, and instruction set with FMA (finite inputs). Each
//              sequence is cut from its own start into blocks of 64 rows; for a query head, row i and key j
//                p = exp(scale * q_i . k_j - lse_i);  delta_i = sum_d dout_i * out_i in 16 lanes, folded once
//                ds = p * (dout_i . v_j - delta_i); both dot products are one chain over head_dim
//                dq_i = scale * (one chain over the keys, the prompt's, then its own)
//                dk_j = scale * sum over the group's heads, in order, of (one chain of ds * q over the rows that see j, the
//                prompt's, then response after response); dv_j the same with p * dout, without scale
//              For bf16 q, dout, p and ds are rounded for the chains, which walk pairs, odd element first: pairs of head_dim,
//              or of rows counted from the block's start, zeros filling the last. Denormal numbers count as zero,
//              and -0 is written as +0. The error of lse, half a unit in its last place, is one of p, relative
// source       arXiv:2205.14135 (appendix B.4), arXiv:2307.08691; grouped queries: arXiv:2305.13245
// proof        tests/reference/attention_backward.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/kv_pages.h"
#include "pyengine/view.h"

namespace pe {

struct AttentionBackwardArgs {
    MatrixView dout;
    MatrixView q;
    MatrixView k;
    MatrixView v;
    MatrixView out;
    MatrixView lse;
    VectorView cu_seqlens;
    VectorView prefix_rows;
    int64_t num_heads = 0;
    int64_t num_kv_heads = 0;
    int64_t head_dim = 0;  // 1 to kMaxHeadDim
    float scale = 1.0f;
    int64_t window = 0;  // keys that a row sees, its own included; 0: all
    MatrixView dq;
    MatrixView dk;
    MatrixView dv;
    void* workspace = nullptr;
    int threads = 1;  // the workspace was sized for
};

namespace cpu {
// For S sequences of T rows in all.
int64_t attention_backward_workspace_bytes(int64_t T, int64_t S, int64_t num_heads,
                                           int64_t num_kv_heads, int64_t head_dim, int threads);
PE_CPU_KERNEL(attention_backward, AttentionBackwardArgs)
}  // namespace cpu

namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t. `threads` is not looked at. The same trees have the same bits in every call; f32
// has the CPU's where no product is a denormal number. bf16: p and ds are the CPU's to rounding, and sums go on in steps of 16.
int64_t attention_backward_workspace_bytes(int64_t T, int64_t num_heads);
int attention_backward(const AttentionBackwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
