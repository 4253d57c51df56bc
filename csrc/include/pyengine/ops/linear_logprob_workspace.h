// The workspace of linear_logprob on CPU: what all threads share, then scratch for each thread.
#pragma once

#include <cstdint>

#include "pyengine/ops/linear_logprob.h"

namespace pe::cpu {
namespace {  // internal linkage: see isa.h

constexpr int64_t kVocabBlock = 256;       // words whose (max, sum) form one link of a row's chain
constexpr int64_t kSlabRows = 48;          // rows of logits a thread of the plain forward holds
constexpr int64_t kForwardWave = 1024;     // rows whose links the plain forward keeps
constexpr int64_t kWideSlabRows = 144;     // rows that walk the vocabulary together
constexpr int64_t kChunkBytes = 16 << 20;  // of the head, both ways packed: a third-level cache
constexpr int64_t kTaskWords = 128;        // words whose gradient is one task
constexpr int64_t kTokenBytes = 1024;      // of one word's coefficients that a task holds

enum class LogprobPass : int { kForward, kDirection, kBackward };

struct LogprobSize {
    int64_t T, D, V;
    LogprobPass pass;
    PackedKind kind;  // what is multiplied
    bool packed;      // the head is given packed
    int64_t groups;   // of the backward
    int threads;
};

// Every piece starts at a multiple of 64 bytes. Rows are padded so that vector loads at a row's end stay inside.
class LogprobWorkspace {
  public:
    explicit LogprobWorkspace(const LogprobSize& s, void* base = nullptr) : size(s) {
        const uintptr_t address = (reinterpret_cast<uintptr_t>(base) + 63) / 64 * 64;
        base_ = reinterpret_cast<char*>(address);
        element = s.kind == PackedKind::kF32 ? 4 : 2;
        padded_D = (s.D + 63) / 64 * 64;
        blocks = (s.V + kVocabBlock - 1) / kVocabBlock;
        switch (s.pass) {
            case LogprobPass::kForward: plan_forward(); break;
            case LogprobPass::kDirection: plan_direction(); break;
            case LogprobPass::kBackward: plan_backward(); break;
        }
    }

    int64_t total_bytes() const { return shared_ + size.threads * thread_ + 64; }
    template <typename T>
    T* shared(int64_t offset) const {
        return reinterpret_cast<T*>(base_ + offset);
    }
    template <typename T>
    T* of_thread(int thread, int64_t offset) const {
        return reinterpret_cast<T*>(base_ + shared_ + thread * thread_ + offset);
    }

    LogprobSize size;
    int64_t element, padded_D, blocks;
    // forward
    int64_t wave = 0, slab = 0;     // rows
    int64_t hidden = 0;             // shared: the wave's rows as f32; of a thread: the slab's
    int64_t table = 0, picked = 0;  // (max, sum) of each row and block; the target's logit
    int64_t pack = 0, logits = 0;   // of a thread
    // direction
    int64_t chunk = 0;  // words
    int64_t rows_pack = 0, columns_pack = 0, state = 0;
    int64_t slabs = 0, probs = 0;
    // backward
    int64_t places = 0, step = 0;  // along the chain of tokens; of one round
    int64_t token_lanes = 0, token_chain = 0, row_at = 0, target_at = 0, lse_at = 0, scale_at = 0;
    int64_t coefficients = 0;

  private:
    char* base_;
    int64_t shared_ = 0, thread_ = 0;

    static int64_t take(int64_t* end, int64_t bytes) {
        const int64_t begin = *end;
        *end += (bytes + 63) / 64 * 64;
        return begin;
    }

    void plan_forward() {
        wave = size.T < kForwardWave ? size.T : kForwardWave;
        slab = kSlabRows;
        hidden = take(&shared_, wave * padded_D * 4);
        table = take(&shared_, wave * 2 * blocks * 4);
        picked = take(&shared_, wave * 4);
        pack = take(&thread_, size.packed ? 0 : kVocabBlock * padded_D * 4);
        logits = take(&thread_, kSlabRows * kVocabBlock * 4);
    }

    void plan_direction() {
        chunk = kChunkBytes / (2 * padded_D * element) / kVocabBlock * kVocabBlock;
        if (chunk < kVocabBlock) chunk = kVocabBlock;
        if (chunk > blocks * kVocabBlock) chunk = blocks * kVocabBlock;
        slabs = (size.T + kWideSlabRows - 1) / kWideSlabRows;
        slabs = (slabs + size.threads - 1) / size.threads * size.threads;
        if (slabs > size.T) slabs = size.T;
        slab = slabs > 0 ? (size.T + slabs - 1) / slabs : 0;
        if (!size.packed) {
            rows_pack = take(&shared_, chunk * padded_D * element);
            columns_pack = take(&shared_, chunk * padded_D * element);
        }
        state = take(&shared_, size.T * 5 * 4);
        hidden = take(&thread_, slab * padded_D * 4);
        logits = take(&thread_, slab * kVocabBlock * 4);
        probs = take(&thread_, slab * kVocabBlock * 2);
    }

    void plan_backward() {
        places = size.T + size.groups;
        step = kTokenBytes / element;
        const int64_t lanes = (places + kPanel - 1) / kPanel * kPanel;
        token_lanes = take(&shared_, lanes * padded_D * element);
        token_chain = take(&shared_, (places + 1) * padded_D * element);
        row_at = take(&shared_, lanes * 4);
        target_at = take(&shared_, lanes * 4);
        lse_at = take(&shared_, lanes * 4);
        scale_at = take(&shared_, lanes * 4);
        pack = take(&thread_, size.packed ? 0 : kTaskWords * padded_D * element);
        coefficients = take(&thread_, kTaskWords * kTokenBytes);
    }
};

// What is multiplied: bf16 by bf16 in pairs, anything else as f32.
template <typename Args>
PackedKind product_kind(const Args& a) {
    const bool head =
        a.packed.data ? a.packed.kind == PackedKind::kBF16 : a.weight.dtype == DType::kBF16;
    return head && a.hidden.dtype == DType::kBF16 ? PackedKind::kBF16 : PackedKind::kF32;
}

inline LogprobSize logprob_size(const LinearLogprobForwardArgs& a) {
    const bool packed = a.packed.data != nullptr, wide = a.direction || a.extra;
    return {a.hidden.rows,
            a.hidden.cols,
            packed ? a.packed.N : a.weight.rows,
            wide ? LogprobPass::kDirection : LogprobPass::kForward,
            product_kind(a),
            packed,
            0,
            a.threads};
}

inline LogprobSize logprob_size(const LinearLogprobBackwardArgs& a) {
    const bool packed = a.packed.data != nullptr;
    return {
        a.hidden.rows,   a.hidden.cols, packed ? a.packed.N : a.weight.rows, LogprobPass::kBackward,
        product_kind(a), packed,        a.groups ? a.groups.size - 1 : 1,    a.threads};
}

}  // namespace
}  // namespace pe::cpu
