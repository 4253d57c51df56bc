// csrc/include/pyengine/parallel.h with std::thread in place of OpenMP, which ThreadSanitizer does
// not understand.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace pe {

int num_threads();
void set_num_threads(int n);

namespace {

thread_local int this_thread = 0;

inline int thread_index() { return this_thread; }

template <typename F>
inline void parallel_tasks(int64_t tasks, int threads, const F& f) {
    if (threads > tasks) threads = static_cast<int>(tasks);
    std::atomic<int64_t> next{0};
    const auto work = [&](int index) {
        this_thread = index;
        for (int64_t i = next++; i < tasks; i = next++) f(i);
        this_thread = 0;
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& thread : others) thread.join();
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
