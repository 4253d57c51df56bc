// linear_kl: kl[t] = sum_v p[v] (log p[v] - log q[v]),  p = softmax(z),  z[v] = p.hidden[t,:] . p.weight[v,:] / temperature,
//            q from q.hidden and q.weight in the same way
//            With `reverse` it is the gradient of KL(q || p), whose value is the forward pass with its sides exchanged
// shapes       hidden (T, D), weight (V, D), row strides free, last dim contiguous, or `packed` (V, D) as linear packs it; D may
//              differ between p and q; kl, dkl (T,); lse (T, 4), contiguous: largest z and log sum exp(z - largest), of p and
//              then of q; dhidden (T, D) and dweight (V, D) of p; no (T, V) matrix is stored: logits live in tiles
// dtypes       hidden, weight each f32 or bf16; groups i64; all else f32; logits are those of linear_logprob, bit for bit
// aliasing     q may be p; no other overlap
// gradient     c[t,v] = p[v] (log p[v] - log q[v] - kl[t]) / temperature, from both logits made again; with `reverse`
//              c[t,v] = (p[v] - q[v]) / temperature, and kl is not read;
//              dhidden[t,:] = dkl[t] sum_v c[t,v] weight[v,:], one chain over words (=);
//              dweight[v,:] += sum_t dkl[t] c[t,v] hidden[t,:], tokens in order, so that a later call continues the chain.
//              In bf16 c is rounded, and words and tokens go in pairs; each group of rows starts a new pair of tokens, as in
//              linear_logprob.  q gets none.  Outputs that are null are not wanted
// range        kl >= 0, always: rounding that goes below is cut off; 0 where p and q have the same logits, and so is c.
//              A word of p[v] = 0 adds nothing; one of q[v] = 0 and p[v] > 0 makes kl infinite
// workspace    linear_kl_{forward,backward}_bytes(): a fixed number of rows or words at a time, and O(T D) for dweight
// determinism  cpu: bitwise for any thread count; a row's values do not depend on the other rows; cuda: bitwise, no atomics
// source       the tiling is that of arXiv:2411.09009; the running rescale is that of arXiv:1805.02867
// proof        tests/reference/linear_kl.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/packed.h"
#include "pyengine/view.h"

namespace pe {

// What one distribution is made of.
struct LinearKlSide {
    MatrixView hidden;
    MatrixView weight = {};  // null: packed
    PackedMatrix packed = {};
};

struct LinearKlForwardArgs {
    LinearKlSide p, q;
    VectorView kl;
    MatrixView lse;  // kept for the backward pass
    void* workspace = nullptr;
    int threads = 1;  // the workspace was sized for
    float inverse_temperature = 1.0f;
};

struct LinearKlBackwardArgs {
    VectorView dkl;
    LinearKlSide p, q;
    VectorView kl;
    MatrixView lse;
    MatrixView dhidden;  // null: not wanted
    MatrixView dweight;  // null: not wanted
    void* workspace = nullptr;
    int threads = 1;  // the workspace was sized for
    float inverse_temperature = 1.0f;
    VectorView groups =
        {};  // (G + 1,) i64, from 0 to T: rows groups[g] to groups[g + 1] are group g; null: one group
    bool reverse = false;  // of KL(q || p); lse still has p first
};

namespace cpu {
// Of these shapes, dtypes, threads and wanted outputs.
int64_t linear_kl_forward_bytes(const LinearKlForwardArgs& args);
int64_t linear_kl_backward_bytes(const LinearKlBackwardArgs& args);
PE_CPU_KERNEL(linear_kl_forward, LinearKlForwardArgs)
PE_CPU_KERNEL(linear_kl_backward, LinearKlBackwardArgs)
}  // namespace cpu

namespace cuda {
// Return a cudaError_t; `stream` is a cudaStream_t. Both sides are of one kind: packed as bf16 or as f32, or weights of the same dtypes.
int64_t linear_kl_forward_bytes(const LinearKlForwardArgs& args);
int64_t linear_kl_backward_bytes(const LinearKlBackwardArgs& args);
int linear_kl_forward(const LinearKlForwardArgs& args, void* stream);
int linear_kl_backward(const LinearKlBackwardArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
