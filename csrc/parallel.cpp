#include "pyengine/parallel.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#else
#include <thread>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pe {
namespace {

constexpr size_t kCacheLines = 128;  // two: they are fetched in pairs

std::atomic<int> requested{0};  // 0: what OpenMP offers

// How often a thread looks before it sleeps: about 0.2 ms. Waking takes longer than most waits last, but a thread that
// spins keeps its core from whoever has the work.
int looks() {
    static const int found = [] {
        const char* policy = std::getenv("OMP_WAIT_POLICY");
        return policy != nullptr && strcasecmp(policy, "passive") == 0 ? 0 : 1 << 13;
    }();
    return found;
}

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

// Two loops' counters, one for each thread: while one loop runs, the next one's are cleared.
class Team {
  public:
    void open(int threads) {
        if (counters_.size() < static_cast<size_t>(2 * threads)) {
            counters_ = std::vector<Counter>(static_cast<size_t>(2 * threads));
        }
        threads_ = threads;
        for (Counter& each : counters_) each.taken.store(0, std::memory_order_relaxed);
    }

    // Of the tasks that thread `index` began with, how many have been taken.
    std::atomic<int64_t>& taken(int64_t loop, int index) {
        return counters_[static_cast<size_t>(loop % 2 * threads_ + index)].taken;
    }

    void wait(int threads) {
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            round_.notify_all();
            return;
        }
        for (int i = looks(); i > 0; --i) {
            if (round_.load(std::memory_order_acquire) != round) return;
            pause();
        }
        while (round_.load(std::memory_order_acquire) == round) round_.wait(round);
    }

  private:
    struct alignas(kCacheLines) Counter {
        Counter() = default;
        Counter(const Counter&) : Counter() {}
        std::atomic<int64_t> taken{0};
    };

    std::vector<Counter> counters_;
    int threads_ = 0;
    alignas(kCacheLines) std::atomic<int> arrived_{0};
    alignas(kCacheLines) std::atomic<int> round_{0};
};

namespace {

void take_part(Team* team, int index, int threads, void (*call)(const void*), const void* f) {
    const ThreadPlace before = thread_place();
    thread_place() = {ParallelScope::kRegion, team, index, threads, 0};
    call(f);
    thread_place() = before;
}

}  // namespace

int num_threads() {
    const int n = requested.load(std::memory_order_relaxed);
    if (n > 0) return n;
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

void set_num_threads(int n) { requested.store(n, std::memory_order_relaxed); }

ThreadPlace& thread_place() {
    static thread_local ThreadPlace place;
    return place;
}

void run_region(int threads, void (*call)(const void*), const void* f) {
    static thread_local Team team;  // of the regions that this thread opens, one at a time
    Team* const opened = &team;
    opened->open(threads);
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    take_part(opened, omp_get_thread_num(), omp_get_num_threads(), call, f);
#else
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) {
        others.emplace_back([=] { take_part(opened, i, threads, call, f); });
    }
    take_part(opened, 0, threads, call, f);
    for (std::thread& each : others) each.join();
#endif
}

namespace {

// The calling thread's part of a loop over [0, tasks) that all of its team take part in: tasks of its own, which follow
// each other, then what others have not begun.
class SharedLoop {
  public:
    explicit SharedLoop(int64_t tasks);
    bool take(int64_t* task);
    void wait();  // until all tasks of all threads are done

  private:
    void help(int after);

    const int64_t tasks_;
    ThreadPlace& place_;
    int helped_;  // whose tasks are taken: so many places after this thread's
    int64_t begin_, end_;
    std::atomic<int64_t>* taken_;  // of these
};

SharedLoop::SharedLoop(int64_t tasks) : tasks_(tasks), place_(thread_place()) {
    // Every thread has left the loop before this one, whose counters are the next one's.
    place_.team->taken(place_.loops + 1, place_.index).store(0, std::memory_order_relaxed);
    ++place_.loops;
    help(0);
}

// Takes tasks of the thread that is `after` places on.
void SharedLoop::help(int after) {
    helped_ = after;
    const int threads = place_.threads, sum = place_.index + after;
    const int whose = sum < threads ? sum : sum - threads;
    const OwnTasks tasks(tasks_, whose, threads);
    begin_ = tasks.begin;
    end_ = tasks.end;
    taken_ = &place_.team->taken(place_.loops - 1, whose);
}

bool SharedLoop::take(int64_t* task) {
    for (;;) {
        auto& taken = *taken_;
        // Looking first leaves the counter to the threads that still find something.
        if (begin_ + taken.load(std::memory_order_relaxed) < end_) {
            *task = begin_ + taken.fetch_add(1, std::memory_order_relaxed);
            if (*task < end_) return true;
        }
        if (helped_ + 1 >= place_.threads) return false;
        help(helped_ + 1);
    }
}

void SharedLoop::wait() { place_.team->wait(place_.threads); }

// Sets the scope for as long as it lives.
class ScopeGuard {
  public:
    explicit ScopeGuard(ParallelScope scope) : place_(thread_place()), before_(place_.scope) {
        place_.scope = scope;
    }
    ScopeGuard(const ScopeGuard&) = delete;
    ~ScopeGuard() { place_.scope = before_; }

  private:
    ThreadPlace& place_;
    ParallelScope before_;
};

// The calling thread's share of the tasks.
void share_tasks(int64_t tasks, void (*call)(const void*, int64_t), const void* f, bool barrier) {
    const ScopeGuard guard(ParallelScope::kTask);
    SharedLoop loop(tasks);
    for (int64_t i = 0; loop.take(&i);) call(f, i);
    if (barrier) loop.wait();
}

}  // namespace

void run_tasks(int64_t tasks, int threads, void (*call)(const void*, int64_t), const void* f) {
    const ParallelScope scope = thread_place().scope;
    if (scope == ParallelScope::kRegion) return share_tasks(tasks, call, f, true);
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (scope == ParallelScope::kTask || threads <= 1) {
        const ScopeGuard guard(ParallelScope::kTask);
        for (int64_t i = 0; i < tasks; ++i) call(f, i);
        return;
    }
    const auto share = [&] { share_tasks(tasks, call, f, false); };  // the region ends in a barrier
    run_region(threads, [](const void* p) { (*static_cast<const decltype(share)*>(p))(); }, &share);
}

}  // namespace pe
