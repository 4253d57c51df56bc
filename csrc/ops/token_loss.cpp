#include "pyengine/ops/token_loss.h"

#include "pyengine/segments.h"
#include "pyengine/simd64.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int kChains = 8;
constexpr int kParts = kChains / kDoubles;
constexpr int64_t kTokensPerTask = 4096;
constexpr int64_t kLeastToShare = 8192;  // below it opening a region costs more than it saves

PE_INLINE dvec all(double x) { return dvec{} + x; }

// e^x for x up to 700; NaN stays NaN.
PE_INLINE dvec exp_of(dvec x) { return exp64(x) + (x - x); }

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

struct Slope {
    dvec value, slope;
};

// -min(r a, clip(r) a) and its slope in x. Compared as ratios; written so that NaN stays NaN.
PE_INLINE Slope clipped(const TokenLossArgs& p, dvec x, dvec a) {
    const lvec bad = a < all(0.0);
    const lvec far = (x < all(-20.0)) | (x > all(20.0));
    x = x > all(20.0) ? all(20.0) : x;
    x = x < all(-20.0) ? all(-20.0) : x;
    const dvec r = exp_of(x);
    const dvec floor = bad ? all(1.0 - p.low) : all(0.0);
    const dvec ceiling = bad ? all(p.dual) : all(1.0 + p.high);
    dvec v = r < floor ? floor : r;
    v = v > ceiling ? ceiling : v;
    dvec dv = far | (r < floor) | (r > ceiling) ? all(0.0) : r;
    dv = bad & (r == ceiling) ? 0.5 * dv : dv;
    return {-a * v, -a * dv};
}

// min(1, e^x) where a < 0, 1 elsewhere.
PE_INLINE dvec taper(dvec x, dvec a) {
    const dvec e = exp_of(x > all(0.0) ? all(0.0) : x);
    return a < all(0.0) ? e : all(1.0);
}

// e^-rho - 1 + rho
PE_INLINE Slope k3(dvec rho) {
    const lvec far = -rho > all(80.0);
    const dvec e = exp_of(far ? all(80.0) : -rho);
    return {e - 1.0 + rho, 1.0 - (far ? all(0.0) : e)};
}

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
        dvec x = all(a);
        for (int64_t j = n - i; j < kDoubles; ++j) x[j] = 0.0;
        return x;
    }
};

// What the tokens' losses take of the whole response.
struct Whole {
    double x = 0.0;      // the log-ratio, mean or sum
    double rho = 0.0;    // summed
    double loss = 0.0;   // clipped with one ratio
    double slope = 0.0;  // of it, on every token
};

struct Sums {
    double policy, d, rho, loss;
};

// The clipped loss of one ratio is linear in the sums of positive and of negative advantages.
Whole clip_whole(const TokenLossArgs& p, const Response& t, Whole w, double positive,
                 double negative) {
    if (p.level == TokenLevel::kSum) {
        positive = t.a < 0.0 ? 0.0 : t.a, negative = t.a < 0.0 ? t.a : 0.0;
    }
    const Slope up = clipped(p, all(w.x), all(1.0)), down = clipped(p, all(w.x), all(-1.0));
    w.loss = up.value[0] * positive - down.value[0] * negative;
    w.slope = up.slope[0] * positive - down.slope[0] * negative;
    if (p.level == TokenLevel::kMean) w.slope /= static_cast<double>(t.n);
    return w;
}

// The first pass, where a token's loss depends on all tokens.
Whole sum_up(const TokenLossArgs& p, const Response& t) {
    Chains d, rho, positive, negative;
    for (int64_t i = 0; i < t.n; i += kDoubles) {
        const dvec lp = read(t.policy, i, t.n), a = t.advantages(i);
        if (t.old != nullptr) d.add(i, lp - read(t.old, i, t.n));
        if (t.reference != nullptr) rho.add(i, lp - read(t.reference, i, t.n));
        const lvec bad = a < all(0.0);
        positive.add(i, bad ? all(0.0) : a);
        negative.add(i, bad ? a : all(0.0));
    }
    Whole w;
    w.rho = rho.total();
    w.x = d.total();
    if (p.level == TokenLevel::kMean) w.x /= static_cast<double>(t.n);
    if (p.family == TokenFamily::kClipped && p.level != TokenLevel::kToken) {
        return clip_whole(p, t, w, positive.total(), negative.total());
    }
    return w;
}

// One vector of tokens: their losses and slopes before the factor. Lanes past the end hold zeros, and give zeros.
PE_INLINE Slope of_tokens(const TokenLossArgs& p, const Whole& w, dvec lp, dvec d, dvec rho,
                          dvec a) {
    Slope l{dvec{}, all(w.slope)};
    if (p.family == TokenFamily::kLogProb) {
        l = {-a * lp, -a};
    } else if (p.family == TokenFamily::kTapered) {
        const dvec c = -a * taper(p.level == TokenLevel::kToken ? d : all(w.x), a);
        l = {c * lp, c};
    } else if (p.level == TokenLevel::kToken) {
        l = clipped(p, d, a);
    }
    if (p.penalty == TokenPenalty::kNone) return l;
    Slope q;
    if (p.penalty == TokenPenalty::kK3) {
        q = k3(rho);
    } else {
        const dvec r = p.penalty == TokenPenalty::kLogRatio ? rho : all(w.rho);
        q = {r * lp, r};
    }
    return {l.value + p.beta * q.value, l.slope + p.beta * q.slope};
}

Sums compute(const TokenLossArgs& p, const Response& t, const Whole& w) {
    Chains policy, ratio, kl, loss;
    for (int64_t i = 0; i < t.n; i += kDoubles) {
        const dvec lp = read(t.policy, i, t.n);
        policy.add(i, lp);
        dvec d = {}, rho = {};
        if (t.old != nullptr) ratio.add(i, d = lp - read(t.old, i, t.n));
        if (t.reference != nullptr) kl.add(i, rho = lp - read(t.reference, i, t.n));
        const Slope l = of_tokens(p, w, lp, d, rho, t.advantages(i));
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

bool takes_two_passes(const TokenLossArgs& p) {
    return p.penalty == TokenPenalty::kSumLogRatio ||
           (p.family != TokenFamily::kLogProb && p.level != TokenLevel::kToken);
}

}  // namespace

void token_loss(const TokenLossArgs& p) {
    const bool twice = takes_two_passes(p);
    for_each_segment(p.cu_seqlens, kTokensPerTask, kLeastToShare,
                     [&](int64_t s, int64_t begin, int64_t n) {
                         const Response t = response(p, s, begin, n);
                         Sums sums = {};
                         if (n > 0) sums = compute(p, t, twice ? sum_up(p, t) : Whole{});
                         ptr<double>(p.losses)[s] = sums.loss;
                         ptr<double>(p.logps)[s] = sums.policy;
                         const auto count = static_cast<double>(n > 0 ? n : 1);
                         if (p.log_ratio) ptr<double>(p.log_ratio)[s] = sums.d / count;
                         if (p.kl) ptr<double>(p.kl)[s] = sums.rho;
                     });
}

}  // namespace pe::cpu::PE_ISA
