#include "pyengine/runtime/scheduler.h"

#include <algorithm>
#include <cassert>

namespace pe::runtime {

Scheduler::Scheduler(BlockManager& blocks, Limits limits) : blocks_(blocks), limits_(limits) {
    assert(limits.max_rows >= 1 && limits.max_sequences >= 1);
    const auto most = static_cast<size_t>(std::min(limits.max_rows, limits.max_sequences));
    step_.rows.reserve(most);
    step_.copies.reserve(most);  // only the page of a sequence's first row can be another's
    running_.reserve(static_cast<size_t>(limits.max_sequences));
}

std::string Scheduler::refusal(int64_t limit_tokens) const {
    const int64_t pages = blocks_.pages_for(limit_tokens);
    if (pages <= blocks_.num_pages()) return "";
    const int64_t page_tokens = blocks_.page_tokens();
    return std::to_string(limit_tokens) + " tokens need " + std::to_string(pages) + " pages of " +
           std::to_string(page_tokens) + " tokens but the KV pool has " +
           std::to_string(blocks_.num_pages()) + " pages (" +
           std::to_string(blocks_.num_pages() * page_tokens) + " tokens)";
}

int32_t Scheduler::create(uint64_t order, uint32_t index, int64_t limit_tokens) {
    assert(refusal(limit_tokens).empty());
    if (unused_ids_.empty()) {
        unused_ids_.push_back(static_cast<int32_t>(sequences_.size()));
        sequences_.emplace_back();
        // Room for every id, so that finish() allocates nothing.
        if (unused_ids_.capacity() < sequences_.size()) unused_ids_.reserve(2 * sequences_.size());
    }
    const int32_t id = unused_ids_.back();
    unused_ids_.pop_back();
    Sequence& s = at(id);
    s.alive = true;
    s.order = order;
    s.index = index;
    s.limit = limit_tokens;
    s.match_limit = limit_tokens;
    s.computed = 0;
    s.tokens.clear();
    s.tokens.reserve(static_cast<size_t>(limit_tokens));
    s.table.pages.reserve(static_cast<size_t>(blocks_.pages_for(limit_tokens)));
    s.table.contents.reserve(s.table.pages.capacity());
    return id;
}

int32_t Scheduler::add(uint64_t order, uint32_t index, const int32_t* tokens, int64_t count,
                       int64_t limit_tokens) {
    assert(count >= 1 && count <= limit_tokens);
    const int32_t id = create(order, index, limit_tokens);
    at(id).tokens.assign(tokens, tokens + count);
    waiting_.insert(age(id));
    return id;
}

int32_t Scheduler::fork(int32_t parent, uint32_t index, int64_t limit_tokens) {
    assert(!in_step_ && is_running(parent) && to_do(parent) == 0);
    assert(num_tokens(parent) <= limit_tokens);
    const int32_t id = create(at(parent).order, index, limit_tokens);
    Sequence& s = at(id);
    s.tokens.assign(at(parent).tokens.begin(), at(parent).tokens.end());
    s.computed = at(parent).computed;
    blocks_.fork(at(parent).table, s.table);
    running_.insert(place(id), id);
    return id;
}

void Scheduler::append(int32_t sequence, int32_t token) {
    assert(!in_step_ && at(sequence).alive && num_tokens(sequence) < at(sequence).limit);
    at(sequence).tokens.push_back(token);
}

void Scheduler::finish(int32_t sequence) {
    assert(!in_step_ && at(sequence).alive);
    if (is_running(sequence)) {
        running_.erase(place(sequence));
        blocks_.release(at(sequence).table);
    } else {
        waiting_.erase(age(sequence));
    }
    at(sequence).alive = false;
    unused_ids_.push_back(sequence);
}

const Step& Scheduler::schedule() {
    assert(!in_step_);
    step_.rows.clear();
    step_.copies.clear();
    step_rows_ = 0;
    turn_ = 0;
    decoders_ = std::count_if(running_.begin(), running_.end(),
                              [this](int32_t id) { return to_do(id) == 1; });
    bool open = true, admits = true;
    while (open && step_rows_ < limits_.max_rows &&
           static_cast<int64_t>(step_.rows.size()) < limits_.max_sequences) {
        const bool runs = turn_ < running_.size();
        const bool waits =
            admits && !waiting_.empty() && !(runs && age(running_[turn_]) < *waiting_.begin());
        if (waits && room() > 0) {
            open = admit();
            continue;
        }
        if (waits) admits = false;  // passed over: its turn does not come back when room does
        if (!runs) break;
        open = serve_running();
    }
    in_step_ = !step_.rows.empty();
    return step_;
}

int64_t Scheduler::room() const {
    if (step_.rows.empty()) return std::max<int64_t>(1, limits_.max_rows - decoders_);
    const auto sequences = static_cast<int64_t>(step_.rows.size());
    if (sequences + decoders_ >= limits_.max_sequences) return 0;
    return limits_.max_rows - step_rows_ - decoders_;
}

bool Scheduler::serve_running() {
    const int32_t id = running_[turn_];
    const Sequence& s = at(id);
    const bool decodes = to_do(id) == 1;
    if (decodes) --decoders_;
    for (;;) {
        const int64_t wanted = decodes ? 1 : std::min(to_do(id), room());
        if (wanted <= 0) {
            ++turn_;
            return true;
        }
        const int64_t count =
            std::min(wanted, blocks_.reservable(s.table, s.computed) - s.computed);
        if (count > 0) {
            schedule_rows(id, count);
            ++turn_;
            return true;
        }
        if (turn_ + 1 == running_.size()) return false;
        preempt_youngest();
    }
}

bool Scheduler::admit() {
    const int32_t id = std::get<int32_t>(*waiting_.begin());
    Sequence& s = at(id);
    const int64_t limit = std::min(s.match_limit, num_tokens(id) - 1);
    s.computed = blocks_.match(s.table, s.tokens.data(), limit);
    const int64_t missing =
        blocks_.pages_for(num_tokens(id)) - static_cast<int64_t>(s.table.pages.size());
    while (missing + num_running() / kHeadroom > blocks_.num_free()) {
        if (turn_ == running_.size()) {
            blocks_.release(s.table);
            s.computed = 0;
            return false;
        }
        preempt_youngest();
    }
    s.computed = blocks_.copy_beginning(s.table, s.tokens.data(), limit, step_.copies);
    matched_tokens_ += s.computed;
    waiting_.erase(age(id));
    running_.insert(running_.begin() + static_cast<std::ptrdiff_t>(turn_), id);
    ++turn_;
    schedule_rows(id, std::min(to_do(id), room()));
    return true;
}

void Scheduler::schedule_rows(int32_t id, int64_t count) {
    Sequence& s = at(id);
    const int64_t end = s.computed + count;
    [[maybe_unused]] const bool reserved = blocks_.reserve(s.table, s.computed, end, step_.copies);
    assert(reserved);
    blocks_.register_full(s.table, s.tokens.data(), end);
    step_.rows.push_back({id, s.computed, count});
    step_rows_ += count;
}

void Scheduler::preempt_youngest() {
    const int32_t id = running_.back();
    if (to_do(id) == 1) --decoders_;
    blocks_.release(at(id).table);
    at(id).computed = 0;
    running_.pop_back();
    waiting_.insert(age(id));
    ++preemptions_;
}

void Scheduler::advance() {
    assert(in_step_ || step_.rows.empty());
    for (const StepRows& r : step_.rows) at(r.sequence).computed += r.count;
    blocks_.settle();
    in_step_ = false;
}

void Scheduler::abandon() {
    if (!in_step_) return;
    while (!running_.empty()) {
        blocks_.release(at(running_.back()).table);
        at(running_.back()).computed = 0;
        waiting_.insert(age(running_.back()));
        running_.pop_back();
    }
    blocks_.forget();
    step_.rows.clear();
    step_.copies.clear();
    in_step_ = false;
}

int64_t Scheduler::num_tokens(int32_t sequence) const {
    return static_cast<int64_t>(at(sequence).tokens.size());
}

Scheduler::Age Scheduler::age(int32_t id) const { return {at(id).order, at(id).index, id}; }

std::vector<int32_t>::iterator Scheduler::place(int32_t id) {
    return std::lower_bound(running_.begin(), running_.end(), id,
                            [this](int32_t a, int32_t b) { return age(a) < age(b); });
}

}  // namespace pe::runtime
