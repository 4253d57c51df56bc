#include "pyengine/parallel.h"

#include <atomic>

namespace pe {
namespace {

std::atomic<int> requested{0};  // 0: what OpenMP offers

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

ParallelScope& parallel_scope() {
    static thread_local ParallelScope scope = ParallelScope::kSerial;
    return scope;
}

void set_num_threads(int n) { requested.store(n, std::memory_order_relaxed); }

}  // namespace pe
