// The workspace of attention_backward, in floats: scratch for each thread, and sums of query heads that different threads
// compute.
#pragma once

#include <cstdint>

#include "pyengine/kv_pages.h"

namespace pe::cpu {
namespace {  // internal linkage: see isa.h

constexpr int64_t kRowBlock = 64;     // rows or keys of one sequence
constexpr int64_t kScratchRows = 16;  // of a register tile, at most
constexpr int64_t kBlockWords = 8;    // of a block's entry in the table

struct AttentionBackwardWorkspace {
    int64_t T, S, H, K, hd, threads;

    AttentionBackwardWorkspace(int64_t T_, int64_t S_, int64_t H_, int64_t K_, int64_t head_dim,
                               int threads_)
        : T(T_), S(S_), H(H_), K(K_), hd(padded_head_dim(head_dim)), threads(threads_) {}

    int64_t blocks() const { return T / kRowBlock + S; }
    int64_t rows() const { return blocks() * kRowBlock; }
    int64_t matrix_floats() const { return rows() * hd; }    // of all rows of a tree, one head
    int64_t block_floats() const { return kRowBlock * hd; }  // one block's
    int64_t square_floats() const { return kRowBlock * kRowBlock; }
    // q, dout and k twice, v once; dq, dk, dv; lse and delta; one block's dk and dv, p and ds; scores of a tile
    int64_t thread_floats() const {
        return 10 * matrix_floats() + 2 * rows() + kBlockWords * ((blocks() + 7) / 8 * 8) +
               2 * block_floats() + 3 * square_floats() + 2 * kScratchRows * kRowBlock;
    }
    // dk and dv of each query head, where heads of one group go to different threads
    int64_t partial_floats() const { return H > K ? 2 * H * T * hd : 0; }
    int64_t total_floats() const { return threads * thread_floats() + partial_floats(); }
};

}  // namespace
}  // namespace pe::cpu
