// One step of a session: rows, forward passes, draws.
#include <algorithm>
#include <cassert>

#include "pyengine/philox.h"
#include "pyengine/runtime/session.h"

namespace pe::runtime {
namespace {

template <typename T>
VectorView view_of(std::vector<T>& v, DType dtype) {
    return {v.data(), dtype, static_cast<int64_t>(v.size())};
}

}  // namespace

Session::Session(const SessionSettings& settings, const std::vector<DecoderWeights>& models,
                 const std::vector<void*>& pools)
    : Session(settings,
              make_cpu_device({settings.num_pages, settings.page_tokens, settings.limits.max_rows},
                              models, pools)) {}

Session::Session(const SessionSettings& settings, std::unique_ptr<Device> device)
    : settings_(settings),
      blocks_(settings.num_pages, settings.page_tokens, settings.share_prefixes),
      scheduler_(blocks_, settings.limits),
      device_(std::move(device)) {
    assert(device_->num_models() == settings.coefficients.size());
    const auto rows = static_cast<size_t>(settings.limits.max_rows);
    const size_t sequences = std::min(rows, static_cast<size_t>(settings.limits.max_sequences));
    batch_.token_ids.reserve(rows);
    batch_.positions.reserve(rows);
    batch_.slots.reserve(rows);
    batch_.wanted.reserve(rows);
    batch_.first_positions.reserve(sequences);
    batch_.cu_seqlens.reserve(sequences + 1);
    draws_.reserve(rows);
    params_.reserve(rows);
}

StepResult Session::step() {
    const Step& step = scheduler_.schedule();
    if (step.rows.empty()) return {};
    for (const PageCopy& copy : step.copies) device_->copy_page(copy.from, copy.to);
    build_batch(step);
    add_draws(step);
    device_->forward(batch_);
    num_computed_rows_ += batch_.rows();
    const StepResult result = draw();
    if (result.bad_request >= 0) {
        scheduler_.abandon();
        return result;
    }
    scheduler_.advance();
    continue_samples();
    return result;
}

void Session::build_batch(const Step& step) {
    StepBatch& b = batch_;
    b.token_ids.clear();
    b.positions.clear();
    b.slots.clear();
    b.first_positions.clear();
    b.cu_seqlens.assign(1, 0);
    b.table_width = 0;
    for (const StepRows& r : step.rows) {
        const auto pages = static_cast<int64_t>(scheduler_.table(r.sequence).pages.size());
        b.table_width = std::max(b.table_width, pages);
    }
    b.block_tables.assign(step.rows.size() * static_cast<size_t>(b.table_width), -1);
    const int64_t page_tokens = settings_.page_tokens;
    for (size_t i = 0; i < step.rows.size(); ++i) {
        const StepRows& r = step.rows[i];
        const std::vector<int32_t>& pages = scheduler_.table(r.sequence).pages;
        std::copy(pages.begin(), pages.end(),
                  b.block_tables.begin() + static_cast<int64_t>(i) * b.table_width);
        const int32_t* tokens = scheduler_.tokens(r.sequence);
        for (int64_t p = r.first; p < r.first + r.count; ++p) {
            b.token_ids.push_back(tokens[p]);
            b.positions.push_back(p);
            const int64_t page = pages[static_cast<size_t>(p / page_tokens)];
            b.slots.push_back(page * page_tokens + p % page_tokens);
        }
        b.first_positions.push_back(static_cast<int32_t>(r.first));
        b.cu_seqlens.push_back(static_cast<int32_t>(b.token_ids.size()));
    }
}

// The last row of a prompt draws a first token for each sample, that of a drawn response its next
// token; each row of a given response scores the token after it.
void Session::add_draws(const Step& step) {
    draws_.clear();
    params_.clear();
    adjust_.clear();
    batch_.wanted.clear();
    for (size_t i = 0; i < step.rows.size(); ++i) {
        const StepRows& r = step.rows[i];
        const auto [entry, sample] = places_[static_cast<size_t>(r.sequence)];
        const auto P = static_cast<int64_t>(entry->request.prompt.size());
        const int64_t row_of_first = batch_.cu_seqlens[i] - r.first;
        const bool reaches_end = r.first + r.count == scheduler_.num_tokens(r.sequence);
        if (!entry->prompt_done) {
            if (!reaches_end) continue;
            batch_.wanted.push_back(static_cast<int32_t>(row_of_first + P - 1));
            for (size_t k = 0; k < entry->samples.size(); ++k) {
                if (entry->samples[k].output.finish != Finish::kNone) continue;
                add_draw(*entry, static_cast<int32_t>(k), 0);
            }
            continue;
        }
        const int64_t known = entry->samples[static_cast<size_t>(sample)].output.size();
        if (!entry->is_given()) {
            if (!reaches_end) continue;
            batch_.wanted.push_back(static_cast<int32_t>(row_of_first + r.first + r.count - 1));
            add_draw(*entry, sample, known);
            continue;
        }
        const int64_t first = std::max(r.first, P - 1 + known);
        for (int64_t p = first; p < r.first + r.count; ++p) {
            batch_.wanted.push_back(static_cast<int32_t>(row_of_first + p));
            add_draw(*entry, sample, p - P + 1);
        }
    }
}

void Session::add_draw(Entry& entry, int32_t sample, int64_t position) {
    const Sampling& s = entry.request.sampling;
    SampleParams p{.temperature = s.temperature,
                   .top_p = s.top_p,
                   .min_p = s.min_p,
                   .top_k = s.top_k,
                   .uniform = sampling_uniform(s.seed, s.request_id, static_cast<uint32_t>(sample),
                                               static_cast<uint32_t>(position)),
                   .row = batch_.num_wanted() - 1};
    const auto k = static_cast<size_t>(sample);
    if (entry.is_given()) p.forced = entry.request.given[k][static_cast<size_t>(position)];
    p.adjust_begin = static_cast<int64_t>(adjust_.size());
    if (LogitChanges* changes = entry.samples[k].changes.get(); changes != nullptr) {
        changes->write(position, adjust_);
        // What is given is known at once: the next position may be in the same step.
        if (entry.is_given()) changes->add(static_cast<int32_t>(p.forced));
    }
    p.adjust_end = static_cast<int64_t>(adjust_.size());
    params_.push_back(p);
    draws_.push_back({&entry, sample, position});
}

void Session::Drawn::reserve(size_t draws, size_t models, size_t top) {
    token_ids.reserve(draws);
    logprobs.reserve(draws * models);
    sampling_logprobs.reserve(draws);
    kept_mass.reserve(draws);
    entropy.reserve(draws);
    top_ids.reserve(draws * top);
    top_logprobs.reserve(draws * top);
    status.reserve(draws);
}

void Session::Drawn::resize(size_t draws, size_t models, size_t top) {
    token_ids.resize(draws);
    logprobs.resize(draws * models);
    sampling_logprobs.resize(draws);
    kept_mass.resize(draws);
    entropy.resize(draws);
    top_ids.resize(draws * top);
    top_logprobs.resize(draws * top);
    status.resize(draws);
}

// Logits exist for a slab of rows at a time.
StepResult Session::draw() {
    const int64_t R = batch_.num_wanted(), slab = device_->slab_rows();
    size_t begin = 0;
    for (int64_t row = 0; row < R; row += slab) {
        const int64_t rows = std::min(slab, R - row);
        size_t end = begin;
        while (end < draws_.size() && params_[end].row < row + rows) params_[end++].row -= row;
        const StepResult result = draw_slab(row, rows, begin, end);
        if (result.bad_request >= 0) return result;
        begin = end;
    }
    return {.worked = true};
}

StepResult Session::draw_slab(int64_t row, int64_t rows, size_t begin, size_t end) {
    int64_t top = 0;
    for (size_t i = begin; i < end; ++i)
        top = std::max(top, draws_[i].entry->request.sampling.top_logprobs);
    drawn_.resize(end - begin, device_->num_models(), static_cast<size_t>(top));
    device_->draw(row, rows, sample_args(begin, static_cast<int64_t>(end - begin), top));
    for (size_t i = begin; i < end; ++i) {
        if (drawn_.status[i - begin] != 0) return {true, draws_[i].entry->handle, draws_[i].sample};
    }
    for (size_t i = begin; i < end; ++i) record(draws_[i], i - begin, top);
    return {.worked = true};
}

// For `draws` draws from `begin` on; logits and workspace are the device's to add.
SampleArgs Session::sample_args(size_t begin, int64_t draws, int64_t top) {
    const int64_t models = num_models();
    SampleArgs args{.coefficients = settings_.coefficients.data(),
                    .models = models,
                    .params = params_.data() + begin,
                    .draws = draws,
                    .adjust = adjust_.data(),
                    .token_ids = view_of(drawn_.token_ids, DType::kI64),
                    .logprobs = {drawn_.logprobs.data(), DType::kF32, draws, models, models},
                    .sampling_logprobs = view_of(drawn_.sampling_logprobs, DType::kF32),
                    .kept_mass = view_of(drawn_.kept_mass, DType::kF32),
                    .entropy = {},
                    .top_ids = {},
                    .top_logprobs = {},
                    .status = view_of(drawn_.status, DType::kI32)};
    for (int64_t i = 0; i < draws; ++i) {
        if (!draws_[begin + static_cast<size_t>(i)].entry->request.sampling.entropy) continue;
        args.entropy = view_of(drawn_.entropy, DType::kF32);
        break;
    }
    if (top > 0) {
        args.top_ids = {drawn_.top_ids.data(), DType::kI64, draws, top, top};
        args.top_logprobs = {drawn_.top_logprobs.data(), DType::kF32, draws, top, top};
    }
    return args;
}

void Session::record(const Draw& d, size_t row, int64_t top) {
    Sample& sample = d.entry->samples[static_cast<size_t>(d.sample)];
    const Sampling& sampling = d.entry->request.sampling;
    SampleOutput& out = sample.output;
    assert(out.size() == d.position);
    const auto token = static_cast<int32_t>(drawn_.token_ids[row]);
    const size_t M = device_->num_models();
    out.token_ids.push_back(token);
    for (size_t m = 0; m < M; ++m) out.logprobs.push_back(drawn_.logprobs[row * M + m]);
    out.sampling_logprobs.push_back(drawn_.sampling_logprobs[row]);
    out.kept_mass.push_back(drawn_.kept_mass[row]);
    if (sampling.entropy) out.entropy.push_back(drawn_.entropy[row]);
    for (int64_t i = 0; i < sampling.top_logprobs; ++i) {
        const size_t at = row * static_cast<size_t>(top) + static_cast<size_t>(i);
        out.top_ids.push_back(drawn_.top_ids[at]);
        out.top_logprobs.push_back(drawn_.top_logprobs[at]);
    }
    if (sample.changes && !d.entry->is_given()) sample.changes->add(token);
    if (collects_events_) events_.push_back({d.entry->handle, d.sample, d.position});
    ++num_tokens_;
}

}  // namespace pe::runtime
