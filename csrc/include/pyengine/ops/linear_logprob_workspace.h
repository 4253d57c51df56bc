// The workspace of linear_logprob on CPU, in floats: a wave of token rows, and scratch for each thread.
#pragma once

#include <cstdint>

namespace pe::cpu {
namespace {  // internal linkage: see isa.h

constexpr int64_t kVocabBlock = 256;  // words whose (max, sum) form one link of a row's chain
constexpr int64_t kSlabRows = 48;     // rows of logits a thread holds at a time
constexpr int64_t kForwardWave = 1024;
constexpr int64_t kCoefficientFloats = int64_t{12} << 20;  // 48 MiB of backward coefficients

struct LogprobWorkspace {
    int64_t D, V, blocks, wave, threads;
    bool backward;

    LogprobWorkspace(int64_t T, int64_t D_, int64_t V_, bool backward_, int threads_)
        : D(D_),
          V(V_),
          blocks((V_ + kVocabBlock - 1) / kVocabBlock),
          threads(threads_),
          backward(backward_) {
        wave = backward ? kCoefficientFloats / (blocks * kVocabBlock) / 12 * 12 : kForwardWave;
        if (wave < 12) wave = 12;
        if (wave > kForwardWave) wave = kForwardWave;
        if (wave > T) wave = T;
    }

    // Rows are padded so that vector loads at a row's end stay inside.
    int64_t padded_D() const { return (D + 63) / 64 * 64; }
    // f32 copy of the wave's hidden rows
    int64_t hidden_floats() const { return wave * padded_D(); }
    // forward: (max, sum) of each row and block, then the target's logit; backward: c[block][row][word]
    int64_t table_floats() const {
        return backward ? blocks * wave * kVocabBlock : wave * (2 * blocks + 1);
    }
    int64_t pack_floats() const { return kVocabBlock * padded_D(); }
    int64_t thread_floats() const { return pack_floats() + kSlabRows * kVocabBlock; }
    int64_t total_floats() const {
        return hidden_floats() + table_floats() + threads * thread_floats() + 16;
    }
};

}  // namespace
}  // namespace pe::cpu
