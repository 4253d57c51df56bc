// A row of logits in links, and what top_k, top_p and min_p keep of it: the CPU's steps (sample_truncate.h), by a block.
#pragma once

#include "common/sample_select.cuh"

namespace pe::cuda {
namespace {

// Largest logit and sum of exp(logit - largest) of each link of a row.
struct Links {
    float *largest, *total;
};

__host__ __device__ inline int64_t vocab_blocks(int64_t V) {
    return (V + kVocabBlock - 1) / kVocabBlock;
}

// A row and its links.
struct Row {
    const float* z;
    int64_t V;
    Links links;
    float largest;
    double total;  // sum of exp(z - largest)

    __device__ Words words() const { return {z, V}; }
};

// Joins links in order of the words: 32 at a time, their exponentials at once.
__device__ Link chain_of(const Links& links, int64_t blocks, Shared& s) {
    if (warp() == 0) {
        Link chain = no_words();
        for (int64_t first = 0; first < blocks; first += kWarp) {
            const int64_t b = first + lane();
            const Link link = b < blocks ? Link{links.largest[b], links.total[b]} : no_words();
            s.largest[lane()] = link.largest;
            __syncwarp();
            float before = chain.largest;
            for (int l = 0; l < kWarp; ++l) {
                if (l < lane()) before = max_of(s.largest[l], before);
                chain.largest = max_of(s.largest[l], chain.largest);
            }
            s.joints[lane()] = joint_of(before, link);
            __syncwarp();
            for (int l = 0; l < kWarp; ++l) chain.total = s.joints[l](chain.total);
        }
        if (lane() == 0) s.chain = chain;
    }
    __syncthreads();
    const Link chain = s.chain;
    __syncthreads();
    return chain;
}

// The links of a row, and their chain. word(i) is a logit; a link that is `empty` is not looked at.
template <typename Word, typename Empty>
__device__ Link link_row(int64_t V, const Links& links, const Word& word, const Empty& empty,
                         Shared& s) {
    for (int64_t b = warp(); b < vocab_blocks(V); b += threads() / kWarp) {
        Link link = no_words();
        if (!empty(b)) {
            float x[kLaneWords];
#pragma unroll
            for (int j = 0; j < kLaneWords; ++j) {
                const int64_t i = b * kVocabBlock + link_word(lane(), j);
                x[j] = i < V ? word(i) : -infinity();
            }
            link = link_of(x);
        }
        if (lane() == 16) links.largest[b] = link.largest, links.total[b] = link.total;
    }
    __syncthreads();
    return chain_of(links, vocab_blocks(V), s);
}

__device__ Link link_row(const float* z, int64_t V, const Links& links, Shared& s) {
    return link_row(V, links, [&](int64_t i) { return z[i]; }, [](int64_t) { return false; }, s);
}

// e^(a link's largest logit - the row's).
__device__ inline double scale_of(const Links& links, int64_t b, float largest) {
    return static_cast<double>(exp_f32(links.largest[b] - largest));
}

// cumulative[b] = what links 0..b weigh, relative to the largest logit; returns the last.
__device__ double accumulate(const Links& links, int64_t blocks, float largest, double* cumulative,
                             Shared& s) {
    return chain_sum(
        blocks,
        [&](int64_t b) {
            return static_cast<double>(links.total[b]) * scale_of(links, b, largest);
        },
        [&](int64_t b, double sum) { cumulative[b] = sum; }, s);
}

// The k-th key of the total order, k in [1, V].
__device__ uint64_t top_k_cut(const Row& row, int64_t k, Shared& s) {
    const auto goal = static_cast<double>(k);
    float floor = -infinity();
    if (k <=
        vocab_blocks(row.V)) {  // at least k words reach the k-th largest of the links' largest
        const Words links{row.links.largest, vocab_blocks(row.V)};
        const Range range = links.between(row.largest, floor);
        floor = logit_of(select_prefix(links, range, goal, UnitWeights{}, s).key);
    }
    const Range range = row.words().between(row.largest, floor);
    return select_prefix(row.words(), range, goal, UnitWeights{}, s).key;
}

// The least distance from the largest logit, of a few, within which words seem to hold `goal`, a sum of exp(z - largest).
__device__ float reach_of(const Row& row, double goal, float spread, Shared& s) {
    constexpr int kTried = 5;
    constexpr float kReach[kTried] = {3.0f, 4.0f, 5.5f, 7.5f, 10.0f};
    float held[kTried] = {};
#pragma unroll 4
    for (int64_t i = thread(); i < row.V; i += threads()) {
        const float below = row.z[i] - row.largest;
        if (!(below >= -kReach[kTried - 1] - spread)) continue;
        const float p = exp_f32(below);
#pragma unroll
        for (int t = 0; t < kTried; ++t)
            held[t] = below >= -kReach[t] - spread ? held[t] + p : held[t];
    }
    double mass[kTried];
#pragma unroll
    for (int t = 0; t < kTried; ++t) mass[t] = static_cast<double>(held[t]);
    block_sums(mass, s);
    float reach = infinity();
#pragma unroll
    for (int t = kTried - 1; t >= 0; --t) reach = mass[t] > 1.001 * goal ? kReach[t] : reach;
    return reach;
}

// The last key of the words, each likelier of which hold less than top_p of the whole.
__device__ uint64_t top_p_cut(const Row& row, double top_p, Shared& s) {
    const ProbabilityWeights weights{row.largest};
    const auto exact_total = [&] {
        const Range all = row.words().between(row.largest, -infinity());
        return weight_of(row.words(), all, weights, s);
    };
    // row.total is of f32 exponentials, within 4e-6. The exact one is taken where that matters, and at once where it is
    // likely to: the words at the end of the reach are each less than 2e-5 of the whole.
    double doubt = 4e-6, total = row.total;
    const auto spread = static_cast<float>(log64(total));
    float reach = reach_of(row, top_p * total, spread, s);
    if (reach + 2.0f * spread > 11.0f) total = exact_total(), doubt = 0.0;
    for (;;) {
        const double goal = top_p * total;
        const Range range = row.words().between(row.largest, row.largest - (reach + spread));
        const Cut cut = select_prefix(row.words(), range, goal, weights, s);
        if (cut.after < goal * (1.0 + doubt) && reach != infinity()) {
            reach = infinity();
        } else if (doubt == 0.0 ||
                   (cut.before < goal * (1.0 - doubt) && cut.after >= goal * (1.0 + doubt))) {
            return cut.key;
        } else {
            total = exact_total(), doubt = 0.0;
        }
    }
}

__device__ Boundary truncate(const Row& row, const SampleParams& p, Shared& s) {
    Boundary boundary;
    const bool top_k = p.top_k > 0 && p.top_k < row.V;
    if (top_k || p.top_p < 1.0) {
        uint64_t key = 0;
        if (top_k) key = top_k_cut(row, p.top_k, s);
        if (top_k && p.top_p < 1.0) {
            const ProbabilityWeights weights{row.largest};
            const Range kept{order_key(row.largest, 0), key};
            const double goal = p.top_p * weight_of(row.words(), kept, weights, s);
            key = select_prefix(row.words(), kept, goal, weights, s).key;
        } else if (p.top_p < 1.0) {
            key = top_p_cut(row, p.top_p, s);
        }
        boundary.z = logit_of(key), boundary.id = id_of(key);
    }
    if (p.min_p > 0.0) {
        const float floor = row.largest + static_cast<float>(log64(p.min_p));
        if (floor > boundary.z) boundary.z = floor, boundary.id = Boundary{}.id;
    }
    return boundary;
}

}  // namespace
}  // namespace pe::cuda
