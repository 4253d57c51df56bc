// The one place that knows threads. A kernel splits its work into tasks whose results do not depend on who runs them.
//
// parallel_tasks opens a team of threads where there is none. Called by every thread of a parallel_region, it shares its
// tasks among them and ends in a barrier, so that many kernels run in one region. Called inside a task, it runs there.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace pe {

int num_threads();            // threads a parallel region may use
void set_num_threads(int n);  // n >= 1

// Where this thread stands; lives in parallel.cpp, one for all instruction sets.
enum class ParallelScope : int { kSerial, kRegion, kTask };
ParallelScope& parallel_scope();

namespace {  // internal linkage: see isa.h

inline int thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Sets the scope for as long as it lives.
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

// The calling thread's share of the tasks; with a barrier at the end in a team.
template <typename F>
inline void share_tasks(int64_t tasks, const F& f) {
    const ScopeGuard guard(ParallelScope::kTask);
#if defined(_OPENMP)
#pragma omp for schedule(dynamic)
#endif
    for (int64_t i = 0; i < tasks; ++i) f(i);
}

// f() on every one of `threads` threads; parallel_tasks inside is shared among them.
template <typename F>
inline void parallel_region([[maybe_unused]] int threads, const F& f) {
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
#endif
    {
        const ScopeGuard guard(ParallelScope::kRegion);
        f();
    }
}

// f(task) for every task in [0, tasks), in any order, on up to `threads` threads; thread_index() < threads inside.
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
