// linear_logprob: logprob[t] = z[targets[t]] - log sum_v exp(z[v]),  z[v] = hidden[t,:] . weight[v,:]
// shapes       hidden (T, D), weight (V, D), row strides free, last dim contiguous; targets (T,) in [0, V);
//              logprob, lse (T,); no (T, V) matrix is stored: logits live in tiles
// dtypes       hidden, weight each f32 or bf16; targets i64; logprob, lse, dlogprob, dhidden, dweight f32; every logit has one
//              f32 accumulator that walks D in order; bf16 by bf16 in pairs, the odd element first, as `linear` does
// aliasing     none
// gradient     c[t,v] = dlogprob[t] * (1[v == targets[t]] - p[t,v]);  dhidden = c . weight is assigned (=),
//              dweight += c^T . hidden is accumulated, tokens in order, so that a later call continues the chain;
//              either may be null
// range        logprob <= 0, always: the sum holds exp(0) of the largest logit exactly
// workspace    linear_logprob_workspace_bytes(): a fixed number of token rows at a time, independent of T
// determinism  cpu: bitwise for any thread count; logprob[t] does not depend on the other rows; cuda: bitwise, no atomics
// source       d logp / d hidden = weight[y] - sum_v p_v weight[v]; the tiling is that of arXiv:2411.09009
// proof        tests/reference/linear_logprob.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

struct LinearLogprobForwardArgs {
    MatrixView hidden;
    MatrixView weight;
    VectorView targets;
    VectorView logprob;
    VectorView lse;  // kept for the backward pass
    void* workspace = nullptr;
    int threads = 1;  // the workspace was sized for; ignored on CUDA
};

struct LinearLogprobBackwardArgs {
    VectorView dlogprob;
    MatrixView hidden;
    MatrixView weight;
    VectorView targets;
    VectorView lse;
    MatrixView dhidden;  // null: not wanted
    MatrixView dweight;  // null: not wanted
    void* workspace = nullptr;
    int threads = 1;  // the workspace was sized for; ignored on CUDA
};

namespace cpu {
int64_t linear_logprob_workspace_bytes(int64_t T, int64_t D, int64_t V, bool backward, int threads);
PE_CPU_KERNEL(linear_logprob_forward, LinearLogprobForwardArgs)
PE_CPU_KERNEL(linear_logprob_backward, LinearLogprobBackwardArgs)
}  // namespace cpu

namespace cuda {
// Return a cudaError_t; `stream` is a cudaStream_t.
int64_t linear_logprob_workspace_bytes(int64_t T, int64_t D, int64_t V, bool backward);
int linear_logprob_forward(const LinearLogprobForwardArgs& args, void* stream);
int linear_logprob_backward(const LinearLogprobBackwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
