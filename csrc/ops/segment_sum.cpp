#include "pyengine/ops/segment_sum.h"

#include "pyengine/segments.h"
#include "pyengine/simd64.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int kChains = 8;
constexpr int kParts = kChains / kDoubles;
constexpr int64_t kTokensPerTask = 16384;
constexpr int64_t kLeastToShare = 32768;  // below it opening a region costs more than it saves

PE_INLINE dvec widen(const float* p) {
    half_vec h;
    memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, dvec);
}

PE_INLINE void narrow(float* p, dvec x) {
    const half_vec h = __builtin_convertvector(x, half_vec);
    memcpy(p, &h, sizeof h);
}

template <bool WEIGHTED>
PE_INLINE double sum_of(const float* x, const float* w, int64_t n) {
    dvec chain[kParts] = {};
    int64_t i = 0;
    for (; i + kChains <= n; i += kChains) {
        for (int j = 0; j < kParts; ++j) {
            dvec term = widen(x + i + j * kDoubles);
            if constexpr (WEIGHTED) term *= widen(w + i + j * kDoubles);
            chain[j] += term;
        }
    }
    alignas(64) double lanes[kChains];
    memcpy(lanes, chain, sizeof lanes);
    for (int j = 0; i < n; ++i, ++j) {
        const double term = x[i];
        lanes[j] += WEIGHTED ? term * static_cast<double>(w[i]) : term;
    }
    for (int width = kChains / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    }
    return lanes[0];
}

template <bool WEIGHTED>
PE_INLINE void spread(double dsum, const float* w, float* dx, int64_t n) {
    const dvec d = dvec{} + dsum;
    int64_t i = 0;
    for (; i + kDoubles <= n; i += kDoubles) {
        if constexpr (WEIGHTED) {
            narrow(dx + i, d * widen(w + i));
        } else {
            narrow(dx + i, d);
        }
    }
    for (; i < n; ++i) {
        dx[i] = static_cast<float>(WEIGHTED ? dsum * static_cast<double>(w[i]) : dsum);
    }
}

template <typename F>
PE_INLINE void each_segment(const VectorView& cu_seqlens, const F& f) {
    for_each_segment(cu_seqlens, kTokensPerTask, kLeastToShare, f);
}

}  // namespace

void segment_sum_forward(const SegmentSumArgs& a) {
    const float *x = ptr<float>(a.values), *w = ptr<float>(a.weights);
    auto* sums = ptr<double>(a.sums);
    if (w != nullptr) {
        each_segment(a.cu_seqlens, [&](int64_t s, int64_t begin, int64_t n) {
            sums[s] = sum_of<true>(x + begin, w + begin, n);
        });
    } else {
        each_segment(a.cu_seqlens, [&](int64_t s, int64_t begin, int64_t n) {
            sums[s] = sum_of<false>(x + begin, nullptr, n);
        });
    }
}

void segment_sum_backward(const SegmentSumBackwardArgs& a) {
    const auto* dsums = ptr<double>(a.dsums);
    const auto* w = ptr<float>(a.weights);
    auto* dx = ptr<float>(a.dvalues);
    if (w != nullptr) {
        each_segment(a.cu_seqlens, [&](int64_t s, int64_t begin, int64_t n) {
            spread<true>(dsums[s], w + begin, dx + begin, n);
        });
    } else {
        each_segment(a.cu_seqlens, [&](int64_t s, int64_t begin, int64_t n) {
            spread<false>(dsums[s], nullptr, dx + begin, n);
        });
    }
}

}  // namespace pe::cpu::PE_ISA
