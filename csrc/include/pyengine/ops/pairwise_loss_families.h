// The functions of one margin that pairwise losses are made of, with their derivatives, in f32, for CPU and CUDA. `A` is the
// arithmetic: its F is a float or a vector of them, its functions are those that floats and vectors do not share.
#pragma once

#include "pyengine/math64.h"
#include "pyengine/ops/pairwise_loss.h"

#if defined(__CUDACC__)
#define PE_FAMILY \
    [[gnu::always_inline]] __device__ inline  // an arithmetic's functions are the device's
#else
#define PE_FAMILY [[gnu::always_inline]] inline
#endif

namespace pe {
namespace {  // internal linkage: see isa.h

PE_FORMULA bool takes_part(const PairCoefficient& c) { return c.data != nullptr || c.value != 0.0; }

// A family with its parameter, as every comparison wants it.
struct PairFunction {
    PairFamily kind = PairFamily::kLogistic;
    float tau = 0.0f, log_eps = 0.0f, log_rest = 0.0f;

    PairFunction() = default;
    explicit PairFunction(const PairTerm& term) : kind(term.family) {
        if (kind == PairFamily::kExpLogistic) tau = static_cast<float>(term.parameter);
        if (kind == PairFamily::kExo) {
            log_eps = static_cast<float>(log64(term.parameter));
            log_rest = static_cast<float>(log64(1.0 - term.parameter));
        }
    }
};

template <typename A>
struct PairFamilies {
    using F = typename A::F;

    struct ValueSlope {
        F value, slope;
    };

    // What sigmoids and their logarithms share. NaN stays NaN.
    struct Logistic {
        F x, u, w;  // u is e^-|x|, w is 1 + u

        PE_FAMILY explicit Logistic(F x_) : x(x_), u(A::exp(-A::abs(x_))), w(1.0f + u) {}

        PE_FAMILY auto positive() const { return x >= A::all(0.0f); }
        PE_FAMILY F sigmoid() const { return (positive() ? A::all(1.0f) : u) / w; }
        PE_FAMILY F one_minus() const { return (positive() ? u : A::all(1.0f)) / w; }
        PE_FAMILY F product() const { return u / (w * w); }  // sigmoid (1 - sigmoid)

        // log(1 + u): log w is of the rounded w, of which w - 1 is exact.
        PE_FAMILY F log1p() const {
            const F exact = w - 1.0f;
            return exact == A::all(0.0f) ? u : u * (A::log(w) / exact);
        }
    };

    PE_FAMILY static F positive_part(F x) { return A::max(A::all(0.0f), x); }  // NaN stays NaN

    PE_FAMILY static ValueSlope logistic(F x) {
        const Logistic l(x);
        return {positive_part(-x) + l.log1p(), -l.one_minus()};
    }

    PE_FAMILY static ValueSlope square(F x) { return {x * x, x + x}; }

    PE_FAMILY static ValueSlope hinge(F x) {
        const F zero = A::all(0.0f);
        return {positive_part(x), x > zero ? A::all(1.0f) : zero};
    }

    PE_FAMILY static ValueSlope sigmoid(F x) {
        const Logistic l(x);
        return {l.sigmoid(), l.product()};
    }

    PE_FAMILY static ValueSlope linear(F x) { return {x, A::all(1.0f)}; }

    PE_FAMILY static ValueSlope exp_logistic(F x, float tau) {
        const ValueSlope softplus = logistic(x);
        const Logistic gate(x / tau);
        const F s = gate.sigmoid(), rest = gate.one_minus();
        const F limit = A::all(80.0f);
        const F e = A::exp(A::min(limit, -x));
        const F de = x < -limit ? A::all(0.0f) : -e;
        return {
            A::fma(rest, softplus.value, s * e),
            A::fma(gate.product() / tau, e - softplus.value, A::fma(rest, softplus.slope, s * de))};
    }

    // log s(x) - log s(-x) = x makes the derivative short.
    PE_FAMILY static ValueSlope exo(F x, float log_eps, float log_rest) {
        const Logistic l(x);
        const F log1p = l.log1p();
        const F log_s = -(positive_part(-x) + log1p), log_one_minus = -(positive_part(x) + log1p);
        return {A::fma(l.sigmoid(), log_s - log_rest, l.one_minus() * (log_one_minus - log_eps)),
                l.product() * (x + (log_eps - log_rest))};
    }

    // each(x -> value, slope) of the function; it is known what to call before the margins are gone through.
    template <typename Each>
    PE_FAMILY static void with(const PairFunction& f, const Each& each) {
        switch (f.kind) {
            case PairFamily::kLogistic: return each([](F x) { return logistic(x); });
            case PairFamily::kSquare: return each([](F x) { return square(x); });
            case PairFamily::kHinge: return each([](F x) { return hinge(x); });
            case PairFamily::kSigmoid: return each([](F x) { return sigmoid(x); });
            case PairFamily::kLinear: return each([](F x) { return linear(x); });
            case PairFamily::kExpLogistic:
                return each([&f](F x) { return exp_logistic(x, f.tau); });
            case PairFamily::kExo: return each([&f](F x) { return exo(x, f.log_eps, f.log_rest); });
        }
    }
};

}  // namespace
}  // namespace pe
