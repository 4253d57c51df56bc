// Layout  both sides' logits of 64 tokens x 256 words, one after the other (head_logits.cuh), reduced at once to a link of a token's
//         chain; a second kernel joins the links in order. backward: the logits again, as coefficients c of some tokens in the
//         workspace; then two products (head_gradients.cuh). Both sides are of one kind: packed bf16, packed f32, or weights of
//         the same dtypes.
// Order   within a link the CPU's 16 lanes, links in order of the words. In f32 the CPU's bits.
#include "pyengine/ops/linear_kl.h"

#include "common/head_gradients.cuh"
#include "common/head_logits.cuh"
#include "common/launch.cuh"
#include "common/log_softmax.cuh"

namespace pe::cuda {
namespace {

Head head_of(const LinearKlSide& side, float inverse_temperature) {
    return {side.hidden, side.weight, side.packed, inverse_temperature, side.hidden.rows};
}

bool of_one_kind(const Head& p, const Head& q) {
    if (p.hidden.dtype != q.hidden.dtype || bool{p.weight} != bool{q.weight}) return false;
    return p.weight ? p.weight.dtype == q.weight.dtype : p.packed.kind == q.packed.kind;
}

// Some words of a token. u = z - largest.
struct KlLink {
    Link p, q;
    float weighted = 0.0f;  // sum exp(u) (u - u2)
};

__device__ inline float where_likely(float p, float x) { return p == 0.0f ? 0.0f : x; }

// sum exp(u) (u - u2) after the largest logits have risen.
__device__ inline float risen(float weighted, float total, float rise, float rise2) {
    const float f = exp_f32(-rise);
    return f == 0.0f || total == 0.0f ? 0.0f : f * (weighted + total * (rise2 - rise));
}

__device__ inline KlLink joined(const KlLink& chain, const KlLink& next) {
    const auto rise = [](float from, float to) { return from == to ? 0.0f : to - from; };
    const float top = next.p.largest > chain.p.largest ? next.p.largest : chain.p.largest;
    const float top2 = next.q.largest > chain.q.largest ? next.q.largest : chain.q.largest;
    const float before = risen(chain.weighted, chain.p.total, rise(chain.p.largest, top),
                               rise(chain.q.largest, top2));
    const float added =
        risen(next.weighted, next.p.total, rise(next.p.largest, top), rise(next.q.largest, top2));
    return {joined(chain.p, next.p), joined(chain.q, next.q), before + added};
}

// Of the warp's logits of both sides, -inf past the row's end. All lanes call it; lanes 16 and up get the totals. The lower half's
// lanes go on in the upper half's, as in link_sum.
__device__ inline KlLink link_of(float (&x)[kLaneWords], float (&y)[kLaneWords]) {
    float u[kLaneWords], apart[kLaneWords];
#pragma unroll
    for (int j = 0; j < kLaneWords; ++j) u[j] = x[j], apart[j] = y[j];
    KlLink link;
    link.p = pe::cuda::link_of(x);
    link.q = pe::cuda::link_of(y);
    const float largest = __shfl_sync(kAllLanes, link.p.largest, 16);
    const float largest2 = __shfl_sync(kAllLanes, link.q.largest, 16);
    const float shift = largest == -infinity() ? 0.0f : largest;
    const float shift2 = largest2 == -infinity() ? 0.0f : largest2;
    float weighted = 0.0f;
    const auto go_on = [&] {
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j) {
            const float difference = (u[j] - shift) - (apart[j] - shift2);
            weighted = fmaf(x[j], where_likely(x[j], difference), weighted);
        }
    };
    go_on();
    const float lower = __shfl_up_sync(kAllLanes, weighted, 16);
    if (static_cast<int>(threadIdx.x) % kWarp >= 16) {
        weighted = lower;
        go_on();
    }
    link.weighted = fold16(weighted);
    return link;
}

template <typename Z>
__global__ void __launch_bounds__(kHeadThreads, 1)
    linear_kl_links_kernel(Head p, Head q, KlLink* links) {
    __shared__ typename Z::Shared s;
    Z of_p, of_q;
    of_p.multiply(s, p);
    of_q.multiply(s, q);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t first = int64_t{blockIdx.y} * kVocabBlock, V = p.words();
    Z::for_each_row(s, of_p, of_q, [&](int row, float (&x)[kLaneWords], float (&y)[kLaneWords]) {
        const int64_t t = int64_t{blockIdx.x} * kHeadRows + row;
        if (t >= p.rows) return;  // the whole warp
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j) {
            if (first + link_word(lane, j) >= V) x[j] = y[j] = -infinity();
        }
        const KlLink link = link_of(x, y);
        if (lane == 16) links[int64_t{blockIdx.y} * p.rows + t] = link;
    });
}

// The largest logits cancel exactly: only the logs of the totals round.
__global__ void __launch_bounds__(kHeadThreads)
    linear_kl_join_kernel(LinearKlForwardArgs a, const KlLink* links, int64_t begin, int64_t rows,
                          int64_t blocks) {
    const int64_t t = int64_t{blockIdx.x} * kHeadThreads + threadIdx.x;
    if (t >= rows) return;
    KlLink chain{no_words(), no_words()};
    for (int64_t block = 0; block < blocks; ++block) chain = joined(chain, links[block * rows + t]);
    const float log_total = log_f32(chain.p.total), log_total2 = log_f32(chain.q.total);
    float* lse = row_ptr<float>(a.lse, begin + t);
    lse[0] = chain.p.largest, lse[1] = log_total;
    lse[2] = chain.q.largest, lse[3] = log_total2;
    const float kl = chain.weighted / chain.p.total - (log_total - log_total2);
    ptr<float>(a.kl)[begin + t] = kl < 0.0f ? 0.0f : kl;
}

template <typename Z>
__global__ void __launch_bounds__(kHeadThreads, 1)
    linear_kl_coefficients_kernel(LinearKlBackwardArgs a, Head p, Head q, int64_t begin,
                                  MatrixView c) {
    using C = typename Z::Coefficient;
    __shared__ typename Z::Shared s;
    Z of_p, of_q;
    of_p.multiply(s, p);
    of_q.multiply(s, q);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t first = int64_t{blockIdx.y} * kVocabBlock;
    Z::for_each_row(s, of_p, of_q, [&](int row, float (&x)[kLaneWords], float (&y)[kLaneWords]) {
        const int64_t place = int64_t{blockIdx.x} * kHeadRows + row;
        if (p.row_of(place) < 0) return;
        const int64_t t = begin + p.row_of(place);
        const float* lse = row_ptr<float>(a.lse, t);
        const float dkl = ptr<float>(a.dkl)[t] * a.inverse_temperature;
        const float kl = a.reverse ? 0.0f : ptr<float>(a.kl)[t];
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j) {
            const int64_t v = first + link_word(lane, j);
            if (v >= c.row_stride) continue;
            const float log_p = (x[j] - lse[0]) - lse[1], log_q = (y[j] - lse[2]) - lse[3];
            const float of_word = exp_f32(log_p);
            const float value = a.reverse ? of_word - exp_f32(log_q)
                                          : of_word * where_likely(of_word, (log_p - log_q) - kl);
            store_float(row_ptr<C>(c, place) + v, v < c.cols ? value * dkl : 0.0f);
        }
    });
}

template <typename Z>
int forward_wave(const LinearKlForwardArgs& a, const Head& p, const Head& q, int64_t begin,
                 void* stream) {
    auto* links = static_cast<KlLink*>(a.workspace);
    const int status =
        launch(linear_kl_links_kernel<Z>, logit_grid(p), kHeadThreads, stream, p, q, links);
    if (status != cudaSuccess) return status;
    return launch(linear_kl_join_kernel, dim3(ceil_div(p.rows, kHeadThreads)), kHeadThreads, stream,
                  a, static_cast<const KlLink*>(links), begin, p.rows, vocab_blocks(p.words()));
}

}  // namespace

int64_t linear_kl_forward_bytes(const LinearKlForwardArgs& a) {
    const int64_t links = forward_rows(a.p.hidden.rows) * vocab_blocks(head_of(a.p, 1).words());
    return links * static_cast<int64_t>(sizeof(KlLink));
}

int64_t linear_kl_backward_bytes(const LinearKlBackwardArgs& a) {
    return HeadWaves(head_of(a.p, 1), a.groups).bytes();
}

int linear_kl_forward(const LinearKlForwardArgs& a, void* stream) {
    const Head p = head_of(a.p, a.inverse_temperature), q = head_of(a.q, a.inverse_temperature);
    if (!of_one_kind(p, q)) return cudaErrorInvalidValue;
    const int64_t T = a.p.hidden.rows, wave = forward_rows(T);
    return with_logits(p, [&]<typename Z>() {
        int status = cudaSuccess;
        for (int64_t begin = 0; begin < T && status == cudaSuccess; begin += wave) {
            const int64_t rows = begin + wave < T ? wave : T - begin;
            status = forward_wave<Z>(a, some_rows(p, begin, rows), some_rows(q, begin, rows), begin,
                                     stream);
        }
        return status;
    });
}

int linear_kl_backward(const LinearKlBackwardArgs& a, void* stream) {
    if (a.p.hidden.rows == 0 || (!a.dhidden && !a.dweight)) return cudaSuccess;
    const Head p = head_of(a.p, a.inverse_temperature), q = head_of(a.q, a.inverse_temperature);
    if (!of_one_kind(p, q)) return cudaErrorInvalidValue;
    const auto make = [&](const Head& part, int64_t begin, const MatrixView& c) {
        Head other = q;
        if (part.row_at != nullptr) {
            other.rows = part.rows;
            other.row_at = part.row_at;
        } else {
            other = some_rows(q, begin, part.rows);
        }
        return with_logits(part, [&]<typename Z>() {
            return launch(linear_kl_coefficients_kernel<Z>, logit_grid(part), kHeadThreads, stream,
                          a, part, other, begin, c);
        });
    };
    return head_gradients(p, a.groups, a.dhidden, a.dweight, a.workspace, stream, make);
}

}  // namespace pe::cuda
