// Shares the segments of a packed row among threads. Compiled once per instruction set.
#pragma once

#include "pyengine/parallel.h"
#include "pyengine/simd.h"
#include "pyengine/view.h"

namespace pe::cpu::PE_ISA {
namespace {

// The first segment that begins at `token` or after it.
inline int64_t first_from(const int64_t* starts, int64_t S, int64_t token) {
    int64_t low = 0, high = S;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (starts[middle] < token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// f(first, last) over ranges of segments. A task takes those that begin in its `per_task` tokens; fewer than
// `least_to_share` tokens and segments are one thread's, since opening a region would cost more than it saves.
template <typename F>
PE_INLINE void for_each_range(const VectorView& cu_seqlens, int64_t per_task,
                              int64_t least_to_share, const F& f) {
    const auto* starts = ptr<int64_t>(cu_seqlens);
    const int64_t S = cu_seqlens.size - 1, N = starts[S];
    const int64_t tasks = N > per_task ? (N + per_task - 1) / per_task : 1;
    const int threads = N + S < least_to_share ? 1 : num_threads();
    parallel_tasks(tasks, threads, [&](int64_t i) {
        const int64_t first = i == 0 ? 0 : first_from(starts, S, i * per_task);
        const int64_t last = i + 1 == tasks ? S : first_from(starts, S, (i + 1) * per_task);
        f(first, last);
    });
}

// f(s, first token, tokens) for every segment.
template <typename F>
PE_INLINE void for_each_segment(const VectorView& cu_seqlens, int64_t per_task,
                                int64_t least_to_share, const F& f) {
    const auto* starts = ptr<int64_t>(cu_seqlens);
    for_each_range(cu_seqlens, per_task, least_to_share, [&](int64_t first, int64_t last) {
        for (int64_t s = first; s < last; ++s) f(s, starts[s], starts[s + 1] - starts[s]);
    });
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
