// attention: out[i,h,:] = sum_j softmax_j(scale * q[i,h,:] . k[j,h/G,:]) v[j,h/G,:] over the keys j <= position of row i
//              and, with a window, j > position - window
// shapes       q, out (T, H*hd), row stride free, last dim contiguous; keys, values: kv_pages.h, K heads of head_dim hd,
//              H = K*G; rows cu_seqlens[s] to cu_seqlens[s+1] are sequence s, (S+1,); first_positions (S,) of its first
//              row; block_tables (S, W) its pages in order; its keys and values up to the last row are in the pages
//              lse (T, H) or null: log sum_j exp(scale * q . k), what the backward pass starts from
// dtypes       q, out each f32 or bf16; pages f32 or bf16, q is rounded to that; cu_seqlens, first_positions, block_tables
//              i32; lse f32; accumulates in f32
// aliasing     out may be q; no other overlap
// gradient     attention_backward.h
// determinism  bitwise for any batch, chunks of rows, page size and place, thread count, and instruction set with FMA (finite
//              inputs). Keys are walked in blocks of 64 from position 0, with one online softmax state for a row and head:
//                s = (q . k) * scale, one chain over head_dim; -inf past the row's position
//                m' = max(m, max s);  f = exp(m - m');  p = exp(s - m')
//              (m' taken for 0 while no key was seen: such blocks change nothing, and those before all windows are left out)
//                l = l * f + (p[j] + p[j+16]) + (p[j+32] + p[j+48]) in 16 lanes j, folded once at the end
//                acc = acc * f, then one chain over the block's keys; out = acc / l, and +0 for -0; lse = m + log(l)
//              In bf16 pages p is rounded for the last chain, and both chains walk pairs, odd element first. Denormal
//              numbers count as zero, as in the bf16 instructions.
//              cuda: the same blocks and state, whatever shares a tile; f32 pages have the CPU's bits, chains of bf16 pages go
//              in steps of 16, each one mma, and such pages start on 16 bytes
// source       online softmax: arXiv:1805.02867, arXiv:2205.14135; pages: arXiv:2309.06180; grouped queries: arXiv:2305.13245
// proof        tests/reference/attention.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/kv_pages.h"
#include "pyengine/view.h"

namespace pe {

struct AttentionForwardArgs {
    MatrixView q;
    KvPages keys;
    KvPages values;
    VectorView cu_seqlens;
    VectorView first_positions;
    MatrixView block_tables;
    int64_t num_heads = 0;
    float scale = 1.0f;
    int64_t window = 0;  // keys that a row sees, its own included; 0: all
    MatrixView out;
    MatrixView lse = {};  // null: not wanted
};

namespace cpu {
PE_CPU_KERNEL(attention_forward, AttentionForwardArgs)
}  // namespace cpu

namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t.
int attention_forward(const AttentionForwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
