// csrc/include/pyengine/parallel.h with std::thread in place of OpenMP, which ThreadSanitizer does
// not understand.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

namespace pe {

int num_threads();
void set_num_threads(int n);

enum class ParallelScope : int { kSerial, kRegion, kTask };
ParallelScope& parallel_scope();

// The threads of one region: two counters, so that the next loop's is cleared while one is in use.
struct Team {
    explicit Team(int threads) : barrier(threads) {}
    std::barrier<> barrier;
    std::atomic<int64_t> next[2] = {0, 0};
};

struct TeamPlace {
    Team* team = nullptr;
    int index = 0;
    int loop = 0;
};
inline TeamPlace& team_place() {
    static thread_local TeamPlace place;
    return place;
}

namespace {

inline int thread_index() { return team_place().index; }

class ScopeGuard {
  public:
    explicit ScopeGuard(ParallelScope scope) : current_(parallel_scope()), before_(current_) {
        current_ = scope;
    }
    ScopeGuard(const ScopeGuard&) = delete;
    ~ScopeGuard() { current_ = before_; }

  private:
    ParallelScope& current_;
    ParallelScope before_;
};

template <typename F>
inline void share_tasks(int64_t tasks, const F& f) {
    const ScopeGuard guard(ParallelScope::kTask);
    TeamPlace& place = team_place();
    std::atomic<int64_t>& next = place.team->next[place.loop % 2];
    for (int64_t i = next++; i < tasks; i = next++) f(i);
    place.team->barrier.arrive_and_wait();
    if (place.index == 0) next = 0;  // used again two loops later, past another barrier
    ++place.loop;
}

template <typename F>
inline void parallel_region(int threads, const F& f) {
    Team team(threads);
    const auto work = [&](int index) {
        team_place() = {&team, index, 0};
        {
            const ScopeGuard guard(ParallelScope::kRegion);
            f();
        }
        team_place() = {};
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& thread : others) thread.join();
}

template <typename F>
inline void parallel_tasks(int64_t tasks, int threads, const F& f) {
    const ParallelScope scope = parallel_scope();
    if (scope == ParallelScope::kRegion) return share_tasks(tasks, f);
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (scope == ParallelScope::kTask || threads <= 1) {
        const ScopeGuard guard(ParallelScope::kTask);
        for (int64_t i = 0; i < tasks; ++i) f(i);
        return;
    }
    parallel_region(threads, [&] { share_tasks(tasks, f); });
}

template <typename F>
inline void parallel_rows(int64_t n, int64_t grain, const F& f) {
    parallel_tasks((n + grain - 1) / grain, num_threads(), [&](int64_t i) {
        const int64_t begin = i * grain;
        f(begin, begin + grain < n ? begin + grain : n);
    });
}

}  // namespace
}  // namespace pe
