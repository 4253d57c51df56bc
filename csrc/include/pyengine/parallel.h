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
void run_region(int threads, void (*call)(const void*), const void* f);

// call(f, task) for every task in [0, tasks).
void run_tasks(int64_t tasks, int threads, void (*call)(const void*, int64_t), const void* f);

namespace {  // internal linkage: see isa.h

// Of the tasks [0, tasks) of a loop that a team shares, those a thread begins with.
struct OwnTasks {
    int64_t begin, end;

    OwnTasks(int64_t tasks, int64_t index, int64_t threads)
        : begin(tasks * index / threads), end(tasks * (index + 1) / threads) {}
};
inline OwnTasks own_tasks(int64_t tasks) {
    const ThreadPlace& place = thread_place();
    return {tasks, place.index, place.threads};
}

inline ParallelScope parallel_scope() { return thread_place().scope; }
inline int thread_index() { return thread_place().index; }

// f() on every one of `threads` threads; parallel_tasks inside is shared among them.
template <typename F>
inline void parallel_region(int threads, const F& f) {
    run_region(threads, [](const void* p) { (*static_cast<const F*>(p))(); }, &f);
}

// f(task) for every task in [0, tasks), in any order, on up to `threads` threads; thread_index() < threads inside. f is
// compiled once, and called through a pointer: a task is never short.
template <typename F>
inline void parallel_tasks(int64_t tasks, int threads, const F& f) {
    run_tasks(
        tasks, threads, [](const void* p, int64_t task) { (*static_cast<const F*>(p))(task); }, &f);
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
