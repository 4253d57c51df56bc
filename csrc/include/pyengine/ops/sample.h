// sample: token[b] drawn from the logits z = sum_m coefficients[m] * logits[m][row[b],:], m in order, changed step by step:
//   adjust       z[id] = (z[id] > 0 ? z[id] / repetition : z[id] * repetition) - subtract + bias, for each LogitAdjust
//   temperature  z = (z - max z) / T; T == 1 leaves z; T == 0 is greedy: the largest logit, of equals the lowest id
//   top_k        the first k in the total order (logit descending, id ascending)
//   top_p        of these, each whose likelier ones hold less than top_p of their probability
//   min_p        of these, each with z >= max z + log(min_p), in f32
// The token is the first, in order of ids, whose cumulative probability exceeds uniform * total; never one of probability
// 0, never one outside the kept set. A token may also be given (`forced`), to be reported on: a score is a draw whose outcome
// is known.
// shapes       logits: M in [1, 3] matrices (R, V), row strides free, last dim contiguous; coefficients (M,); params (B,);
//              adjust: spans of it belong to draws, ids ascending and unique within one; token_ids, sampling_logprobs,
//              kept_mass, status (B,); entropy (B,) or null; logprobs (B, M); top_ids, top_logprobs (B, k) or null
// dtypes       logits, log-probs, kept_mass, entropy f32; ids i64; status i32
// outputs      logprobs       log softmax(logits[m][row,:])[token]: raw, of every model
//              sampling_logprobs, kept_mass   under the distribution drawn from; the kept set's share of it before
//                             top_k, top_p and min_p; greedy: 0 and 1; a given token that could not be drawn: -inf
//              entropy        of softmax(logits[0][row,:]), in nats
//              top_ids, top_logprobs   the k most likely words of logits[0], raw, in the total order
//              status         0, or 1: a row holds NaN or +inf or nothing but -inf, or the changed logits do: then no token
//                             (-1), every id -1 and every number NaN
// exactness    top_p's sums are of f64 exponentials, in f64; log-probs are links of kVocabBlock words (log_softmax.h): the
//              bits of linear_logprob. The draw finds a block by its link, in f64, then the word in the block
// aliasing     none
// gradient     none
// workspace    sample_workspace_bytes(): a fixed part for each of `threads`; called inside a task only the first is used,
//              so such calls need a workspace each. cuda::sample_workspace_bytes(): a part for each draw, of up to 160
// determinism  bitwise; a draw depends on its row and parameters alone. cpu: for any thread count. cuda: the bits of
//              instruction sets with FMA, but that top_p's sums have an order of their own: where what is before a word
//              is top_p of the whole up to f64's rounding, one more word may be kept, or one less
// source       top_p: arXiv:1904.09751; min_p: arXiv:2407.01082; repetition: arXiv:1909.05858
// proof        tests/reference/sample.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

inline constexpr int64_t kMaxSampledModels = 3;

struct SampleParams {
    double temperature = 1.0;  // 0, or in [1e-30, 1e30]
    double top_p = 1.0;        // (0, 1]
    double min_p = 0.0;        // [0, 1]
    int64_t top_k = 0;         // 0: all
    double uniform = 0.0;      // [0, 1)
    int64_t forced = -1;       // a token that is given: everything is reported of it
    int64_t row = 0;
    int64_t adjust_begin = 0;  // this draw's span of `adjust`
    int64_t adjust_end = 0;
};

struct LogitAdjust {
    int32_t id = 0;
    float repetition = 1.0f;  // > 0
    float subtract = 0.0f;
    float bias = 0.0f;  // -inf: never drawn
};

struct SampleArgs {
    const MatrixView* logits = nullptr;
    const float* coefficients = nullptr;
    int64_t models = 1;
    const SampleParams* params = nullptr;
    int64_t draws = 0;
    const LogitAdjust* adjust = nullptr;
    VectorView token_ids;
    MatrixView logprobs;
    VectorView sampling_logprobs;
    VectorView kept_mass;
    VectorView entropy;       // null: not wanted
    MatrixView top_ids;       // null: not wanted
    MatrixView top_logprobs;  // with top_ids
    VectorView status;
    void* workspace = nullptr;
    int threads = 1;  // the workspace was sized for
};

namespace cpu {
int64_t sample_workspace_bytes(int64_t V, int threads);
PE_CPU_KERNEL_UP_TO_AVX512(sample, SampleArgs)
}  // namespace cpu

namespace cuda {
// A draw's parameters and changes as columns of (B,) and (N,), offsets (B + 1,); without offsets there are no changes.
struct SampleColumns {
    VectorView rows, uniform, temperature, top_k, top_p, min_p;
    VectorView adjust_offsets, adjust_ids, adjust_repetition, adjust_subtract, adjust_bias;
    SampleParams* params = nullptr;
    LogitAdjust* adjust = nullptr;
};

// `logits` and `coefficients` are read on the host; all other arrays are the device's. Return a cudaError_t; `stream` is a
// cudaStream_t.
int64_t sample_workspace_bytes(int64_t V, int64_t draws);
int sample(const SampleArgs& args, void* stream);
int sample_params(const SampleColumns& columns,
                  void* stream);  // makes params and adjust of columns
}  // namespace cuda

}  // namespace pe
