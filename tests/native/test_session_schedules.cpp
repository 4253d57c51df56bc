// Random requests in random sessions, cancelled at random moments: each must become what it becomes
// alone.
#include "tiny_decoder.h"

namespace native {
namespace {

using namespace pe::runtime;

struct Tally {
    int64_t sessions = 0, requests = 0, steps = 0, tokens = 0, cancelled = 0, unstarted = 0,
            handed_on = 0, cleared = 0, preempted = 0, copied = 0, matched = 0, evicted = 0;
    void print(const char* isa) const {
        const auto n = [](int64_t x) { return static_cast<long long>(x); };
        printf(
            "    %s: %lld sessions, requests %lld, steps %lld, tokens %lld, cancelled %lld "
            "(%lld before a step, %lld prompts handed on), cleared %lld, preempted %lld, pages "
            "copied %lld, evicted %lld, tokens matched %lld\n",
            isa, n(sessions), n(requests), n(steps), n(tokens), n(cancelled), n(unstarted),
            n(handed_on), n(cleared), n(preempted), n(copied), n(evicted), n(matched));
    }
};

// One session over one tiny decoder, with requests that come and are cancelled at random moments.
class Schedule {
  public:
    Schedule(Rng& rng, const Models& models, Tally& tally)
        : rng_(rng),
          models_(models),
          tally_(tally),
          settings_(random_settings()),
          rig_(models, settings_),
          stem_(random_tokens(rng, kPrompt)),
          threaded_(one_in(4)) {
        for (int64_t n = 3 + rng.below(8); n > 0; --n) {
            // Again the same: it finds in the cache what it may not take over, rows to be scored.
            const bool again = !live_.empty() && one_in(4);
            live_.push_back({again ? Request(live_.back().request) : random_request(), {}});
        }
        ++tally_.sessions;
        tally_.requests += static_cast<int64_t>(live_.size());
    }

    void run() {
        if (rng_.below(4) == 0) {
            run_some(rng_.below(40));
            rig_->clear();
            rig_.check_idle("cleared");
            CHECK(rig_->num_tokens() == 0 && rig_->num_finished() == 0, "cleared");
            for (Live& l : live_) l = {l.request, {}};
            ++tally_.cleared;
        }
        run_some(100000);
        rig_.check_idle("random schedule");
        for (const Live& l : live_) check(l);
        tally_.preempted += rig_->scheduler().num_preemptions();
        tally_.matched += rig_->scheduler().num_matched_tokens();
        tally_.copied += rig_->blocks().counts().copied;
        tally_.evicted += rig_->blocks().counts().evicted;
    }

  private:
    static constexpr int64_t kPrompt = 60, kResponse = 40;

    struct Live {
        Request request;
        std::vector<SampleOutput> outputs;  // once it was taken
        int64_t handle = -1;                // once it was submitted
    };

    template <typename T>
    T pick(std::initializer_list<T> values) {
        return values.begin()[rng_.below(static_cast<int64_t>(values.size()))];
    }
    bool one_in(int64_t n) { return rng_.below(n) == 0; }

    SessionSettings random_settings() {
        const int32_t page_tokens = pick({16, 32, 64});
        const int64_t fewest = (kPrompt + kResponse + page_tokens - 1) / page_tokens;
        const int64_t pages = fewest + rng_.below(one_in(2) ? 3 : 5 * fewest);
        return {.num_pages = static_cast<int32_t>(pages),
                .page_tokens = page_tokens,
                .share_prefixes = !one_in(4),
                .limits = {pick<int64_t>({1, 3, 8, 17, 64, 200}), pick<int64_t>({1, 4, 16, 200})},
                .coefficients = models_.size() == 1 ? std::vector<float>{1.0f}
                                                    : std::vector<float>{1.25f, -0.5f}};
    }

    Request random_request() {
        Request r;
        const int64_t shared = one_in(3) ? 0 : rng_.below(kPrompt);
        r.prompt.assign(stem_.begin(), stem_.begin() + shared);
        for (const int32_t t : random_tokens(rng_, 1 + rng_.below(kPrompt - shared)))
            r.prompt.push_back(t);
        r.num_samples = 1 + rng_.below(4);
        Sampling& s = r.sampling;
        s.temperature = pick({0.0, 0.7, 1.0, 1.0, 1.8});
        s.top_p = pick({1.0, 0.9, 0.5});
        s.min_p = pick({0.0, 0.0, 0.05});
        s.top_k = pick<int64_t>({0, 0, 5, 40});
        s.repetition_penalty = pick({1.0f, 1.0f, 1.3f});
        s.presence_penalty = pick({0.0f, 0.0f, 0.4f});
        s.frequency_penalty = pick({0.0f, 0.0f, 0.2f});
        if (one_in(3)) s.logit_bias = {{7, 2.0f}, {123, -3.0f}, {299, 1.0f}};
        if (one_in(2)) {
            for (int32_t id = static_cast<int32_t>(rng_.below(20)); id < 300; id += 20)
                s.stop_ids.push_back(id);
        }
        s.max_tokens = 1 + rng_.below(kResponse);
        s.min_tokens = one_in(2) ? rng_.below(s.max_tokens + 1) : 0;
        s.seed = rng_.next();
        s.request_id = rng_.next();
        s.top_logprobs = pick<int64_t>({0, 0, 3, 5});
        s.entropy = one_in(3);
        for (int64_t i = one_in(3) ? r.num_samples : 0; i > 0; --i) {
            const int64_t length = one_in(5) ? 0 : rng_.below(kResponse + 1);
            r.given.push_back(random_tokens(rng_, length));
            if (one_in(2)) r.given.back() = r.given.front();
        }
        return r;
    }

    void run_some(int64_t steps) {
        for (int64_t i = 0; i < steps; ++i) {
            if (threaded_) pe::set_num_threads(static_cast<int>(1 + rng_.below(2)));
            bool left = false;
            for (Live& l : live_) {
                if (l.handle < 0 && one_in(3)) submit(l);
                left = left || l.handle < 0;
            }
            if (one_in(15)) cancel();
            const StepResult result = rig_->step();
            CHECK(result.bad_request < 0, "random schedule: not finite");
            ++tally_.steps;
            for (Live& l : live_) {
                if (l.handle >= 0 && l.outputs.empty() && is_done(l) && one_in(2))
                    l.outputs = rig_->take(l.handle);
            }
            if (!result.worked && !left) break;
            CHECK(i < 99999, "random schedule: does not end");
        }
        pe::set_num_threads(1);
    }

    void submit(Live& l) {
        l.handle = rig_->submit(l.request);
        if (one_in(12)) cancel_sample(l, 0);
        if (one_in(12)) cancel_sample(l, rng_.below(l.request.num_samples));
    }

    bool is_open(const Live& l, int64_t sample) {
        return rig_->output(l.handle, static_cast<int32_t>(sample)).finish == Finish::kNone;
    }
    bool is_done(const Live& l) {
        for (int64_t i = 0; i < l.request.num_samples; ++i) {
            if (is_open(l, i)) return false;
        }
        return true;
    }

    void cancel() {
        Live& l = live_[static_cast<size_t>(rng_.below(static_cast<int64_t>(live_.size())))];
        if (l.handle < 0 || !l.outputs.empty()) return;
        // The first that is open: of a prompt in the making the sample that makes it.
        for (int64_t i = one_in(2) ? rng_.below(l.request.num_samples) : 0;
             i < l.request.num_samples; ++i) {
            if (is_open(l, i)) return cancel_sample(l, i);
        }
    }

    void cancel_sample(const Live& l, int64_t sample) {
        const bool open = is_open(l, sample);
        const bool first = rig_->output(l.handle, static_cast<int32_t>(sample)).size() == 0;
        rig_->end_sample(l.handle, static_cast<int32_t>(sample), Finish::kAbort);
        CHECK(!is_open(l, sample), "an ended sample");
        tally_.cancelled += open;
        tally_.unstarted += open && first;
        tally_.handed_on += open && first && !is_done(l);
    }

    void check(const Live& l) {
        const std::vector<SampleOutput> got = l.outputs.empty() ? rig_->take(l.handle) : l.outputs;
        const std::vector<SampleOutput> want = alone(models_, l.request, settings_.coefficients);
        CHECK(got.size() == want.size(), "samples");
        for (size_t i = 0; i < got.size(); ++i) {
            check_same(got[i], want[i], l.request.sampling, models_.size(),
                       models_[0]->shape().text() + ", request " + std::to_string(l.handle) +
                           ", sample " + std::to_string(i));
            tally_.tokens += got[i].size();
        }
    }

    Rng& rng_;
    const Models models_;
    Tally& tally_;
    const SessionSettings settings_;
    Rig rig_;
    const std::vector<int32_t> stem_;
    const bool threaded_;  // now one thread, now two: slow where cores are shared
    std::vector<Live> live_;
};

}  // namespace

void test_session_schedules(const Options& options) {
    pe::set_num_threads(1);
    const bool full = options.events >= 1000000;
    const int64_t runs = options.small || is_sanitized() ? 10 : full ? 500 : 80;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        Rng rng(static_cast<uint64_t>(isa) + 1);
        Tally tally;
        for (const TinyShape& shape : tiny_shapes()) {
            const TinyDecoder model(shape, rng.next()), other(tiny_shapes()[1], rng.next());
            for (int64_t i = 0; i < runs / 5; ++i) {
                const bool pair = i % 4 == 3;
                Schedule(rng, pair ? Models{&model, &other} : Models{&model}, tally).run();
            }
        }
        tally.print(pe::cpu::isa_name(isa));
        CHECK(tally.preempted > 0 && tally.copied > 0 && tally.matched > 0 && tally.handed_on > 0,
              "a path was not taken");
    }
}

}  // namespace native
