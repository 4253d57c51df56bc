// linear_logprob: logprob[t] = z[targets[t]] - log sum_v exp(z[v]),  z[v] = hidden[t,:] . weight[v,:] / temperature
// shapes       hidden (T, D), weight (V, D), row strides free, last dim contiguous, or `packed` (V, D) and `packed_columns`
//              (D, V) as linear packs them; targets (T,) in [0, V); logprob, lse (T,); direction (T, D);
//              no (T, V) matrix is stored: logits live in tiles
// dtypes       hidden, weight each f32 or bf16; targets i64; all else f32; every logit has one f32 accumulator that walks D
//              in order; bf16 by bf16 in pairs, the odd element first, as `linear` does
// aliasing     none
// gradient     direction[t,:] = d logprob[t] / d hidden[t,:] = (weight[y] - sum_v p[v] weight[v]) / temperature, from the
//              forward's own pass: one chain over words, rescaled where the largest logit rises; in bf16 p is rounded and
//              words go in pairs.  dhidden = dlogprob * direction (=).
//              c[t,v] = dlogprob[t] * (1[v == targets[t]] - p[t,v]) / temperature, from the logits made again;
//              dweight += c^T . hidden, tokens in order, so that a later call continues the chain. In bf16 c is rounded and
//              tokens go in pairs: each group of rows starts a new pair, an odd one ends with a zero, so that the split of
//              groups into calls changes nothing.  Outputs that are null are not wanted
// range        logprob <= 0, always: the sum holds exp(0) of the largest logit exactly
// workspace    linear_logprob_{forward,backward}_bytes(): O(T D), and a fixed number of words at a time
// determinism  cpu: bitwise for any thread count; a row's values do not depend on the other rows, nor on which outputs are
//              wanted; cuda: bitwise, no atomics; dhidden is made by the backward pass, and it takes no direction or `extra`.
//              Packed bf16 heads have the logits of CUDA's linear there, in steps of 16, c is rounded and a group
//              starts a step; packed f32 ones, and weights that are not packed, the CPU's
// source       the tiling is that of arXiv:2411.09009; the running rescale is that of arXiv:1805.02867
// proof        tests/reference/linear_logprob.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/packed.h"
#include "pyengine/view.h"

namespace pe {

// What else the forward pass finds out; null: not wanted.
struct LinearLogprobExtra {
    VectorView entropy = {};       // (T,) - sum_v p log p
    VectorView sum_squares = {};   // (T,) sum_v p^2
    MatrixView top_ids = {};       // (T, K) i64: logit descending, then id ascending
    MatrixView top_logprobs = {};  // (T, K), with top_ids
    MatrixView ids = {};           // (T, K) i64, given
    MatrixView id_logprobs = {};   // (T, K), with ids

    explicit operator bool() const { return entropy || sum_squares || top_ids || ids; }
};

struct LinearLogprobForwardArgs {
    MatrixView hidden;
    MatrixView weight;  // null: packed
    VectorView targets;
    VectorView logprob;
    VectorView lse;  // kept for the backward pass
    void* workspace = nullptr;
    int threads = 1;  // the workspace was sized for; ignored on CUDA
    PackedMatrix packed = {};
    PackedMatrix packed_columns = {};  // for a direction from a packed weight
    float inverse_temperature = 1.0f;
    MatrixView direction = {};
    LinearLogprobExtra extra = {};
};

struct LinearLogprobBackwardArgs {
    VectorView dlogprob;
    MatrixView hidden;
    MatrixView weight;  // null: packed
    VectorView targets;
    VectorView lse;
    MatrixView dhidden;  // null: not wanted; on the CPU it needs direction
    MatrixView dweight;  // null: not wanted
    void* workspace = nullptr;
    int threads = 1;  // the workspace was sized for; ignored on CUDA
    PackedMatrix packed = {};
    float inverse_temperature = 1.0f;
    MatrixView direction = {};
    VectorView groups =
        {};  // (G + 1,) i64, from 0 to T: rows groups[g] to groups[g + 1] are group g; null: one group
};

namespace cpu {
// Of these shapes, dtypes, threads and wanted outputs.
int64_t linear_logprob_forward_bytes(const LinearLogprobForwardArgs& args);
int64_t linear_logprob_backward_bytes(const LinearLogprobBackwardArgs& args);
PE_CPU_KERNEL(linear_logprob_forward, LinearLogprobForwardArgs)
PE_CPU_KERNEL(linear_logprob_backward, LinearLogprobBackwardArgs)
}  // namespace cpu

namespace cuda {
// Return a cudaError_t; `stream` is a cudaStream_t.
int64_t linear_logprob_forward_bytes(const LinearLogprobForwardArgs& args);
int64_t linear_logprob_backward_bytes(const LinearLogprobBackwardArgs& args);
int linear_logprob_forward(const LinearLogprobForwardArgs& args, void* stream);
int linear_logprob_backward(const LinearLogprobBackwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
