// The workspace of linear_kl on CPU: what all threads share, then scratch for each thread.
#pragma once

#include <cstdint>

#include "pyengine/ops/linear_kl.h"
#include "pyengine/ops/linear_logprob_workspace.h"

namespace pe::cpu {
namespace {  // internal linkage: see isa.h

constexpr int64_t kKlLink = 5;  // floats of a row's link: see KlLink

enum class KlPass : int { kForward, kHidden, kWeight };

struct KlSide {
    PackedKind kind;  // what is multiplied
    int64_t D, padded_D, element;
    bool packed, copied;  // the head is given packed; hidden is converted

    explicit KlSide(const LinearKlSide& s)
        : kind(product_kind(s)),
          D(s.hidden.cols),
          padded_D((D + 63) / 64 * 64),
          element(kind == PackedKind::kF32 ? 4 : 2),
          packed(s.packed.data != nullptr),
          copied((s.hidden.dtype == DType::kF32) != (kind == PackedKind::kF32)) {}
};

// Every piece starts at a multiple of 64 bytes. Rows are padded so that vector loads at a row's end stay inside.
class KlWorkspace {
  public:
    template <typename Args>
    KlWorkspace(const Args& a, KlPass pass, int64_t group_count, void* base = nullptr)
        : T(a.p.hidden.rows),
          V(a.p.packed.data ? a.p.packed.N : a.p.weight.rows),
          threads(a.threads),
          groups(group_count),
          side{KlSide(a.p), KlSide(a.q)} {
        const uintptr_t address = (reinterpret_cast<uintptr_t>(base) + 63) / 64 * 64;
        base_ = reinterpret_cast<char*>(address);
        blocks = (V + kVocabBlock - 1) / kVocabBlock;
        switch (pass) {
            case KlPass::kForward: plan_forward(); break;
            case KlPass::kHidden: plan_hidden(); break;
            case KlPass::kWeight: plan_weight(); break;
        }
    }

    int64_t total_bytes() const { return shared_ + threads * thread_ + 64; }
    template <typename X>
    X* shared(int64_t offset) const {
        return reinterpret_cast<X*>(base_ + offset);
    }
    template <typename X>
    X* of_thread(int thread, int64_t offset) const {
        return reinterpret_cast<X*>(base_ + shared_ + thread * thread_ + offset);
    }

    int64_t T, V, threads, groups, blocks;
    KlSide side[2];
    int64_t slab = 0;                                         // rows whose logits are held
    int64_t head[2] = {}, hidden[2] = {}, logits[2] = {};     // head: of a thread, or shared
    int64_t wave = 0, table = 0;                              // forward: rows whose links are kept
    int64_t chunk = 0, slabs = 0, columns = 0, unpacked = 0;  // dhidden: chunk in words
    int64_t places = 0, step = 0;                             // dweight: along the chain of tokens
    int64_t row_at = 0, chain = 0;
    int64_t coefficients = 0;

  private:
    char* base_;
    int64_t shared_ = 0, thread_ = 0;

    static int64_t take(int64_t* end, int64_t bytes) {
        const int64_t begin = *end;
        *end += (bytes + 63) / 64 * 64;
        return begin;
    }

    // Room for `words` of each head, where they are packed on the way, and for a slab's logits.
    void take_sides(int64_t words, int64_t* heads_end) {
        for (int i = 0; i < 2; ++i) {
            const KlSide& s = side[i];
            head[i] = take(heads_end, s.packed ? 0 : words * s.padded_D * s.element);
            hidden[i] = take(&thread_, s.copied ? slab * s.padded_D * s.element : 0);
            logits[i] = take(&thread_, slab * kVocabBlock * 4);
        }
    }

    void plan_forward() {
        wave = T < kForwardWave ? T : kForwardWave;
        slab = kSlabRows;
        table = take(&shared_, wave * blocks * kKlLink * 4);
        take_sides(kVocabBlock, &thread_);
    }

    void plan_hidden() {
        const int64_t word =
            2 * side[0].padded_D * side[0].element + side[1].padded_D * side[1].element;
        chunk = kChunkBytes / word / kVocabBlock * kVocabBlock;
        if (chunk < kVocabBlock) chunk = kVocabBlock;
        if (chunk > blocks * kVocabBlock) chunk = blocks * kVocabBlock;
        slabs = (T + kWideSlabRows - 1) / kWideSlabRows;
        slabs = (slabs + threads - 1) / threads * threads;
        if (slabs > T) slabs = T;
        slab = slabs > 0 ? (T + slabs - 1) / slabs : 0;
        take_sides(chunk, &shared_);
        columns = take(&shared_, chunk * side[0].padded_D * side[0].element);
        unpacked = take(&thread_, side[0].packed ? kPanel * side[0].padded_D * side[0].element : 0);
        coefficients = take(&thread_, slab * kVocabBlock * side[0].element);
    }

    void plan_weight() {
        slab = kSlabRows;
        places = T + groups;
        step = kTokenBytes / side[0].element;
        row_at = take(&shared_, places * 4);
        chain = take(&shared_, (places + 1) * side[0].padded_D * side[0].element);
        take_sides(kTaskWords, &thread_);
        coefficients = take(&thread_, kTaskWords * kTokenBytes);
    }
};

}  // namespace
}  // namespace pe::cpu
