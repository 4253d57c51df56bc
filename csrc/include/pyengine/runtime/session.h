// Requests in, samples out: prompts are computed once, responses are drawn or scored, in steps.
//
// A request is a prompt and its samples. A sample's tokens are drawn, or given to be scored: then
// "drawing" them reports their log-probs. The first sample's sequence is the prompt's; when the
// prompt is computed the others are forked from it. Several models may compute the same tokens in
// lock step, each with its own pages; tokens are drawn from a combination of their logits.
//
// What a sample becomes depends on its request alone: not on what runs beside it, page and chunk
// sizes, preemption or threads.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pyengine/runtime/device.h"
#include "pyengine/runtime/sampling.h"
#include "pyengine/runtime/scheduler.h"

namespace pe::runtime {

struct SessionSettings {
    int32_t num_pages = 1, page_tokens = 16;
    bool share_prefixes = true;
    Limits limits{512, 512};
    std::vector<float> coefficients = {1.0f};  // of each model's logits
};

struct Request {
    std::vector<int32_t> prompt;
    Sampling sampling;
    int64_t num_samples = 1;
    // Tokens of each sample, to be scored; empty: they are drawn.
    std::vector<std::vector<int32_t>> given = {};
};

// A token that a step has added.
struct TokenEvent {
    int64_t request;
    int32_t sample;
    int64_t position;
};

struct StepResult {
    bool worked = false;  // false: nothing left to do
    // Where logits were not finite: request and sample, or -1. Then the session must be cleared.
    int64_t bad_request = -1;
    int32_t bad_sample = -1;
};

class Session {
  public:
    // On the CPU: one decoder for each coefficient, with pages of their own in equal numbers.
    Session(const SessionSettings& settings, const std::vector<DecoderWeights>& models,
            const std::vector<void*>& pools);
    // On a device with these numbers of pages and rows, and a model for each coefficient.
    Session(const SessionSettings& settings, std::unique_ptr<Device> device);

    const DecoderWeights& weights(size_t model) const { return device_->weights(model); }
    void set_weights(size_t model, const DecoderWeights& w) { device_->set_weights(model, w); }
    // Pages written under another version are not used again. Only while nothing runs.
    void set_version(uint64_t version) { blocks_.set_version(version); }

    void forget() { blocks_.forget(); }  // nothing written until now is used again
    // Empty, or why the request can never run.
    std::string refusal(int64_t longest_tokens) const { return scheduler_.refusal(longest_tokens); }
    int64_t submit(Request request);  // its handle
    StepResult step();
    void end_sample(int64_t request, int32_t sample, Finish finish);  // if it has not ended
    void clear();                                                     // drops every request
    // All of its samples have ended.
    std::vector<SampleOutput> take(int64_t request);
    const SampleOutput& output(int64_t request, int32_t sample) const;

    void collect_events(bool collect) { collects_events_ = collect; }
    std::vector<TokenEvent> take_events();

    int64_t num_models() const { return static_cast<int64_t>(device_->num_models()); }
    int64_t num_tokens() const { return num_tokens_; }      // drawn or scored since clear()
    int64_t num_finished() const { return num_finished_; }  // samples, since clear()
    int64_t num_open() const { return num_open_; }          // samples
    int64_t num_computed_rows() const { return num_computed_rows_; }  // ever, of one model
    const Scheduler& scheduler() const { return scheduler_; }
    const BlockManager& blocks() const { return blocks_; }

  private:
    struct Sample {
        int32_t sequence = -1;  // -1: not begun, or ended
        SampleOutput output;
        std::unique_ptr<LogitChanges> changes;  // null: none
    };
    struct Entry {
        int64_t handle = 0;
        Request request;
        std::vector<Sample> samples;
        int64_t prompt_sample = 0;  // whose sequence computes the prompt
        bool prompt_done = false;
        int64_t open = 0;

        int64_t limit(int64_t sample) const;  // tokens of its response
        int64_t longest() const;              // limit of all samples
        bool is_given() const { return !request.given.empty(); }
    };
    struct Place {  // of a sequence
        Entry* entry = nullptr;
        int32_t sample = 0;
    };
    struct Draw {
        Entry* entry;
        int32_t sample;
        int64_t position;  // in the response
    };

    void place(int32_t sequence, Entry& entry, int32_t sample);
    void reserve(const Entry& entry);
    void build_batch(const Step& step);
    void add_draws(const Step& step);
    void add_draw(Entry& entry, int32_t sample, int64_t position);
    StepResult draw();
    StepResult draw_slab(int64_t row, int64_t rows, size_t begin, size_t end);
    SampleArgs sample_args(size_t begin, int64_t draws, int64_t top);
    void record(const Draw& d, size_t row, int64_t top);
    void continue_samples();
    void begin_samples(Entry& entry);
    void continue_sample(Entry& entry, int32_t index);
    void continue_given(Entry& entry, int32_t index);
    void end(Entry& entry, int32_t index, Finish finish);

    const SessionSettings settings_;
    BlockManager blocks_;
    Scheduler scheduler_;
    std::unique_ptr<Device> device_;
    std::map<int64_t, std::unique_ptr<Entry>> entries_;
    std::vector<Place> places_;  // by sequence
    int64_t next_handle_ = 0, num_tokens_ = 0, num_finished_ = 0, num_open_ = 0;
    int64_t num_computed_rows_ = 0;
    bool collects_events_ = false;
    std::vector<TokenEvent> events_;

    // Of one step; kept, and reserved by the constructor and submit(), so that decoding allocates
    // nothing. First tokens of many samples may.
    StepBatch batch_;
    std::vector<Draw> draws_;
    std::vector<SampleParams> params_;
    std::vector<LogitAdjust> adjust_;
    int64_t most_changes_ = 0;  // of one sample, ever
    struct Drawn {
        std::vector<int64_t> token_ids, top_ids;
        std::vector<float> logprobs, sampling_logprobs, kept_mass, entropy, top_logprobs;
        std::vector<int32_t> status;
        void reserve(size_t draws, size_t models, size_t top);
        void resize(size_t draws, size_t models, size_t top);
    } drawn_;
};

}  // namespace pe::runtime
