// Layout  logits: a block makes 64 tokens x 256 words (head_logits.cuh) and reduces them; no logit reaches memory. The 256 words are
//         one link of a token's chain, summed in the CPU's 16 lanes, and a second kernel joins the links in order. backward: the
//         logits again, as coefficients c of some tokens in the workspace; then two products (head_gradients.cuh). Neighbouring
//         blocks take the same words and other tokens, so that a weight is read from memory about once.
// Bits    packed bf16 heads: logits are those of CUDA's linear; packed f32 ones and weights that are not packed: the CPU's
#include "pyengine/ops/linear_logprob.h"

#include "common/head_gradients.cuh"
#include "common/head_logits.cuh"
#include "common/launch.cuh"
#include "common/log_softmax.cuh"

namespace pe::cuda {
namespace {

// Workspace of the forward pass: links (blocks, rows), tokens innermost, then the target's logit (rows,).
struct Links {
    Link* link;
    float* picked;
};

template <typename Args>
Head head_of(const Args& a) {
    return {a.hidden, a.weight, a.packed, a.inverse_temperature, a.hidden.rows};
}

template <typename Z>
__global__ void __launch_bounds__(kHeadThreads, 2)
    linear_logprob_links_kernel(Head head, const int64_t* targets, Links out) {
    __shared__ typename Z::Shared s;
    Z z;
    z.multiply(s, head);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t first = int64_t{blockIdx.y} * kVocabBlock, V = head.words();
    Z::for_each_row(s, z, [&](int row, float (&x)[kLaneWords]) {
        const int64_t t = int64_t{blockIdx.x} * kHeadRows + row;
        if (t >= head.rows) return;  // the whole warp
        const int64_t target = targets[t];
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j) {
            const int64_t v = first + link_word(lane, j);
            if (v >= V) x[j] = -infinity();
            if (v == target && v < V) out.picked[t] = x[j];
        }
        const Link link = link_of(x);
        if (lane == 16) out.link[int64_t{blockIdx.y} * head.rows + t] = link;
    });
}

// Joins a token's links in order of the words; an id outside [0, V) gives NaN.
__global__ void __launch_bounds__(kHeadThreads)
    linear_logprob_join_kernel(Head head, const int64_t* targets, Links in, float* lse,
                               float* logprob) {
    const int64_t t = int64_t{blockIdx.x} * kHeadThreads + threadIdx.x;
    if (t >= head.rows) return;
    const int64_t V = head.words(), blocks = (V + kVocabBlock - 1) / kVocabBlock;
    Link chain = no_words();
#pragma unroll 4
    for (int64_t block = 0; block < blocks; ++block)
        chain = joined(chain, in.link[block * head.rows + t]);
    lse[t] = log_sum_exp(chain);
    const bool known = targets[t] >= 0 && targets[t] < V;
    logprob[t] = known ? in.picked[t] - lse[t] : infinity() - infinity();
}

// c[t,v] = dlogprob[t] * (1[v == target] - exp(logit - lse)) / temperature
template <typename Z>
__global__ void __launch_bounds__(kHeadThreads, 2)
    linear_logprob_coefficients_kernel(LinearLogprobBackwardArgs a, Head head, int64_t begin,
                                       MatrixView c) {
    using C = typename Z::Coefficient;
    __shared__ typename Z::Shared s;
    Z z;
    z.multiply(s, head);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t first = int64_t{blockIdx.y} * kVocabBlock;
    Z::for_each_row(s, z, [&](int row, float (&x)[kLaneWords]) {
        const int64_t place = int64_t{blockIdx.x} * kHeadRows + row;
        if (head.row_of(place) < 0) return;
        const int64_t t = begin + head.row_of(place);
        const int64_t target = ptr<int64_t>(a.targets)[t];
        const float lse = ptr<float>(a.lse)[t], dlogprob = ptr<float>(a.dlogprob)[t];
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j) {
            const int64_t v = first + link_word(lane, j);
            if (v >= c.row_stride) continue;
            const float pushed = exp_f32(x[j] - lse) * -dlogprob;
            const float of_word = v == target ? pushed + dlogprob : pushed;
            const float value = v < c.cols ? of_word * a.inverse_temperature : 0.0f;
            store_float(row_ptr<C>(c, place) + v, value);
        }
    });
}

template <typename Z>
int forward_wave(const LinearLogprobForwardArgs& a, const Head& head, int64_t begin,
                 const Links& links, void* stream) {
    const int64_t* targets = ptr<int64_t>(a.targets) + begin;
    const int status = launch(linear_logprob_links_kernel<Z>, logit_grid(head), kHeadThreads,
                              stream, head, targets, links);
    if (status != cudaSuccess) return status;
    float *lse = ptr<float>(a.lse) + begin, *logprob = ptr<float>(a.logprob) + begin;
    return launch(linear_logprob_join_kernel, dim3(ceil_div(head.rows, kHeadThreads)), kHeadThreads,
                  stream, head, targets, links, lse, logprob);
}

}  // namespace

int64_t linear_logprob_forward_bytes(const LinearLogprobForwardArgs& a) {
    const int64_t floats = 2 * vocab_blocks(head_of(a).words()) + 1;
    return forward_rows(a.hidden.rows) * floats * static_cast<int64_t>(sizeof(float));
}

int64_t linear_logprob_backward_bytes(const LinearLogprobBackwardArgs& a) {
    return HeadWaves(head_of(a), a.groups).bytes();
}

int linear_logprob_forward(const LinearLogprobForwardArgs& a, void* stream) {
    const Head head = head_of(a);
    const int64_t T = a.hidden.rows, wave = forward_rows(T);
    Link* link = static_cast<Link*>(a.workspace);
    const Links links{link, reinterpret_cast<float*>(link + vocab_blocks(head.words()) * wave)};
    return with_logits(head, [&]<typename Z>() {
        int status = cudaSuccess;
        for (int64_t begin = 0; begin < T && status == cudaSuccess; begin += wave) {
            const int64_t rows = begin + wave < T ? wave : T - begin;
            status = forward_wave<Z>(a, some_rows(head, begin, rows), begin, links, stream);
        }
        return status;
    });
}

int linear_logprob_backward(const LinearLogprobBackwardArgs& a, void* stream) {
    if (a.hidden.rows == 0 || (!a.dhidden && !a.dweight)) return cudaSuccess;
    const Head head = head_of(a);
    const auto make = [&](const Head& part, int64_t begin, const MatrixView& c) {
        return with_logits(part, [&]<typename Z>() {
            return launch(linear_logprob_coefficients_kernel<Z>, logit_grid(part), kHeadThreads,
                          stream, a, part, begin, c);
        });
    };
    return head_gradients(head, a.groups, a.dhidden, a.dweight, a.workspace, stream, make);
}

}  // namespace pe::cuda
