// The workspace of sample on CPU: the same part for each thread, every piece on 64 bytes.
#pragma once

#include <cstdint>

#include "pyengine/ops/linear_logprob_workspace.h"

namespace pe::cpu {
namespace {  // internal linkage: see isa.h

constexpr int64_t kSelectBuckets = 2048;

struct SampleWorkspace {
    int64_t V, blocks;

    explicit SampleWorkspace(int64_t V_) : V(V_), blocks((V_ + kVocabBlock - 1) / kVocabBlock) {}

    static int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }
    int64_t logits_bytes() const { return rounded(V * 4); }
    int64_t keys_bytes() const { return rounded(V * 8); }
    int64_t block_floats_bytes() const { return rounded(blocks * 4); }
    int64_t block_doubles_bytes() const { return rounded(blocks * 8); }
    int64_t mass_bytes() const { return kSelectBuckets * 8; }
    // Three times (largest, sum) of each block: raw, changed, kept.
    int64_t thread_bytes() const {
        return logits_bytes() + keys_bytes() + 6 * block_floats_bytes() + block_doubles_bytes() +
               mass_bytes();
    }
    int64_t total_bytes(int threads) const { return threads * thread_bytes() + 63; }
};

}  // namespace
}  // namespace pe::cpu
