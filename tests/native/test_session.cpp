// The ways in which a session or a sample ends, new weights, events, and the memory that its steps
// do not allocate.
#include <atomic>
#include <cstddef>
#include <map>
#include <new>

#include "tiny_decoder.h"

namespace {

std::atomic<bool> counts_allocations{false};
std::atomic<int64_t> allocations{0};

void* allocate(size_t bytes, size_t alignment) {
    if (counts_allocations.load(std::memory_order_relaxed)) ++allocations;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* p = alignment <= alignof(std::max_align_t)
                  ? std::malloc(bytes > 0 ? bytes : 1)
                  : std::aligned_alloc(alignment, rounded > 0 ? rounded : alignment);
    if (p == nullptr) throw std::bad_alloc();
    return p;
}

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes, 1); }
void* operator new[](size_t bytes) { return allocate(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t a) {
    return allocate(bytes, static_cast<size_t>(a));
}
void* operator new[](size_t bytes, std::align_val_t a) {
    return allocate(bytes, static_cast<size_t>(a));
}
// ASan's own of these do not call the ones above.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 1); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 1); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace native {
namespace {

using namespace pe::runtime;

Request plain(std::vector<int32_t> prompt, int64_t tokens, int64_t samples = 2) {
    return {.prompt = std::move(prompt),
            .sampling = {.max_tokens = tokens, .seed = 5, .request_id = 6},
            .num_samples = samples,
            .given = {}};
}

// A stop id that would always be drawn ends a response as soon as it may.
void test_stops() {
    const TinyDecoder model({}, 1);
    for (const int64_t min_tokens : {0, 1, 3, 9}) {
        Request request = plain({1, 2, 3}, 9);
        request.sampling.logit_bias = {{7, 1000.0f}};
        request.sampling.stop_ids = {7, 8};
        request.sampling.min_tokens = min_tokens;
        for (const SampleOutput& o : alone({&model}, request)) {
            CHECK(o.size() == std::min<int64_t>(min_tokens + 1, 9), "length");
            CHECK(o.finish == (min_tokens < 9 ? Finish::kStop : Finish::kLength), "finish");
            for (int64_t t = 0; t < o.size(); ++t) {
                const int32_t token = o.token_ids[static_cast<size_t>(t)];
                CHECK((t >= min_tokens || token != 8) && (token == 7) == (t == min_tokens),
                      "a stop id");
            }
        }
    }
}

// One word's embedding is NaN: whoever reads it is named, and nobody else suffers.
void test_not_finite() {
    constexpr int32_t kBad = 7;
    const TinyDecoder fine({}, 1);
    TinyDecoder model({}, 1);
    for (int64_t i = 0; i < model.shape().hidden; ++i) model.embed().set(kBad, i, NAN);
    Rig rig({&model}, {.num_pages = 20, .limits = {32, 32}});
    Request good = plain({1, 2, 3}, 40);
    good.sampling.logit_bias = {{kBad, -1000.0f}};
    Request drawn = plain({4, 5}, 10), given = plain({4, 5}, 10, 3);
    drawn.sampling.logit_bias = {{kBad, 1000.0f}};
    given.given = {{8, 9, 10}, {8, kBad, 10}, {}};
    const std::vector<std::pair<Request, int32_t>> cases = {
        {plain({4, kBad, 5}, 10), 0}, {drawn, 0}, {given, 1}};
    for (const auto& [bad, sample] : cases) {
        for (const bool late : {false, true}) {
            rig->submit(good);
            for (int i = 0; late && i < 5; ++i) CHECK(rig->step().bad_request < 0, "good");
            const int64_t handle = rig->submit(bad);
            StepResult result;
            for (int i = 0; i < 10 && result.bad_request < 0; ++i) result = rig->step();
            CHECK(result.worked && result.bad_request == handle && result.bad_sample == sample,
                  "the bad one is not named");
            rig->clear();
            rig.check_idle("after weights that are not finite");
            CHECK(!rig->step().worked, "work after clear()");
            const int64_t again = rig->submit(good);
            rig.finish("the good one");
            const auto got = rig->take(again), want = alone({&fine}, good);
            for (size_t i = 0; i < got.size(); ++i)
                check_same(got[i], want[i], good.sampling, 1, "beside weights that are not finite");
        }
    }
}

// Weights change between requests: what is cached of the old ones is not used.
void test_new_weights() {
    const TinyDecoder a({}, 1), b({}, 2);
    Rig rig({&a}, {.num_pages = 40});
    const Request request = plain(std::vector<int32_t>(50, 9), 20, 3);
    const std::pair<const TinyDecoder*, uint64_t> rounds[] = {{&a, 1}, {&a, 1}, {&b, 2}, {&a, 3}};
    uint64_t last = 0;
    for (const auto& [model, version] : rounds) {
        rig->set_weights(0, model->weights());
        rig->set_version(version);
        const int64_t matched = rig->scheduler().num_matched_tokens();
        const int64_t handle = rig->submit(request);
        rig.finish("new weights");
        const bool matches = rig->scheduler().num_matched_tokens() > matched;
        CHECK(matches == (last == version), "cached pages and versions of weights");
        last = version;
        const auto got = rig->take(handle), want = alone({model}, request);
        for (size_t i = 0; i < got.size(); ++i)
            check_same(got[i], want[i], request.sampling, 1, "new weights");
    }
}

// Every token is told once, in order, and what was cleared is not told at all.
void test_events() {
    const TinyDecoder model({}, 1);
    Rig rig({&model}, {.num_pages = 30, .limits = {16, 16}});
    rig->collect_events(true);
    rig->submit(plain({1, 2}, 8));
    for (int i = 0; i < 3; ++i) rig->step();
    rig->clear();
    CHECK(rig->take_events().empty(), "events of what was cleared");
    std::vector<int64_t> handles;
    for (int32_t i = 0; i < 4; ++i) handles.push_back(rig->submit(plain({i, 2, 3}, 5 + 3 * i)));
    Request empty = plain({1}, 5, 2);
    empty.given = {{}, {}};
    handles.push_back(rig->submit(empty));
    std::map<std::pair<int64_t, int32_t>, int64_t> told;
    int64_t events = 0;
    while (rig->step().worked) {
        for (const TokenEvent& e : rig->take_events()) {
            const int64_t position = told[{e.request, e.sample}]++;
            CHECK(e.position == position, "an event is missing or out of order");
            CHECK(rig->output(e.request, e.sample).size() > e.position, "an event without a token");
            ++events;
        }
    }
    CHECK(events == rig->num_tokens(), "events");
    CHECK(rig->num_finished() == 10, "finished samples");
    for (size_t i = handles.size(); i > 0; --i) {  // in any order
        const auto samples = rig->take(handles[i - 1]);
        CHECK(samples.size() == 2, "samples");
        for (int32_t s = 0; s < 2; ++s) {
            const SampleOutput& o = samples[static_cast<size_t>(s)];
            const bool was_told = told.count({handles[i - 1], s}) > 0;
            CHECK(o.finish == Finish::kLength &&
                      o.size() == (was_told ? told[{handles[i - 1], s}] : 0),
                  "events of a sample");
        }
    }
    rig->collect_events(false);
    rig->submit(plain({1, 2}, 4));
    rig.finish("events");
    CHECK(rig->take_events().empty(), "events that nobody wants");
}

// Operator new is not called by steps that only decode, samples that end included.
void test_allocations() {
    const TinyDecoder model({.kind = pe::PackedKind::kBF16}, 1), other({}, 2);
    pe::set_num_threads(2);
    for (const bool pair : {false, true}) {
        Rig rig(pair ? Models{&model, &other} : Models{&model},
                {.num_pages = 600,
                 .limits = {128, 128},
                 .coefficients = pair ? std::vector<float>{1.0f, 0.5f} : std::vector<float>{1.0f}});
        Rng rng(3);
        for (int64_t i = 0; i < 12; ++i) {
            Request r = plain(random_tokens(rng, 20 + i), 250 + 20 * i, 1 + i % 3);
            r.sampling.seed = static_cast<uint64_t>(i);
            if (i % 2 == 0) r.sampling.repetition_penalty = 1.1f;
            if (i % 3 == 0) r.sampling.frequency_penalty = 0.05f;
            if (i % 4 == 0) r.sampling.top_logprobs = 1 + i;
            r.sampling.entropy = i % 4 == 1;
            if (i % 3 == 1) r.sampling.stop_ids = {1, 2, 3};
            rig->submit(r);
        }
        while (rig->scheduler().num_waiting() > 0 || rig->num_tokens() < 40) rig->step();
        const int64_t finished = rig->num_finished();
        allocations = 0;
        int64_t steps = 0;
        counts_allocations = true;
        while (rig->step().worked) ++steps;
        counts_allocations = false;
        CHECK(steps >= 200 && rig->num_finished() > finished, "steps");
        CHECK(allocations == 0,
              std::to_string(allocations) + " allocations in " + std::to_string(steps) + " steps");
        printf("    %lld allocations in %lld steps of decoding\n",
               static_cast<long long>(allocations), static_cast<long long>(steps));
        rig.check_idle("allocations");
    }
    pe::set_num_threads(1);
}

}  // namespace

void test_session(const Options& options) {
    pe::set_num_threads(1);
    for (const auto isa : isas(options)) pe::cpu::set_active_isa(isa);
    test_stops();
    test_not_finite();
    test_new_weights();
    test_events();
    if (__tsan_init == nullptr) test_allocations();  // threads without OpenMP are made anew
}

}  // namespace native
