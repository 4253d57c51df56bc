// The losses of tokens that token_loss adds up, with their slopes, for CPU and CUDA: the same operations everywhere, nothing
// fused. `D` is a double or a vector of them.
#pragma once

#include "pyengine/math64.h"
#include "pyengine/ops/token_loss.h"

namespace pe {
namespace {  // internal linkage: see isa.h

template <typename D>
struct TokenSlope {
    D value, slope;
};

template <typename D>
PE_FORMULA D all_of(double x) {
    return D{} + x;
}

// e^x for x up to 700; NaN stays NaN.
template <typename D>
PE_FORMULA D token_exp(D x) {
    return exp64_of(x) + (x - x);
}

// -min(r a, clip(r) a) and its slope in x. Compared as ratios; written so that NaN stays NaN.
template <typename D>
PE_FORMULA TokenSlope<D> clipped(const TokenLossArgs& p, D x, D a) {
    const D zero = D{}, top = all_of<D>(20.0), bottom = all_of<D>(-20.0);
    const auto bad = a < zero;
    const auto far = (x < bottom) | (x > top);
    x = x > top ? top : x;
    x = x < bottom ? bottom : x;
    const D r = token_exp(x);
    const D floor = bad ? all_of<D>(1.0 - p.low) : zero;
    const D ceiling = bad ? all_of<D>(p.dual) : all_of<D>(1.0 + p.high);
    D v = r < floor ? floor : r;
    v = v > ceiling ? ceiling : v;
    D dv = far | (r < floor) | (r > ceiling) ? zero : r;
    dv = bad & (r == ceiling) ? 0.5 * dv : dv;
    return {-a * v, -a * dv};
}

// min(1, e^x) where a < 0, 1 elsewhere.
template <typename D>
PE_FORMULA D taper(D x, D a) {
    const D zero = D{};
    const D e = token_exp(x > zero ? zero : x);
    return a < zero ? e : all_of<D>(1.0);
}

// e^-rho - 1 + rho
template <typename D>
PE_FORMULA TokenSlope<D> k3(D rho) {
    const D limit = all_of<D>(80.0);
    const auto far = -rho > limit;
    const D e = token_exp(far ? limit : -rho);
    return {e - 1.0 + rho, 1.0 - (far ? D{} : e)};
}

// What the tokens' losses take of the whole response.
struct WholeResponse {
    double x = 0.0;      // the log-ratio, mean or sum
    double rho = 0.0;    // summed
    double loss = 0.0;   // clipped with one ratio
    double slope = 0.0;  // of it, on every token
};

// Whether that needs a pass of its own, before the tokens' losses.
PE_FORMULA bool takes_two_passes(const TokenLossArgs& p) {
    return p.penalty == TokenPenalty::kSumLogRatio ||
           (p.family != TokenFamily::kLogProb && p.level != TokenLevel::kToken);
}

// The sums of that pass over the n > 0 tokens of a response.
struct ResponseSums {
    double d, rho, positive, negative;  // the last two: of advantages of that sign
};

// `a`: the advantage of the response, if tokens have none of their own.
PE_FORMULA WholeResponse whole_response(const TokenLossArgs& p, const ResponseSums& sums, double a,
                                        int64_t n) {
    WholeResponse w;
    w.rho = sums.rho;
    w.x = sums.d;
    if (p.level == TokenLevel::kMean) w.x /= static_cast<double>(n);
    if (p.family != TokenFamily::kClipped || p.level == TokenLevel::kToken) return w;
    // The clipped loss of one ratio is linear in the sums of positive and of negative advantages.
    double positive = sums.positive, negative = sums.negative;
    if (p.level == TokenLevel::kSum) positive = a < 0.0 ? 0.0 : a, negative = a < 0.0 ? a : 0.0;
    const TokenSlope<double> up = clipped(p, w.x, 1.0), down = clipped(p, w.x, -1.0);
    w.loss = up.value * positive - down.value * negative;
    w.slope = up.slope * positive - down.slope * negative;
    if (p.level == TokenLevel::kMean) w.slope /= static_cast<double>(n);
    return w;
}

// Losses and slopes of tokens before the factor. Where all is 0 past a response's end, so is the loss.
template <typename D>
PE_FORMULA TokenSlope<D> token_losses(const TokenLossArgs& p, const WholeResponse& w, D lp, D d,
                                      D rho, D a) {
    TokenSlope<D> l{D{}, all_of<D>(w.slope)};
    if (p.family == TokenFamily::kLogProb) {
        l = {-a * lp, -a};
    } else if (p.family == TokenFamily::kTapered) {
        const D c = -a * taper(p.level == TokenLevel::kToken ? d : all_of<D>(w.x), a);
        l = {c * lp, c};
    } else if (p.level == TokenLevel::kToken) {
        l = clipped(p, d, a);
    }
    if (p.penalty == TokenPenalty::kNone) return l;
    TokenSlope<D> q;
    if (p.penalty == TokenPenalty::kK3) {
        q = k3(rho);
    } else {
        const D r = p.penalty == TokenPenalty::kLogRatio ? rho : all_of<D>(w.rho);
        q = {r * lp, r};
    }
    return {l.value + p.beta * q.value, l.slope + p.beta * q.slope};
}

}  // namespace
}  // namespace pe
