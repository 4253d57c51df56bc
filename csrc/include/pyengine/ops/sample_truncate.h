// A row of logits in blocks, and what top_k, top_p and min_p keep of it. Compiled once per instruction set, inside
// pe::cpu::PE_ISA.
#pragma once

#include <initializer_list>

#include "pyengine/log_softmax.h"
#include "pyengine/ops/sample.h"
#include "pyengine/ops/sample_select.h"

namespace pe::cpu::PE_ISA {
namespace {

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Largest logit and sum of exp(logit - largest) of each block of a row.
struct Links {
    float *largest, *total;
};

// One thread's workspace.
struct Scratch {
    float* z;
    uint64_t* keys;
    Links raw, changed, kept;
    double *cumulative, *mass;

    Scratch(void* workspace, int64_t slot, const SampleWorkspace& size) {
        char* at = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64);
        at += slot * size.thread_bytes();
        const auto take = [&]<typename T>(T*& pointer, int64_t bytes) {
            pointer = reinterpret_cast<T*>(at);
            at += bytes;
        };
        take(z, size.logits_bytes());
        take(keys, size.keys_bytes());
        for (Links* links : std::initializer_list<Links*>{&raw, &changed, &kept}) {
            take(links->largest, size.block_floats_bytes());
            take(links->total, size.block_floats_bytes());
        }
        take(cumulative, size.block_doubles_bytes());
        take(mass, size.mass_bytes());
    }
};

// f(block, its first word, its words) over a vocabulary.
template <typename F>
void for_each_block(int64_t V, const F& f) {
    for (int64_t first = 0; first < V; first += kVocabBlock) {
        f(first / kVocabBlock, first, min_of(kVocabBlock, V - first));
    }
}

// log_sum_exp of the row, its links kept.
inline LogSumExp link_row(const float* z, int64_t V, const Links& links) {
    LogSumExp chain;
    for_each_block(V, [&](int64_t b, int64_t first, int64_t n) {
        block_max_sum(z + first, n, links.largest + b, links.total + b);
        chain.absorb(links.largest[b], links.total[b]);
    });
    return chain;
}

// A block's logits, -inf in the place of words that are not kept.
inline void keep(const float* z, int64_t first, int64_t n, const Boundary& boundary, float* out) {
    const int64_t past = boundary.id + 1 - first;  // of ties, those before it are kept
    const int64_t ties = past < 0 ? 0 : min_of(past, n);
    const float limit = boundary.z;
    for (int64_t i = 0; i < ties; ++i) out[i] = z[first + i] >= limit ? z[first + i] : -kInfinity;
    for (int64_t i = ties; i < n; ++i) out[i] = z[first + i] > limit ? z[first + i] : -kInfinity;
}

// The chain of the kept words; blocks without one are not read.
inline LogSumExp link_kept(const float* z, int64_t V, const Links& all, const Boundary& boundary,
                           const Links& links) {
    LogSumExp chain;
    for_each_block(V, [&](int64_t b, int64_t first, int64_t n) {
        links.largest[b] = -kInfinity;
        links.total[b] = 0.0f;
        if (!(all.largest[b] >= boundary.z)) return;
        alignas(64) float block[kVocabBlock];
        keep(z, first, n, boundary, block);
        block_max_sum(block, n, links.largest + b, links.total + b);
        chain.absorb(links.largest[b], links.total[b]);
    });
    return chain;
}

// cumulative[b] = what blocks 0..b weigh, relative to the largest logit; returns the last.
inline double accumulate(const Links& links, int64_t blocks, float largest, double* cumulative) {
    double running = 0.0;
    const vec16 shift = broadcast16(largest);
    for_each_16(links.largest, blocks, -kInfinity, [&](int64_t b, const vec16& v, int64_t n) {
        alignas(64) float scale[16];
        store16(scale, exp(v - shift));
        for (int64_t i = 0; i < n; ++i) {
            running += static_cast<double>(links.total[b + i]) * static_cast<double>(scale[i]);
            cumulative[b + i] = running;
        }
    });
    return running;
}

// The row that a token is drawn from, before truncation, and its links.
struct Row {
    const float* z;
    int64_t V;
    Links links;
    float largest;
    double total;  // sum of exp(z - largest)
};

// Words whose logit is at least `floor`, as keys, in the order of ids.
inline int64_t collect(const Row& row, float floor, uint64_t* keys) {
    int64_t found = 0;
    for_each_block(row.V, [&](int64_t b, int64_t first, int64_t n) {
        if (!(row.links.largest[b] >= floor)) return;
        for_each_16(row.z + first, n, -kInfinity, [&](int64_t i, const vec16& v, int64_t m) {
            uint32_t bits = bits_at_least(v, floor) & (m == 16 ? 0xffffu : (1u << m) - 1u);
            for (; bits != 0; bits &= bits - 1) {
                const int64_t id = first + i + __builtin_ctz(bits);
                keys[found++] = order_key(row.z[id], id);
            }
        });
    });
    return found;
}

// How far below the largest logit words are looked for, one after the other.
constexpr float kReach[] = {3.0f, 4.0f, 5.5f, 7.5f, 10.0f, kInfinity};
constexpr int64_t kSmallVocabulary = 2048;  // looked at as a whole

// The k-th key of the total order, k in [1, V]; `keys` then holds no more than that it is there.
inline uint64_t top_k_cut(const Row& row, int64_t k, const Scratch& s) {
    const int64_t blocks = (row.V + kVocabBlock - 1) / kVocabBlock;
    const auto goal = static_cast<double>(k);
    int64_t n = 0;
    if (k <= blocks) {  // at least k words reach the k-th largest of the blocks' largest
        for (int64_t b = 0; b < blocks; ++b) s.keys[b] = order_key(row.links.largest[b], b);
        const Cut cut = select_prefix(s.keys, blocks, goal, UnitWeights{}, s.mass);
        n = collect(row, logit_of(cut.key), s.keys);
    } else {
        for (const float reach : kReach) {
            if (row.V <= kSmallVocabulary && reach != kInfinity) continue;
            n = collect(row, row.largest - reach, s.keys);
            if (n >= k) break;
        }
    }
    return select_prefix(s.keys, n, goal, UnitWeights{}, s.mass).key;
}

// The words up to `last` in the total order, as keys, in the order of ids.
inline int64_t collect_prefix(const Row& row, uint64_t last, uint64_t* keys) {
    const int64_t n = collect(row, logit_of(last), keys);
    int64_t left = 0;
    for (int64_t i = 0; i < n; ++i) {
        const uint64_t key = keys[i];
        keys[left] = key;
        left += key <= last;
    }
    return left;
}

// sum of exp(z - largest) with f64 exponentials.
inline double exact_total(const Row& row) {
    double total = 0.0;
    for_each_block(row.V, [&](int64_t, int64_t first, int64_t n) {
        alignas(64) double lanes[16] = {}, w[16];
        for_each_16(row.z + first, n, -kInfinity, [&](int64_t, const vec16& v, int64_t) {
            alignas(64) float x[16];
            store16(x, v);
            weights_of(x, row.largest, w);
            for (int i = 0; i < 16; ++i) lanes[i] += w[i];
        });
        for (const double lane : lanes) total += lane;
    });
    return total;
}

// The shortest reach whose words seem to hold `goal`, a sum of exp(z - largest), in f32.
inline float reach_of(const Row& row, double goal, float spread) {
    constexpr int kTried = sizeof kReach / sizeof kReach[0] - 1;
    vec16 mass[kTried];
    for (vec16& m : mass) m = broadcast16(0.0f);
    const vec16 shift = broadcast16(row.largest), zero = broadcast16(0.0f);
    for_each_block(row.V, [&](int64_t b, int64_t first, int64_t n) {
        if (row.links.largest[b] - row.largest < -kReach[kTried - 1] - spread) return;
        for_each_16(row.z + first, n, -kInfinity, [&](int64_t, const vec16& v, int64_t) {
            const vec16 below = v - shift, p = exp(below);
            for (int t = 0; t < kTried; ++t) {
                mass[t] = mass[t] + where_at_least(below, -kReach[t] - spread, p, zero);
            }
        });
    });
    for (int t = 0; t < kTried; ++t) {
        if (static_cast<double>(sum(mass[t])) > 1.001 * goal) return kReach[t];
    }
    return kInfinity;
}

// The last key of the words, each likelier of which hold less than top_p of the whole.
inline uint64_t top_p_cut(const Row& row, double top_p, const Scratch& s) {
    const ProbabilityWeights weights{row.largest};
    // row.total is of f32 exponentials, within 4e-6. The exact one is taken where that matters, and at once where it is
    // likely to: the words at the end of the reach are each less than 2e-5 of the whole.
    double doubt = 4e-6, total = row.total;
    const auto spread = static_cast<float>(log64(total));
    const bool small = row.V <= kSmallVocabulary;
    float reach = small ? kInfinity : reach_of(row, top_p * total, spread);
    if (reach + 2.0f * spread > 11.0f) total = exact_total(row), doubt = 0.0;
    for (;; reach = kInfinity) {
        const float floor = row.largest - (reach + spread);
        const double goal = top_p * total;
        const Cut cut = select_prefix(s.keys, collect(row, floor, s.keys), goal, weights, s.mass);
        if (cut.after < goal * (1.0 + doubt) && reach != kInfinity) continue;
        const bool clear = cut.before < goal * (1.0 - doubt) && cut.after >= goal * (1.0 + doubt);
        if (clear || doubt == 0.0) return cut.key;
        return select_prefix(s.keys, collect(row, floor, s.keys), top_p * exact_total(row), weights,
                             s.mass)
            .key;
    }
}

// The same among the words up to `last`.
inline uint64_t top_p_cut_within(const Row& row, double top_p, uint64_t last, const Scratch& s) {
    const ProbabilityWeights weights{row.largest};
    const int64_t n = collect_prefix(row, last, s.keys);
    double total = 0.0;
    for_each_weight(s.keys, n, weights, [&](uint64_t, double w) { total += w; });
    return select_prefix(s.keys, n, top_p * total, weights, s.mass).key;
}

inline Boundary truncate(const Row& row, const SampleParams& p, const Scratch& s) {
    Boundary boundary;
    const bool top_k = p.top_k > 0 && p.top_k < row.V;
    if (top_k || p.top_p < 1.0) {
        uint64_t key = top_k ? top_k_cut(row, p.top_k, s) : 0;
        if (p.top_p < 1.0) {
            key = top_k ? top_p_cut_within(row, p.top_p, key, s) : top_p_cut(row, p.top_p, s);
        }
        boundary = {logit_of(key), id_of(key)};
    }
    if (p.min_p > 0.0) {
        const float floor = row.largest + static_cast<float>(log64(p.min_p));
        if (floor > boundary.z) boundary = {floor, Boundary{}.id};
    }
    return boundary;
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
