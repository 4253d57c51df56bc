// The one place that knows threads. A kernel splits its work into tasks whose results do not depend on who runs them.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace pe {

int num_threads();            // threads a parallel region may use
void set_num_threads(int n);  // n >= 1

namespace {  // internal linkage: see isa.h

inline int thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// f(task) for every task in [0, tasks), in any order, on up to `threads` threads; thread_index() < threads inside.
template <typename F>
inline void parallel_tasks(int64_t tasks, [[maybe_unused]] int threads, const F& f) {
#if defined(_OPENMP)
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t i = 0; i < tasks; ++i) f(i);
        return;
    }
#endif
    for (int64_t i = 0; i < tasks; ++i) f(i);
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
