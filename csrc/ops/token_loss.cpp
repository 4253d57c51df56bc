#include "pyengine/ops/token_loss.h"

#include "pyengine/ops/token_loss_families.h"
#include "pyengine/segments.h"
#include "pyengine/simd64.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int kChains = 8;
constexpr int kParts = kChains / kDoubles;
constexpr int64_t kTokensPerTask = 4096;
constexpr int64_t kLeastToShare = 8192;  // below it opening a region costs more than it saves

// x[i ...], 0 from x[n] on.
template <typename T>
PE_INLINE dvec read(const T* x, int64_t i, int64_t n) {
    typedef T part __attribute__((vector_size(sizeof(T) * kDoubles)));
    part p = {};
    if (n - i >= kDoubles) {
        memcpy(&p, x + i, sizeof p);
    } else {
        for (int j = 0; j < n - i; ++j) p[j] = x[i + j];
    }
    return __builtin_convertvector(p, dvec);
}

PE_INLINE void write(float* out, int64_t i, int64_t n, dvec x) {
    const half_vec h = __builtin_convertvector(x, half_vec);
    if (n - i >= kDoubles) {
        memcpy(out + i, &h, sizeof h);
    } else {
        for (int j = 0; j < n - i; ++j) out[i + j] = h[j];
    }
}

// A sum whose order is that of eight chains on every instruction set.
struct Chains {
    dvec part[kParts] = {};

    PE_INLINE void add(int64_t i, dvec x) { part[(i / kDoubles) % kParts] += x; }
    PE_INLINE double total() const {
        alignas(64) double lanes[kChains];
        memcpy(lanes, part, sizeof lanes);
        for (int width = kChains / 2; width > 0; width /= 2) {
            for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
        }
        return lanes[0];
    }
};

// One response: its tokens begin at 0.
struct Response {
    const float *policy, *old, *reference;
    const float* a32;   // (N,) advantages, one of the two, or neither
    const double* a64;  // likewise
    double a;           // of the response, if neither
    int64_t n;
    float* dlogps;
    double factor;

    PE_INLINE dvec advantages(int64_t i) const {
        if (a64 != nullptr) return read(a64, i, n);
        if (a32 != nullptr) return read(a32, i, n);
        dvec x = all_of<dvec>(a);
        for (int64_t j = n - i; j < kDoubles; ++j) x[j] = 0.0;
        return x;
    }
};

struct Sums {
    double policy, d, rho, loss;
};

// The first pass, where a token's loss depends on all tokens.
WholeResponse sum_up(const TokenLossArgs& p, const Response& t) {
    Chains d, rho, positive, negative;
    for (int64_t i = 0; i < t.n; i += kDoubles) {
        const dvec lp = read(t.policy, i, t.n), a = t.advantages(i);
        if (t.old != nullptr) d.add(i, lp - read(t.old, i, t.n));
        if (t.reference != nullptr) rho.add(i, lp - read(t.reference, i, t.n));
        const lvec bad = a < dvec{};
        positive.add(i, bad ? dvec{} : a);
        negative.add(i, bad ? a : dvec{});
    }
    return whole_response(p, {d.total(), rho.total(), positive.total(), negative.total()}, t.a,
                          t.n);
}

Sums compute(const TokenLossArgs& p, const Response& t, const WholeResponse& w) {
    Chains policy, ratio, kl, loss;
    for (int64_t i = 0; i < t.n; i += kDoubles) {
        const dvec lp = read(t.policy, i, t.n);
        policy.add(i, lp);
        dvec d = {}, rho = {};
        if (t.old != nullptr) ratio.add(i, d = lp - read(t.old, i, t.n));
        if (t.reference != nullptr) kl.add(i, rho = lp - read(t.reference, i, t.n));
        const TokenSlope<dvec> l = token_losses(p, w, lp, d, rho, t.advantages(i));
        loss.add(i, l.value);
        write(t.dlogps, i, t.n, t.factor * l.slope);
    }
    return {policy.total(), ratio.total(), kl.total(), loss.total() + w.loss};
}

Response response(const TokenLossArgs& p, int64_t s, int64_t begin, int64_t n) {
    const auto from = [&](const VectorView& v) { return v ? ptr<float>(v) + begin : nullptr; };
    Response t{from(p.policy),
               from(p.old),
               from(p.reference),
               nullptr,
               nullptr,
               0.0,
               n,
               from(p.dlogps),
               p.factor ? ptr<double>(p.factor)[s] : 1.0};
    const bool wide = p.advantages.dtype == DType::kF64;
    if (!p.per_token) {
        t.a = wide ? ptr<double>(p.advantages)[s] : ptr<float>(p.advantages)[s];
    } else if (wide) {
        t.a64 = ptr<double>(p.advantages) + begin;
    } else {
        t.a32 = from(p.advantages);
    }
    return t;
}

}  // namespace

void token_loss(const TokenLossArgs& p) {
    const bool twice = takes_two_passes(p);
    for_each_segment(p.cu_seqlens, kTokensPerTask, kLeastToShare,
                     [&](int64_t s, int64_t begin, int64_t n) {
                         const Response t = response(p, s, begin, n);
                         Sums sums = {};
                         if (n > 0) sums = compute(p, t, twice ? sum_up(p, t) : WholeResponse{});
                         ptr<double>(p.losses)[s] = sums.loss;
                         ptr<double>(p.logps)[s] = sums.policy;
                         const auto count = static_cast<double>(n > 0 ? n : 1);
                         if (p.log_ratio) ptr<double>(p.log_ratio)[s] = sums.d / count;
                         if (p.kl) ptr<double>(p.kl)[s] = sums.rho;
                     });
}

}  // namespace pe::cpu::PE_ISA
