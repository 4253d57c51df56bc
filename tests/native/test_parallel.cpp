// How work is shared among threads: every task once, loops of a region one after the other, tasks inside tasks.
#include <atomic>

#include "check.h"

namespace native {
namespace {

// Loops of a region, each of which reads what all threads wrote in the one before.
void test_loops(int threads, int64_t tasks, int loops) {
    const std::string what = std::to_string(threads) + " threads, " + std::to_string(tasks);
    const auto n = static_cast<size_t>(tasks);
    std::vector<std::vector<int64_t>> values(static_cast<size_t>(loops) + 1,
                                             std::vector<int64_t>(n, 0));
    std::atomic<int> most{0};
    pe::parallel_region(threads, [&] {
        for (size_t l = 0; l < static_cast<size_t>(loops); ++l) {
            pe::parallel_tasks(tasks, threads, [&](int64_t i) {
                for (int seen = most; seen < pe::thread_index();) {
                    most.compare_exchange_weak(seen, pe::thread_index());
                }
                const auto from = static_cast<size_t>(tasks - 1 - i);
                values[l + 1][static_cast<size_t>(i)] += values[l][from] + 1;
            });
        }
    });
    for (size_t i = 0; i < n; ++i) {
        CHECK(values.back()[i] == loops, what + " tasks: one ran twice, early or never");
    }
    CHECK(most < threads, what);
    CHECK(pe::parallel_scope() == pe::ParallelScope::kSerial && pe::thread_index() == 0, what);
}

// Without a region, and tasks that call parallel_tasks themselves.
void test_nested(int threads, int64_t tasks) {
    std::vector<int64_t> sums(static_cast<size_t>(tasks), 0);
    pe::parallel_tasks(tasks, threads, [&](int64_t i) {
        const int index = pe::thread_index();
        pe::parallel_tasks(i, threads, [&](int64_t j) {
            if (pe::thread_index() == index) sums[static_cast<size_t>(i)] += j;
        });
    });
    for (int64_t i = 0; i < tasks; ++i) {
        CHECK(sums[static_cast<size_t>(i)] == i * (i - 1) / 2, "tasks inside a task");
    }
}

}  // namespace

void test_parallel() {
    for (const int threads : {1, 2, 3, 5}) {
        for (const int64_t tasks : {0, 1, 2, 3, 4, 7, 64}) {
            test_loops(threads, tasks, 5);
            test_nested(threads, tasks);
        }
    }
    test_loops(4, 40, 200);
}

}  // namespace native
