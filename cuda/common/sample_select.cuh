// What the threads of a block find out together about a row of words: sums, and prefixes of the total order (logit
// descending, id ascending) without sorting the row.
//
// Every sum has one order, fixed by the row's length and the block's threads, which the row's length fixes too. Words are
// added to sums of non-negative weights in the same places whichever of them count, so that a prefix never weighs more than
// a longer one: where a prefix ends does not depend on how it is searched for.
// All threads of the block call every function here, and all get its result.
#pragma once

#include "common/log_softmax.cuh"
#include "pyengine/ops/sample_word.h"

namespace pe::cuda {
namespace {

constexpr int kMaxThreads = 512;  // of a block; a power of two
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kBuckets = 8;
constexpr int kFew = 256;  // keys that are compared each with each

// The end of a prefix: its last key, the weight before that key and with it.
struct Cut {
    uint64_t key;
    double before, after;
};

struct Shared {
    double sums[kBuckets][kMaxThreads];
    uint64_t keys[kFew];
    double weights[kFew];
    Cut sorted[kFew];
    int places[kMaxThreads];
    float maxima[kMaxWarps], largest[kWarp];
    Joint joints[kWarp];
    double terms[kWarp], total;
    Link chain;
    float likely[kVocabBlock];
    int64_t token;
};

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int threads() { return static_cast<int>(blockDim.x); }
__device__ inline int warp() { return thread() / kWarp; }
__device__ inline int lane() { return thread() % kWarp; }

// A row, or whatever else is ordered like one.
struct Words {
    const float* z;
    int64_t n;

    // Of keys: from the first word of this logit to the last of that one.
    struct Range {
        uint64_t low, high;
    };
    __device__ Range between(float from, float to) const {
        return {order_key(from, 0), order_key(to, n - 1)};
    }
};

using Range = Words::Range;

// f(key) of each word of this thread in the range.
template <typename F>
__device__ void for_each_key(const Words& words, const Range& range, const F& f) {
#pragma unroll 4
    for (int64_t i = thread(); i < words.n; i += threads()) {
        const uint64_t key = order_key(words.z[i], i);
        if (key >= range.low && key <= range.high) f(key);
    }
}

__device__ inline float block_max(float x, Shared& s) {
    x = warp_max(x);
    __syncthreads();  // here and below: whoever still reads what was there
    if (lane() == 0) s.maxima[warp()] = x;
    __syncthreads();
    for (int i = 0; i < threads() / kWarp; ++i) x = max_of(s.maxima[i], x);
    return x;
}

// Each x summed over the threads: i with i + half of them, then with a quarter, ...
template <int N>
__device__ void block_sums(double (&x)[N], Shared& s) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) s.sums[n][thread()] = x[n];
    for (int width = threads() / 2; width > 0; width /= 2) {
        __syncthreads();
        if (thread() >= width) continue;
#pragma unroll
        for (int n = 0; n < N; ++n) s.sums[n][thread()] += s.sums[n][thread() + width];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) x[n] = s.sums[n][0];
}

// term(0) + term(1) + ..., one chain; use(i, sum) gets the sum up to and with term i. A warp makes the terms, 32 at a time,
// and each of its lanes adds them all.
template <typename Term, typename Use>
__device__ double chain_sum(int64_t n, const Term& term, const Use& use, Shared& s) {
    if (warp() == 0) {
        double running = 0.0;
        for (int64_t first = 0; first < n; first += kWarp) {
            const int64_t i = first + lane();
            s.terms[lane()] = i < n ? term(i) : 0.0;
            __syncwarp();
            double mine = 0.0;
            for (int l = 0; l < kWarp; ++l) {
                running += s.terms[l];
                if (l == lane()) mine = running;
            }
            if (i < n) use(i, mine);
            __syncwarp();
        }
        if (lane() == 0) s.total = running;
    }
    __syncthreads();
    const double total = s.total;
    __syncthreads();
    return total;
}

// Weights of words: their probability relative to the largest logit's, or one each.
struct ProbabilityWeights {
    float largest;
    __device__ double operator()(uint64_t key) const {
        return exp64_of(static_cast<double>(logit_of(key)) - static_cast<double>(largest));
    }
};

struct UnitWeights {
    __device__ double operator()(uint64_t) const { return 1.0; }
};

template <typename W>
__device__ double weight_of(const Words& words, const Range& range, const W& weight, Shared& s) {
    double total[1] = {0.0};
    for_each_key(words, range, [&](uint64_t key) { total[0] += weight(key); });
    block_sums(total, s);
    return total[0];
}

// How many words are in the range. If they are few, s.keys holds them.
__device__ inline int gather(const Words& words, const Range& range, Shared& s) {
    int own = 0;
    for_each_key(words, range, [&](uint64_t) { ++own; });
    __syncthreads();
    s.places[thread()] = own;
    for (int step = 1; step < threads(); step *= 2) {
        __syncthreads();
        const int before = thread() >= step ? s.places[thread() - step] : 0;
        __syncthreads();
        s.places[thread()] += before;
    }
    __syncthreads();
    const int n = s.places[threads() - 1];
    if (n > kFew) return n;
    int at = s.places[thread()] - own;
    if (own > 0) for_each_key(words, range, [&](uint64_t key) { s.keys[at++] = key; });
    __syncthreads();
    return n;
}

// s.sorted: the n keys of s.keys in order, with what those before weigh, `before` included.
template <typename W>
__device__ void rank(int n, double before, const W& weight, Shared& s) {
    for (int c = thread(); c < n; c += threads()) s.weights[c] = weight(s.keys[c]);
    __syncthreads();
    for (int c = thread(); c < n; c += threads()) {
        const uint64_t key = s.keys[c];
        double sum = before;
        int place = 0;
#pragma unroll 4
        for (int i = 0; i < n; ++i) {
            if (s.keys[i] >= key) continue;
            sum += s.weights[i];
            ++place;
        }
        s.sorted[place] = {key, sum, sum + s.weights[c]};
    }
    __syncthreads();
}

// The part of the range, one of kBuckets, in which the weight reaches the goal; `before` grows by what the parts before it
// weigh. A part that weighs nothing is not chosen.
template <typename W>
__device__ Range narrowed(const Words& words, const Range& range, double* before, double goal,
                          const W& weight, Shared& s) {
    int shift = 0;
    while ((range.high - range.low) >> shift >= kBuckets) ++shift;
    double mass[kBuckets] = {};
    for_each_key(words, range, [&](uint64_t key) {
        const int bucket = static_cast<int>((key - range.low) >> shift);
        const double w = weight(key);
#pragma unroll
        for (int n = 0; n < kBuckets; ++n) mass[n] = n == bucket ? mass[n] + w : mass[n];
    });
    block_sums(mass, s);
    int chosen = -1;
    double running = *before;
#pragma unroll
    for (int n = 0; n < kBuckets; ++n) {
        if (mass[n] == 0.0 || (chosen >= 0 && running >= goal)) continue;
        chosen = n;
        *before = running;
        running += mass[n];
    }
    Range part;
    part.low = range.low + (static_cast<uint64_t>(chosen < 0 ? 0 : chosen) << shift);
    const uint64_t rest = range.high - part.low, width = (uint64_t{1} << shift) - 1;
    part.high = part.low + (width < rest ? width : rest);
    // No word has an id past the last: ties are halved by the ids that there are.
    const auto last = static_cast<uint64_t>(words.n - 1), ids = uint64_t{0xffffffff};
    if ((part.high & ids) > last) part.high = (part.high & ~ids) | last;
    if ((part.low & ids) > last) part.low = (part.low | ids) + 1;
    return part;
}

// The longest prefix in which the words before each weigh less than `goal` > 0. The range begins with the row's first word
// and holds the prefix's end.
template <typename W>
__device__ Cut select_prefix(const Words& words, Range range, double goal, const W& weight,
                             Shared& s) {
    double before = 0.0;
    int n;
    while ((n = gather(words, range, s)) > kFew)
        range = narrowed(words, range, &before, goal, weight, s);
    rank(n, before, weight, s);
    int last = 0, end = n;  // of the words before `end`, `last` is in the prefix
    while (end - last > 1) {
        const int middle = (last + end) / 2;
        if (s.sorted[middle].before < goal) {
            last = middle;
        } else {
            end = middle;
        }
    }
    return s.sorted[last];
}

}  // namespace
}  // namespace pe::cuda
