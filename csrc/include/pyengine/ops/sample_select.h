// Prefixes of a row's total order (logit descending, id ascending) without sorting the row. A word is one integer key, and
// a smaller key comes earlier in the order. Compiled once per instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include <cstring>

#include "pyengine/ops/sample_word.h"
#include "pyengine/ops/sample_workspace.h"
#include "pyengine/simd64.h"

namespace pe::cpu::PE_ISA {
namespace {

// Bit i: v[i] >= floor.
PE_INLINE uint32_t bits_at_least(const vec16& v, float floor) {
    uint32_t bits = 0;
    for (int i = 0; i < vec16::kParts; ++i) {
#if defined(__AVX512F__)
        const __m512 limit = (__m512)broadcast(floor);
        bits |= _mm512_cmp_ps_mask((__m512)v.part[i], limit, _CMP_GE_OQ);
#elif defined(__AVX2__)
        const __m256 limit = (__m256)broadcast(floor);
        const int part = _mm256_movemask_ps(_mm256_cmp_ps((__m256)v.part[i], limit, _CMP_GE_OQ));
        bits |= static_cast<uint32_t>(part) << (i * kLanes);
#else
        for (int j = 0; j < kLanes; ++j) {
            bits |= static_cast<uint32_t>(v.part[i][j] >= floor) << (i * kLanes + j);
        }
#endif
    }
    return bits;
}

// Lane by lane: v >= floor ? a : b.
PE_INLINE vec16 where_at_least(const vec16& v, float floor, const vec16& a, const vec16& b) {
    vec16 r;
    for (int i = 0; i < vec16::kParts; ++i) {
        r.part[i] = v.part[i] >= broadcast(floor) ? a.part[i] : b.part[i];
    }
    return r;
}

// out[i] = e^(x[i] - largest), 16 of them.
PE_INLINE void weights_of(const float* x, float largest, double* out) {
    for (int i = 0; i < 16; i += kDoubles) {
        half_vec part;
        memcpy(&part, x + i, sizeof part);
        const dvec e = exp64(__builtin_convertvector(part, dvec) - double{largest});
        memcpy(out + i, &e, sizeof e);
    }
}

// How much a word counts: by its probability relative to the largest logit's, or one each.
struct ProbabilityWeights {
    float largest;
    PE_INLINE void operator()(const uint64_t* keys, int64_t n, double* out) const {
        alignas(64) float x[16];
        for (int64_t i = 0; i < 16; ++i) x[i] = i < n ? logit_of(keys[i]) : largest;
        weights_of(x, largest, out);
    }
};

struct UnitWeights {
    PE_INLINE void operator()(const uint64_t*, int64_t, double* out) const {
        for (int i = 0; i < 16; ++i) out[i] = 1.0;
    }
};

// f(key, weight) of each key.
template <typename W, typename F>
PE_INLINE void for_each_weight(const uint64_t* keys, int64_t n, const W& weights, const F& f) {
    alignas(64) double w[16];
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t m = n - i < 16 ? n - i : 16;
        weights(keys + i, m, w);
        for (int64_t j = 0; j < m; ++j) f(keys[i + j], w[j]);
    }
}

// The end of a prefix: its last key, the weight before that key and with it.
struct Cut {
    uint64_t key;
    double before, after;
};

// The longest prefix in which the keys before each weigh less than `goal` > 0. Keys are unique, of positive weight but for
// a tail that weighs nothing; at least one. Buckets of the keys' range are weighed, and the one where the goal is
// reached is looked into again: it takes linear time and leaves `keys` in pieces.
template <typename W>
Cut select_prefix(uint64_t* keys, int64_t n, double goal, const W& weights, double* mass) {
    constexpr int64_t kFew = 32;
    double before = 0.0;
    while (n > kFew) {
        uint64_t low = keys[0], high = keys[0];
        for (int64_t i = 1; i < n; ++i) {
            low = keys[i] < low ? keys[i] : low;
            high = keys[i] > high ? keys[i] : high;
        }
        int shift = 0;
        while ((high - low) >> shift >= static_cast<uint64_t>(kSelectBuckets)) ++shift;
        const int64_t buckets = static_cast<int64_t>((high - low) >> shift) + 1;
        for (int64_t i = 0; i < buckets; ++i) mass[i] = 0.0;
        for_each_weight(keys, n, weights,
                        [&](uint64_t key, double w) { mass[(key - low) >> shift] += w; });
        int64_t chosen = 0;
        double running = before;
        for (int64_t i = 0; i < buckets && running < goal; ++i) {
            if (mass[i] == 0.0) continue;
            chosen = i;
            before = running;
            running += mass[i];
        }
        int64_t left = 0;
        for (int64_t i = 0; i < n; ++i) {
            const uint64_t key = keys[i];
            keys[left] = key;
            left += static_cast<int64_t>((key - low) >> shift) == chosen;
        }
        n = left;
    }
    for (int64_t i = 1; i < n; ++i) {  // insertion sort
        const uint64_t key = keys[i];
        int64_t j = i;
        for (; j > 0 && keys[j - 1] > key; --j) keys[j] = keys[j - 1];
        keys[j] = key;
    }
    Cut cut{keys[0], before, before};
    for_each_weight(keys, n, weights, [&](uint64_t key, double w) {
        if (key == keys[0] || cut.after < goal) cut = {key, cut.after, cut.after + w};
    });
    return cut;
}

// Ascending; a heap needs no memory.
inline void sort_keys(uint64_t* keys, int64_t n) {
    const auto sink = [&](int64_t i, int64_t end) {
        const uint64_t key = keys[i];
        for (int64_t child; (child = 2 * i + 1) < end; i = child) {
            if (child + 1 < end && keys[child + 1] > keys[child]) ++child;
            if (keys[child] <= key) break;
            keys[i] = keys[child];
        }
        keys[i] = key;
    };
    for (int64_t i = n / 2 - 1; i >= 0; --i) sink(i, n);
    for (int64_t end = n - 1; end > 0; --end) {
        const uint64_t last = keys[end];
        keys[end] = keys[0];
        keys[0] = last;
        sink(0, end);
    }
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
