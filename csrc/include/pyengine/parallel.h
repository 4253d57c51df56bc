// How kernels share work. A kernel splits it into tasks whose results do not depend on who runs them.
//
// parallel_tasks opens a team of threads where there is none. Called by every thread of a parallel_region, it shares its
// tasks among them and ends in a barrier, so that many kernels run in one region. Called inside a task, it runs there.
// Where threads come from is parallel.cpp's alone.
#pragma once

#include <cstdint>

namespace pe {

int num_threads();            // threads a parallel region may use
void set_num_threads(int n);  // n >= 1

enum class ParallelScope : int { kSerial, kRegion, kTask };

class Team;

// Where this thread stands. One for all instruction sets.
struct ThreadPlace {
    ParallelScope scope = ParallelScope::kSerial;
    Team* team = nullptr;  // of the region it is in
    int index = 0;         // in the team
    int threads = 1;       // of the team
    int64_t loops = 0;     // that the team has begun
};
ThreadPlace& thread_place();

// call(f) on every one of up to `threads` threads, each with its place in a team.
void run_team(int threads, void (*call)(const void*), const void* f);

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
    void* taken_;  // of these
};

namespace {  // internal linkage: see isa.h

inline ParallelScope parallel_scope() { return thread_place().scope; }
inline int thread_index() { return thread_place().index; }

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
template <typename F>
inline void share_tasks(int64_t tasks, const F& f, bool barrier) {
    const ScopeGuard guard(ParallelScope::kTask);
    SharedLoop loop(tasks);
    for (int64_t i = 0; loop.take(&i);) f(i);
    if (barrier) loop.wait();
}

// f() on every one of `threads` threads; parallel_tasks inside is shared among them.
template <typename F>
inline void parallel_region(int threads, const F& f) {
    const auto call = [](const void* p) {
        const ScopeGuard guard(ParallelScope::kRegion);
        (*static_cast<const F*>(p))();
    };
    run_team(threads, call, &f);
}

// f(task) for every task in [0, tasks), in any order, on up to `threads` threads; thread_index() < threads inside.
template <typename F>
inline void parallel_tasks(int64_t tasks, int threads, const F& f) {
    const ParallelScope scope = parallel_scope();
    if (scope == ParallelScope::kRegion) return share_tasks(tasks, f, true);
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (scope == ParallelScope::kTask || threads <= 1) {
        const ScopeGuard guard(ParallelScope::kTask);
        for (int64_t i = 0; i < tasks; ++i) f(i);
        return;
    }
    parallel_region(threads, [&] { share_tasks(tasks, f, false); });  // the region ends in one
}

// f(begin, end) over [0, n) in chunks of `grain`.
template <typename F>
inline void parallel_rows(int64_t n, int64_t grain, const F& f) {
    parallel_tasks((n + grain - 1) / grain, num_threads(), [&](int64_t i) {
        const int64_t begin = i * grain;
        f(begin, begin + grain < n ? begin + grain : n);
    });
}

}  // namespace
}  // namespace pe
