// token_loss: losses[s] = sum of l(n) over n in [cu_seqlens[s], cu_seqlens[s + 1]), with its slopes, a policy-gradient loss
//              l(n) and a penalty; d = policy - old, rho = policy - reference, A the advantage,
//              x(n) = d(n), or the mean or the sum of d over the response, r = e^x with x cut at -20 and 20
//              clipped   -min(r A, clip(r, 1 - low, 1 + high) A); where A < 0 at most -dual A; one l a response where x
//                        is the sum
//              log_prob  -A policy
//              tapered   -A policy, times min(1, e^x) where A < 0; no slope through e^x
//              penalties beta (e^-rho - 1 + rho), the exponent cut at 80; beta rho policy, rho of the token or summed
//                        over the response and without a slope
// shapes       policy, old, reference, dlogps (N,), old or reference null; cu_seqlens (S + 1,), rising from 0 to N;
//              advantages (S,), or (N,) where per_token; factor (S,) or null: 1; losses, logps, log_ratio, kl (S,)
// dtypes       policy, old, reference, dlogps f32; advantages f32 or f64; the rest f64; cu_seqlens i64; made in f64
// aliasing     none
// gradient     dlogps[n] = factor[s] d losses[s] / d policy[n] is assigned (=); at the ends of a clip the slope is that
//              inside it, at r == dual half of it, as torch's clamp and minimum have it
// metrics      logps, log_ratio and kl are assigned (=) the sum of policy, the mean of d and the sum of rho, the latter
//              two where old and reference are given. A response without tokens has 0 everywhere
// determinism  cpu: bitwise for any thread count and batch, the same bits on every instruction set: nothing is fused,
//              token n of a response goes on with chain n mod 8, and the chains are joined in one order; cuda: the same
//              bits: e^x is no library's
// source       arXiv:1707.06347 (clipped), 1912.09729 (dual), 2402.03300 (k3), 2507.18071 (mean), 2402.14740 (sum),
//              2503.14286 (tapered), 2312.00886 (log_ratio)
// proof        tests/reference/token_loss.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

enum class TokenFamily : int { kClipped, kLogProb, kTapered };
enum class TokenLevel : int { kToken, kMean, kSum };
enum class TokenPenalty : int { kNone, kK3, kLogRatio, kSumLogRatio };

struct TokenLossArgs {
    TokenFamily family = TokenFamily::kClipped;
    TokenLevel level = TokenLevel::kToken;
    TokenPenalty penalty = TokenPenalty::kNone;
    double low = 0.2, high = 0.2;
    double dual = 0.0;  // > 1; +inf: no bound
    double beta = 0.0;
    bool per_token = false;
    VectorView policy;
    VectorView old;        // or null; not with kClipped and kTapered
    VectorView reference;  // or null; not with a penalty
    VectorView cu_seqlens;
    VectorView advantages;
    VectorView factor;  // or null
    VectorView losses;
    VectorView dlogps;
    VectorView logps;
    VectorView log_ratio;  // null where old is
    VectorView kl;         // null where reference is
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(token_loss, TokenLossArgs)
}  // namespace cpu

namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t.
int token_loss(const TokenLossArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
