// log sum exp of a row of logits, the same chain wherever a token's log-prob is made: sampler, scorer and trainer.
//
// The row is cut into blocks of kVocabBlock words; each gives a link (largest, sum of exp(x - largest)), and the links are
// joined in order. Compiled once per instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include <limits>

#include "pyengine/ops/linear_logprob_workspace.h"
#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// f(offset, 16 values, how many of them count); what is past the end reads as `fill`.
template <typename F>
PE_INLINE void for_each_16(const float* x, int64_t n, float fill, const F& f) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) f(i, load16(x + i), int64_t{16});
    if (i < n) f(i, load16_partial(x + i, n - i, fill), n - i);
}

inline float block_max(const float* x, int64_t n) {
    vec16 m = broadcast16(-kInfinity);
    for_each_16(x, n, -kInfinity, [&](int64_t, const vec16& v, int64_t) { m = max(v, m); });
    return max(m);
}

// Sum of exp(logit - largest); use(offset, 16 exponentials, how many of them count) sees its terms.
template <typename F>
PE_INLINE float block_sum(const float* x, int64_t n, float largest, const F& use) {
    const vec16 shift = broadcast16(largest == -kInfinity ? 0.0f : largest);
    vec16 s = broadcast16(0.0f);
    for_each_16(x, n, -kInfinity, [&](int64_t i, const vec16& v, int64_t count) {
        const vec16 e = exp(v - shift);
        s = s + e;
        use(i, e, count);
    });
    return sum(s);
}

// Largest logit of a block and sum of exp(logit - largest).
inline void block_max_sum(const float* x, int64_t n, float* largest, float* total) {
    *largest = block_max(x, n);
    *total = block_sum(x, n, *largest, [](int64_t, const vec16&, int64_t) {});
}

inline float exp_of(float x) { return exp(broadcast(x))[0]; }
inline float log_of(float x) { return log(broadcast(x))[0]; }

// The running (largest, total) of a row; `absorb` takes in the next block's.
struct LogSumExp {
    float largest = -kInfinity;
    float total = 0.0f;

    void absorb(float block_max, float block_sum) {
        if (block_max > largest) {
            total = total * exp_of(largest - block_max) + block_sum;
            largest = block_max;
        } else if (block_max != -kInfinity) {
            total += block_sum * exp_of(block_max - largest);
        } else {
            total += block_sum;  // 0, or NaN that must not be lost
        }
    }

    float value() const { return largest + log_of(total); }
};

// Of a whole row.
inline LogSumExp log_sum_exp(const float* x, int64_t n) {
    LogSumExp chain;
    for (int64_t i = 0; i < n; i += kVocabBlock) {
        float largest, total;
        block_max_sum(x + i, n - i < kVocabBlock ? n - i : kVocabBlock, &largest, &total);
        chain.absorb(largest, total);
    }
    return chain;
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
