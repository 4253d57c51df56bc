// Which rows of which sequences a step computes: continuous batching, chunked prefill, preemption.
//
// A sequence has tokens, of which the first `computed` have their KV in its pages; rows
// [computed, tokens) are to do. It waits (without pages) or runs (with pages, kept from step to
// step). schedule() goes once through all of them, oldest first:
// - A running sequence with exactly one row to do gets it, while there is room at all.
// - One with more gets what max_rows leaves when those rows are set aside, as far as there are
//   pages. The oldest sequence with work gets one row at least.
// - A waiting one starts when there are free pages for all its tokens, and one more for every
//   kHeadroom running sequences. What is cached of its tokens, all but the last, is not computed;
//   the page where they part from what is cached begins as a copy.
// - Where pages are missing the youngest running sequence is preempted, if it is younger than the
//   one that asks: it gives its pages back, waits, and computes its tokens again later. When
//   nobody younger runs, the step is complete.
// Whoever is served later is younger. So a sequence with rows in the step is not preempted in it,
// and its pages can be matched by those after it as soon as its rows are scheduled: in every layer
// a model writes the KV of all rows before any row attends to it.
//
// Progress: the oldest of all has rows in every step in which it has work. It can preempt all
// others; then all pages but its own are free, none of its own is shared (no copy is needed), and
// refusal() has let it in only if it fits alone. A sequence that has run out of tokens keeps its
// age and, unless preempted, its pages: append to it, fork it or finish it before the next step.
//
// Not thread-safe. Between schedule() and advance() only add() and the const functions may be
// called. Decoding allocates no memory with up to max_sequences running sequences; add(), fork(),
// starting and preempting do.
#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "pyengine/runtime/block_manager.h"

namespace pe::runtime {

struct Limits {
    int64_t max_rows;       // in one step, >= 1
    int64_t max_sequences;  // with rows in one step, >= 1
};

struct StepRows {
    int32_t sequence;
    int64_t first, count;  // positions [first, first + count) are computed in this step
};

struct Step {
    std::vector<StepRows> rows;    // oldest sequence first
    std::vector<PageCopy> copies;  // to be done in this order, before any row's KV is written
};

class Scheduler {
  public:
    static constexpr int64_t kHeadroom = 4;

    Scheduler(BlockManager& blocks, Limits limits);

    // Empty, or the arithmetic why a sequence of up to `limit_tokens` tokens can never run.
    std::string refusal(int64_t limit_tokens) const;

    // A waiting sequence of count >= 1 tokens, not refused. The smaller (order, index), the older.
    int32_t add(uint64_t order, uint32_t index, const int32_t* tokens, int64_t count,
                int64_t limit_tokens);
    // A running sequence with parent's tokens and pages; parent runs and has computed them all.
    int32_t fork(int32_t parent, uint32_t index, int64_t limit_tokens);
    void append(int32_t sequence, int32_t token);  // sampled or given: one more to compute
    // Of what is cached at most its first `tokens` are taken over when it starts again: the rows after them are wanted.
    void limit_match(int32_t sequence, int64_t tokens) { at(sequence).match_limit = tokens; }
    void finish(int32_t sequence);  // done or cancelled; the id may come again

    // Valid until the next call. No rows: nothing to do until a token is appended, or a sequence
    // without work, which keeps its pages, is finished. Rows that end at num_tokens give the logits
    // of the next token.
    const Step& schedule();
    void advance();  // the step's rows have been computed
    // They have not, or who knows which: all sequences start over, nothing cached is matched.
    void abandon();

    int64_t num_tokens(int32_t sequence) const;
    int64_t num_computed(int32_t sequence) const { return at(sequence).computed; }
    const int32_t* tokens(int32_t sequence) const { return at(sequence).tokens.data(); }
    const BlockManager::Table& table(int32_t sequence) const { return at(sequence).table; }
    bool is_running(int32_t sequence) const { return !at(sequence).table.pages.empty(); }
    int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
    int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
    int64_t num_preemptions() const { return preemptions_; }
    int64_t num_matched_tokens() const { return matched_tokens_; }  // not computed but cached

  private:
    using Age = std::tuple<uint64_t, uint32_t, int32_t>;  // order, index, id
    struct Sequence {
        bool alive = false;
        uint64_t order = 0;
        uint32_t index = 0;
        int64_t computed = 0, limit = 0, match_limit = 0;
        std::vector<int32_t> tokens;
        BlockManager::Table table;
    };

    Sequence& at(int32_t id) { return sequences_[static_cast<size_t>(id)]; }
    const Sequence& at(int32_t id) const { return sequences_[static_cast<size_t>(id)]; }
    int64_t to_do(int32_t id) const { return num_tokens(id) - at(id).computed; }
    int32_t create(uint64_t order, uint32_t index, int64_t limit_tokens);
    Age age(int32_t id) const;
    std::vector<int32_t>::iterator place(int32_t id);  // in running_

    int64_t room() const;  // rows for a prefill in the step as it stands
    bool serve_running();  // running_[turn_]; false: the step is complete
    bool admit();          // the oldest waiting one; false: the step is complete
    void preempt_youngest();
    void schedule_rows(int32_t id, int64_t count);

    BlockManager& blocks_;
    const Limits limits_;
    std::deque<Sequence> sequences_;  // by id; references to elements stay valid
    std::vector<int32_t> unused_ids_;
    std::vector<int32_t> running_;  // oldest first
    std::set<Age> waiting_;
    Step step_;
    int64_t step_rows_ = 0;  // rows in step_
    int64_t decoders_ = 0;   // from running_[turn_] on: sequences with one row to do
    size_t turn_ = 0;
    bool in_step_ = false;
    int64_t preemptions_ = 0, matched_tokens_ = 0;
};

}  // namespace pe::runtime
