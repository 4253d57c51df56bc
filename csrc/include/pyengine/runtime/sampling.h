// What a request asks for, and what comes back: settings, changes of logits, outputs of a sample.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "pyengine/ops/sample.h"

namespace pe::runtime {

struct Sampling {
    double temperature = 1.0, top_p = 1.0, min_p = 0.0;
    int64_t top_k = 0;
    float repetition_penalty = 1.0f, presence_penalty = 0.0f, frequency_penalty = 0.0f;
    std::vector<std::pair<int32_t, float>> logit_bias = {};  // ids are unique
    std::vector<int32_t> stop_ids = {};                      // end a response
    int64_t max_tokens = 1, min_tokens = 0;  // before min_tokens no stop id can be drawn
    uint64_t seed = 0, request_id = 0;       // with sample and position the key of a draw
    int64_t top_logprobs = 0;
    bool entropy = false;

    bool stops_at(int32_t token) const;
    bool has_penalties() const;
    bool changes_logits() const;  // anything but temperature and truncation
};

// The changes of single words' logits in one sample: penalties, biases, stop ids before min_tokens.
class LogitChanges {
  public:
    // Of a response of up to `tokens` tokens over V words.
    LogitChanges(const Sampling& sampling, const std::vector<int32_t>& prompt, int64_t tokens,
                 int64_t V);

    int64_t most() const { return most_; }  // that write() may append

    void add(int32_t token);  // of the response
    // Appends them to `out`, ids ascending, for the token at `position` of the response.
    void write(int64_t position, std::vector<LogitAdjust>& out) const;

  private:
    struct Word {
        int32_t id;
        bool seen = false;  // in prompt or response
        bool stops = false;
        int32_t count = 0;  // in the response
        float bias = 0.0f;
    };
    Word& word(int32_t id);

    const Sampling* sampling_;
    int64_t most_;
    std::vector<Word> words_;  // ids ascending
};

enum class Finish : int { kNone, kStop, kLength, kAbort };

// One sample's tokens and what is known of each. M models.
struct SampleOutput {
    std::vector<int32_t> token_ids;        // (R,)
    std::vector<float> logprobs;           // (R, M) raw
    std::vector<float> sampling_logprobs;  // (R,)
    std::vector<float> kept_mass;          // (R,)
    std::vector<float> entropy;            // (R,) if asked for
    std::vector<int64_t> top_ids;          // (R, k) if asked for
    std::vector<float> top_logprobs;       // (R, k)
    Finish finish = Finish::kNone;

    int64_t size() const { return static_cast<int64_t>(token_ids.size()); }
    void reserve(const Sampling& sampling, int64_t tokens, int64_t models);
};

}  // namespace pe::runtime
