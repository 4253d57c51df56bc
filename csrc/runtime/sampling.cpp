#include "pyengine/runtime/sampling.h"

#include <algorithm>
#include <limits>

namespace pe::runtime {

bool Sampling::stops_at(int32_t token) const {
    return std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
}

bool Sampling::has_penalties() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
}

bool Sampling::changes_logits() const {
    return has_penalties() || !logit_bias.empty() || (min_tokens > 0 && !stop_ids.empty());
}

LogitChanges::LogitChanges(const Sampling& sampling, const std::vector<int32_t>& prompt,
                           int64_t tokens, int64_t V)
    : sampling_(&sampling) {
    most_ = std::ssize(sampling.logit_bias) + std::ssize(sampling.stop_ids);
    if (sampling.has_penalties()) most_ += std::ssize(prompt) + tokens;
    most_ = std::min(most_, V);
    words_.reserve(static_cast<size_t>(most_));
    for (const auto& [id, bias] : sampling.logit_bias) word(id).bias = bias;
    if (sampling.min_tokens > 0) {
        for (const int32_t id : sampling.stop_ids) word(id).stops = true;
    }
    if (sampling.repetition_penalty != 1.0f) {
        for (const int32_t id : prompt) word(id).seen = true;
    }
}

LogitChanges::Word& LogitChanges::word(int32_t id) {
    const auto place = std::lower_bound(words_.begin(), words_.end(), id,
                                        [](const Word& w, int32_t x) { return w.id < x; });
    if (place != words_.end() && place->id == id) return *place;
    return *words_.insert(place, Word{.id = id});
}

void LogitChanges::add(int32_t token) {
    if (!sampling_->has_penalties()) return;
    Word& w = word(token);
    w.seen = true;
    ++w.count;
}

void LogitChanges::write(int64_t position, std::vector<LogitAdjust>& out) const {
    const Sampling& s = *sampling_;
    const bool may_stop = position >= s.min_tokens;
    for (const Word& w : words_) {
        if (!w.seen && w.bias == 0.0f && (may_stop || !w.stops)) continue;
        LogitAdjust change{.id = w.id, .bias = w.bias};
        if (w.seen) change.repetition = s.repetition_penalty;
        if (w.count > 0) {
            change.subtract =
                s.presence_penalty + s.frequency_penalty * static_cast<float>(w.count);
        }
        if (w.stops && !may_stop) change.bias = -std::numeric_limits<float>::infinity();
        out.push_back(change);
    }
}

void SampleOutput::reserve(const Sampling& sampling, int64_t tokens, int64_t models) {
    const auto n = static_cast<size_t>(tokens);
    token_ids.reserve(n);
    logprobs.reserve(n * static_cast<size_t>(models));
    sampling_logprobs.reserve(n);
    kept_mass.reserve(n);
    if (sampling.entropy) entropy.reserve(n);
    top_ids.reserve(n * static_cast<size_t>(sampling.top_logprobs));
    top_logprobs.reserve(n * static_cast<size_t>(sampling.top_logprobs));
}

}  // namespace pe::runtime
