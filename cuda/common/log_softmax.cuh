// log sum exp of a row of logits: the CPU's chain (log_softmax.h), the same wherever a token's log-prob is made.
//
// A row is cut into links of kVocabBlock words. A warp makes a link in the CPU's 16 lanes: of each 16 words a lane holds its
// own, lanes 0-15 in the first half of the link and lanes 16-31 in the second, and lane 16 + l goes on where lane l stops.
// Links are joined in order of the words.
#pragma once

#include "common/math.cuh"

namespace pe::cuda {
namespace {

constexpr int kVocabBlock = 256;
constexpr int kLaneWords = kVocabBlock / kWarp;

// Word j of a lane, within its link.
__device__ inline int link_word(int lane, int j) {
    return (lane / 16 * kLaneWords + j) * 16 + lane % 16;
}

// Sum of a link's terms. All lanes of the warp call it; lanes 16 and up get it.
__device__ inline float link_sum(const float (&x)[kLaneWords]) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kLaneWords; ++j) sum = sum + x[j];
    const float lower = __shfl_up_sync(kAllLanes, sum, 16);
    if (static_cast<int>(threadIdx.x) % kWarp >= 16) {
        sum = lower;
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j) sum = sum + x[j];
    }
    return fold16(sum);
}

// Largest logit of some words and their sum of exp(logit - largest).
struct Link {
    float largest, total;
};

__device__ inline Link no_words() { return {-infinity(), 0.0f}; }

// Of the warp's logits x, -inf past the row's end. All lanes call it; lanes 16 and up get its total.
__device__ inline Link link_of(float (&x)[kLaneWords]) {
    float largest = -infinity();
#pragma unroll
    for (int j = 0; j < kLaneWords; ++j) largest = max_of(x[j], largest);
    largest = warp_max(largest);
    const float shift = largest == -infinity() ? 0.0f : largest;
#pragma unroll
    for (int j = 0; j < kLaneWords; ++j) x[j] = exp_f32(x[j] - shift);
    return {largest, link_sum(x)};
}

// What the next link does to the total of a chain whose largest logit is known.
struct Joint {
    float scale, add;

    __device__ float operator()(float total) const { return total * scale + add; }
};

__device__ inline Joint joint_of(float largest, const Link& next) {
    if (next.largest > largest) return {exp_f32(largest - next.largest), next.total};
    if (next.largest != -infinity()) return {1.0f, next.total * exp_f32(next.largest - largest)};
    return {1.0f, next.total};  // 0, or NaN that must not be lost
}

__device__ inline Link joined(const Link& chain, const Link& next) {
    return {max_of(next.largest, chain.largest), joint_of(chain.largest, next)(chain.total)};
}

__device__ inline float log_sum_exp(const Link& chain) {
    return chain.largest + log_f32(chain.total);
}

}  // namespace
}  // namespace pe::cuda
