#include "pyengine/runtime/session.h"

#include <algorithm>
#include <cassert>

namespace pe::runtime {

int64_t Session::Entry::limit(int64_t sample) const {
    return is_given() ? static_cast<int64_t>(request.given[static_cast<size_t>(sample)].size())
                      : request.sampling.max_tokens;
}

int64_t Session::Entry::longest() const {
    int64_t most = 0;
    for (size_t i = 0; i < samples.size(); ++i)
        most = std::max(most, limit(static_cast<int64_t>(i)));
    return most;
}

void Session::place(int32_t sequence, Entry& entry, int32_t sample) {
    const auto i = static_cast<size_t>(sequence);
    if (i >= places_.size()) places_.resize(i + 1);
    places_[i] = {&entry, sample};
    entry.samples[static_cast<size_t>(sample)].sequence = sequence;
}

int64_t Session::submit(Request request) {
    auto entry = std::make_unique<Entry>();
    Entry& e = *entry;
    e.handle = next_handle_++;
    e.request = std::move(request);
    const Request& r = e.request;
    assert(!r.prompt.empty() &&
           (!e.is_given() || r.num_samples == static_cast<int64_t>(r.given.size())));
    e.samples.resize(static_cast<size_t>(r.num_samples));
    const Sampling& sampling = r.sampling;
    for (size_t i = 0; i < e.samples.size(); ++i) {
        Sample& sample = e.samples[i];
        const int64_t limit = e.limit(static_cast<int64_t>(i));
        sample.output.reserve(sampling, limit, num_models());
        if (sampling.changes_logits()) {
            sample.changes =
                std::make_unique<LogitChanges>(sampling, r.prompt, limit, weights(0).vocab_size);
        }
        if (limit == 0) {  // nothing to score
            sample.output.finish = Finish::kLength;
            ++num_finished_;
            continue;
        }
        if (e.open++ == 0) e.prompt_sample = static_cast<int64_t>(i);
    }
    num_open_ += e.open;
    if (e.open > 0) {
        const auto P = static_cast<int64_t>(r.prompt.size());
        reserve(e);
        const int32_t sequence =
            scheduler_.add(static_cast<uint64_t>(e.handle), static_cast<uint32_t>(e.prompt_sample),
                           r.prompt.data(), P, P + e.longest());
        place(sequence, e, static_cast<int32_t>(e.prompt_sample));
    }
    const int64_t handle = e.handle;
    entries_.emplace(handle, std::move(entry));
    return handle;
}

// So that steps which only decode allocate nothing.
void Session::reserve(const Entry& entry) {
    const auto P = static_cast<int64_t>(entry.request.prompt.size());
    const int64_t sequences = std::min(settings_.limits.max_rows, settings_.limits.max_sequences);
    const int64_t pages = blocks_.pages_for(P + entry.longest());
    batch_.block_tables.reserve(static_cast<size_t>(sequences * pages));
    int64_t changes = 0;
    for (const Sample& sample : entry.samples) {
        if (sample.changes) changes = std::max(changes, sample.changes->most());
    }
    most_changes_ = std::max(most_changes_, changes);
    adjust_.reserve(static_cast<size_t>(std::min(sequences, num_open_) * most_changes_));
    drawn_.reserve(static_cast<size_t>(device_->slab_rows()), device_->num_models(),
                   static_cast<size_t>(entry.request.sampling.top_logprobs));
}

void Session::end_sample(int64_t request, int32_t sample, Finish finish) {
    Entry& entry = *entries_.at(request);
    if (entry.samples[static_cast<size_t>(sample)].output.finish != Finish::kNone) return;
    // A prompt that others wait for goes on under the name of one of them.
    if (!entry.prompt_done && sample == entry.prompt_sample && entry.open > 1) {
        Sample& from = entry.samples[static_cast<size_t>(sample)];
        for (size_t i = 0; i < entry.samples.size(); ++i) {
            if (static_cast<int32_t>(i) == sample ||
                entry.samples[i].output.finish != Finish::kNone)
                continue;
            entry.prompt_sample = static_cast<int64_t>(i);
            const int32_t sequence = from.sequence;
            from.sequence = -1;
            place(sequence, entry, static_cast<int32_t>(i));
            break;
        }
    }
    end(entry, sample, finish);
}

void Session::end(Entry& entry, int32_t index, Finish finish) {
    Sample& sample = entry.samples[static_cast<size_t>(index)];
    sample.output.finish = finish;
    if (sample.sequence >= 0) {
        scheduler_.finish(sample.sequence);
        places_[static_cast<size_t>(sample.sequence)] = {};
        sample.sequence = -1;
    }
    --entry.open;
    --num_open_;
    ++num_finished_;
}

void Session::clear() {
    scheduler_.abandon();
    for (auto& [handle, entry] : entries_) {
        for (Sample& sample : entry->samples) {
            if (sample.sequence >= 0) scheduler_.finish(sample.sequence);
        }
    }
    entries_.clear();
    places_.clear();
    events_.clear();
    num_tokens_ = num_finished_ = num_open_ = 0;
}

std::vector<SampleOutput> Session::take(int64_t request) {
    const auto place = entries_.find(request);
    assert(place != entries_.end() && place->second->open == 0);
    std::vector<SampleOutput> outputs;
    for (Sample& sample : place->second->samples) outputs.push_back(std::move(sample.output));
    entries_.erase(place);
    return outputs;
}

const SampleOutput& Session::output(int64_t request, int32_t sample) const {
    return entries_.at(request)->samples[static_cast<size_t>(sample)].output;
}

std::vector<TokenEvent> Session::take_events() {
    std::vector<TokenEvent> events;
    events.swap(events_);
    return events;
}

// After a step: what was drawn or given is appended, and what has ended gives its pages back.
void Session::continue_samples() {
    for (const Draw& d : draws_) {
        Entry& entry = *d.entry;
        if (d.position == 0) {  // of all samples at once
            if (!entry.prompt_done) begin_samples(entry);
        } else if (!entry.is_given()) {
            continue_sample(entry, d.sample);
        } else {
            continue_given(entry, d.sample);
        }
    }
}

// Rows that have been scored may come from the cache if the sequence has to start again, no others.
void Session::continue_given(Entry& entry, int32_t index) {
    const Sample& sample = entry.samples[static_cast<size_t>(index)];
    if (sample.output.finish != Finish::kNone) return;
    const int64_t scored = sample.output.size();
    if (scored == entry.limit(index)) return end(entry, index, Finish::kLength);
    const auto P = static_cast<int64_t>(entry.request.prompt.size());
    scheduler_.limit_match(sample.sequence, P - 1 + scored);
}

// Every open sample has its first token.
void Session::begin_samples(Entry& entry) {
    entry.prompt_done = true;
    const auto parent = static_cast<int32_t>(entry.prompt_sample);
    const int32_t parent_sequence = entry.samples[static_cast<size_t>(parent)].sequence;
    const auto P = static_cast<int64_t>(entry.request.prompt.size());
    const auto ended = [&](int32_t i) {
        const Sample& s = entry.samples[static_cast<size_t>(i)];
        return s.output.size() == entry.limit(i) ||
               (!entry.is_given() && entry.request.sampling.stops_at(s.output.token_ids.back()));
    };
    for (int32_t i = 0; i < static_cast<int32_t>(entry.samples.size()); ++i) {
        const bool open = entry.samples[static_cast<size_t>(i)].output.finish == Finish::kNone;
        if (i == parent || !open || ended(i)) continue;
        const int32_t child =
            scheduler_.fork(parent_sequence, static_cast<uint32_t>(i), P + entry.limit(i));
        place(child, entry, i);
    }
    for (int32_t i = 0; i < static_cast<int32_t>(entry.samples.size()); ++i) {
        if (entry.samples[static_cast<size_t>(i)].output.finish == Finish::kNone)
            continue_sample(entry, i);
    }
}

void Session::continue_sample(Entry& entry, int32_t index) {
    const Sample& sample = entry.samples[static_cast<size_t>(index)];
    const int32_t token = sample.output.token_ids.back();
    if (!entry.is_given() && entry.request.sampling.stops_at(token)) {
        return end(entry, index, Finish::kStop);
    }
    if (sample.output.size() == entry.limit(index)) return end(entry, index, Finish::kLength);
    if (!entry.is_given()) return scheduler_.append(sample.sequence, token);
    // All but the last: nobody needs what follows that.
    const std::vector<int32_t>& given = entry.request.given[static_cast<size_t>(index)];
    for (size_t i = 0; i + 1 < given.size(); ++i) scheduler_.append(sample.sequence, given[i]);
    continue_given(entry, index);
}

}  // namespace pe::runtime
