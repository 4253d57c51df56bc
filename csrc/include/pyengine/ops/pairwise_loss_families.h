// The functions of one margin that pairwise losses are made of, with their derivatives, in f32. Compiled once per
// instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include "pyengine/ops/pairwise_loss.h"
#include "pyengine/simd64.h"

namespace pe::cpu::PE_ISA {
namespace {

struct ValueSlope {
    vec value, slope;
};

// What sigmoids and their logarithms share. NaN stays NaN.
struct Logistic {
    vec u, w;  // e^-|x|, 1 + u
    ivec positive;

    PE_INLINE explicit Logistic(vec x)
        : u(exp(-(vec)((uvec)x & 0x7fffffffu))), w(1.0f + u), positive(x >= broadcast(0.0f)) {}

    PE_INLINE vec sigmoid() const { return (positive ? broadcast(1.0f) : u) / w; }
    PE_INLINE vec one_minus() const { return (positive ? u : broadcast(1.0f)) / w; }
    PE_INLINE vec product() const { return u / (w * w); }  // sigmoid (1 - sigmoid)

    // log(1 + u): log w is of the rounded w, of which w - 1 is exact.
    PE_INLINE vec log1p() const {
        const vec exact = w - 1.0f;
        return exact == broadcast(0.0f) ? u : u * (log(w) / exact);
    }
};

PE_INLINE vec positive_part(vec x) { return max(broadcast(0.0f), x); }  // NaN stays NaN

PE_INLINE ValueSlope logistic(vec x) {
    const Logistic l(x);
    return {positive_part(-x) + l.log1p(), -l.one_minus()};
}

PE_INLINE ValueSlope hinge(vec x) {
    const vec zero = broadcast(0.0f);
    return {positive_part(x), x > zero ? broadcast(1.0f) : zero};
}

PE_INLINE ValueSlope sigmoid(vec x) {
    const Logistic l(x);
    return {l.sigmoid(), l.product()};
}

PE_INLINE ValueSlope exp_logistic(vec x, float tau) {
    const ValueSlope softplus = logistic(x);
    const Logistic gate(x / tau);
    const vec s = gate.sigmoid(), rest = gate.one_minus();
    const vec limit = broadcast(80.0f);
    const vec e = exp(min(limit, -x));
    const vec de = x < -limit ? broadcast(0.0f) : -e;
    return {fma(rest, softplus.value, s * e),
            fma(gate.product() / tau, e - softplus.value, fma(rest, softplus.slope, s * de))};
}

// log s(x) - log s(-x) = x makes the derivative short.
PE_INLINE ValueSlope exo(vec x, float log_eps, float log_rest) {
    const Logistic l(x);
    const vec log1p = l.log1p();
    const vec log_s = -(positive_part(-x) + log1p), log_one_minus = -(positive_part(x) + log1p);
    return {fma(l.sigmoid(), log_s - log_rest, l.one_minus() * (log_one_minus - log_eps)),
            l.product() * (x + (log_eps - log_rest))};
}

// A family with its parameter, as every lane wants it.
struct Family {
    PairFamily kind = PairFamily::kLogistic;
    float tau = 0.0f, log_eps = 0.0f, log_rest = 0.0f;

    Family() = default;
    explicit Family(const PairTerm& term) : kind(term.family) {
        if (kind == PairFamily::kExpLogistic) tau = static_cast<float>(term.parameter);
        if (kind == PairFamily::kExo) {
            log_eps = static_cast<float>(log64(term.parameter));
            log_rest = static_cast<float>(log64(1.0 - term.parameter));
        }
    }

    // 16 values and slopes.
    void operator()(const float* x, float* value, float* slope) const {
        switch (kind) {
            case PairFamily::kLogistic: return each(x, value, slope, logistic);
            case PairFamily::kSquare:
                return each(x, value, slope, [](vec v) { return ValueSlope{v * v, v + v}; });
            case PairFamily::kHinge: return each(x, value, slope, hinge);
            case PairFamily::kSigmoid: return each(x, value, slope, sigmoid);
            case PairFamily::kLinear:
                return each(x, value, slope, [](vec v) { return ValueSlope{v, broadcast(1.0f)}; });
            case PairFamily::kExpLogistic:
                return each(x, value, slope, [this](vec v) { return exp_logistic(v, tau); });
            case PairFamily::kExo:
                return each(x, value, slope, [this](vec v) { return exo(v, log_eps, log_rest); });
        }
    }

  private:
    template <typename F>
    PE_INLINE static void each(const float* x, float* value, float* slope, const F& f) {
        for (int i = 0; i < 16; i += kLanes) {
            const ValueSlope r = f(load(x + i));
            store(value + i, r.value);
            store(slope + i, r.slope);
        }
    }
};

}  // namespace
}  // namespace pe::cpu::PE_ISA
