// token_loss on every instruction set and on CUDA's twin: float64 losses and slopes of each family, level and penalty, bits,
// threads, nothing written outside.
#include <algorithm>

#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/token_loss.h"

namespace native {
namespace {

using pe::DType;
using pe::TokenFamily;
using pe::TokenLevel;
using pe::TokenPenalty;

struct Case {
    int64_t S, N = 0;
    bool per_token;
    Wide cu_seqlens, factor, wide_advantages;
    Matrix policy, old, reference, advantages;

    Case(const std::vector<int64_t>& lengths, bool of_tokens)
        : S(static_cast<int64_t>(lengths.size())),
          N(total(lengths)),
          per_token(of_tokens),
          cu_seqlens(S + 1),
          factor(S),
          wide_advantages(of_tokens ? N : S),
          policy(floats(N)),
          old(floats(N)),
          reference(floats(N)),
          advantages(floats(of_tokens ? N : S)) {
        int64_t end = 0, s = 0;
        cu_seqlens.i64()[0] = 0;
        for (const int64_t n : lengths) cu_seqlens.i64()[++s] = end += n;
        Rng rng(static_cast<uint64_t>(N) + 3);
        policy.fill_normal(rng), advantages.fill_normal(rng);
        for (int64_t i = 0; i < N; ++i) {
            old.set(0, i, policy.get(i) + 0.3f * rng.normal());
            reference.set(0, i, policy.get(i) + 0.3f * rng.normal());
        }
        for (int64_t i = 0; i < S; ++i) factor.f64()[i] = rng.uniform();
        for (int64_t i = 0; i < wide_advantages.n; ++i)
            wide_advantages.f64()[i] = static_cast<double>(advantages.get(i));
    }
    static int64_t total(const std::vector<int64_t>& lengths) {
        int64_t sum = 0;
        for (const int64_t n : lengths) sum += n;
        return sum;
    }
    double a(int64_t s, int64_t i) const {
        return static_cast<double>(advantages.get(per_token ? i : s));
    }
    double d(int64_t i) const { return static_cast<double>(policy.get(i)) - old.get(i); }
    double rho(int64_t i) const { return static_cast<double>(policy.get(i)) - reference.get(i); }
};

struct Rule {
    TokenFamily family;
    TokenLevel level;
    TokenPenalty penalty;
};

constexpr double kLow = 0.15, kHigh = 0.25, kDual = 1.4, kBeta = 0.3;

// The instruction set that is active, or CUDA on the host.
using Device = void (*)(const pe::TokenLossArgs&);
const Device kCpu = [](const pe::TokenLossArgs& a) { pe::cpu::token_loss(a); };
const Device kCuda = [](const pe::TokenLossArgs& a) {
    CHECK(pe::cuda::token_loss(a, nullptr) == cudaSuccess, "launch");
};

struct Result {
    Wide losses, logps, log_ratio, kl;
    Matrix dlogps;

    // `bare`: without what may be null, and with advantages in f64.
    Result(Device device, const Case& c, const Rule& r, bool bare = false)
        : losses(c.S), logps(c.S), log_ratio(c.S), kl(c.S), dlogps(floats(c.N)) {
        pe::TokenLossArgs args;
        args.family = r.family, args.level = r.level, args.penalty = r.penalty;
        args.low = kLow, args.high = kHigh, args.dual = kDual, args.beta = kBeta;
        args.per_token = c.per_token;
        args.policy = c.policy.vector(), args.old = c.old.vector();
        args.reference = c.reference.vector(), args.cu_seqlens = c.cu_seqlens.integers();
        args.advantages = c.advantages.vector(), args.factor = c.factor.doubles();
        args.losses = losses.doubles(), args.dlogps = dlogps.vector();
        args.logps = logps.doubles(), args.log_ratio = log_ratio.doubles();
        args.kl = kl.doubles();
        if (bare) {
            args.old = args.reference = args.factor = args.log_ratio = args.kl = {};
            args.advantages = c.wide_advantages.doubles();
        }
        device(args);
    }
    bool same(const Result& o) const {
        return losses.same(o.losses) && logps.same(o.logps) && log_ratio.same(o.log_ratio) &&
               kl.same(o.kl) && dlogps.same_bits(o.dlogps);
    }
};

struct Exact {
    double value, slope;
};

Exact clipped(double x, double a) {
    const double r = std::exp(x);
    if (a >= 0) return {-a * std::min(r, 1 + kHigh), r <= 1 + kHigh ? -a * r : 0.0};
    const double v = std::min(std::max(r, 1 - kLow), kDual);
    return {-a * v, r >= 1 - kLow && r < kDual ? -a * r : 0.0};
}

// Adds the response's losses and slopes up the slow way.
void check_response(const Case& c, const Rule& r, const Result& got, int64_t s) {
    const int64_t begin = c.cu_seqlens.i64()[s], end = c.cu_seqlens.i64()[s + 1];
    const auto n = static_cast<double>(end - begin);
    double d = 0, rho = 0, lp = 0, loss = 0, shared = 0;
    for (int64_t i = begin; i < end; ++i) {
        d += c.d(i), rho += c.rho(i), lp += static_cast<double>(c.policy.get(i));
    }
    const bool one = r.family == TokenFamily::kClipped && r.level == TokenLevel::kSum;
    if (one && n > 0) {
        const Exact e = clipped(d, c.a(s, begin));
        loss = e.value, shared = e.slope;
    }
    const double mean = n > 0 ? d / n : 0.0;
    if (r.family == TokenFamily::kClipped && r.level == TokenLevel::kMean) {
        for (int64_t i = begin; i < end; ++i) shared += clipped(mean, c.a(s, i)).slope / n;
    }
    for (int64_t i = begin; i < end; ++i) {
        const double a = c.a(s, i), p = static_cast<double>(c.policy.get(i));
        const double x = r.level == TokenLevel::kToken  ? c.d(i)
                         : r.level == TokenLevel::kMean ? mean
                                                        : d;
        Exact e{0.0, shared};
        if (r.family == TokenFamily::kLogProb) {
            e = {-a * p, -a};
        } else if (r.family == TokenFamily::kTapered) {
            const double w = a < 0 ? std::exp(std::min(x, 0.0)) : 1.0;
            e = {-w * a * p, -w * a};
        } else if (!one) {
            e.value = clipped(x, a).value;
            if (r.level == TokenLevel::kToken) e.slope = clipped(x, a).slope;
        }
        if (r.penalty == TokenPenalty::kK3) {
            e.value += kBeta * (std::expm1(-c.rho(i)) + c.rho(i));
            e.slope -= kBeta * std::expm1(-c.rho(i));
        } else if (r.penalty != TokenPenalty::kNone) {
            const double w = r.penalty == TokenPenalty::kLogRatio ? c.rho(i) : rho;
            e.value += kBeta * w * p, e.slope += kBeta * w;
        }
        loss += e.value;
        const double slope = c.factor.f64()[s] * e.slope;
        SHARE(got.dlogps.get(i), slope, 2 * kUnit * std::fabs(slope) + 1e-11, "token_loss dlogps");
    }
    const double bound = 1e-12 * (1 + n) * (1 + std::fabs(loss));
    SHARE(got.losses.f64()[s], loss, bound, "token_loss losses");
    SHARE(got.logps.f64()[s], lp, 1e-12 * (1 + n), "token_loss logps");
    SHARE(got.log_ratio.f64()[s], mean, 1e-12 * (1 + n), "token_loss log_ratio");
    SHARE(got.kl.f64()[s], rho, 1e-12 * (1 + n), "token_loss kl");
}

// The CPU's result was held against float64.
void check_cuda(const Case& c, const Rule& r, const Result& cpu, const Options& options) {
    CHECK(Result(kCuda, c, r).same(cpu), "token_loss: cuda has the CPU's bits");
    if (options.small) return;
    cuda_on_host::set_reversed(true);
    CHECK(Result(kCuda, c, r).same(cpu), "token_loss: threads in another order");
    cuda_on_host::set_reversed(false);
}

void run(const Options& options, const Case& c, const Rule& r) {
    std::vector<Result> first;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        pe::set_num_threads(1);
        first.emplace_back(kCpu, c, r);
        for (int64_t s = 0; s < c.S; ++s) check_response(c, r, first.back(), s);
        CHECK(first.back().same(first[0]), "token_loss: every instruction set");
        pe::set_num_threads(2);
        CHECK(Result(kCpu, c, r).same(first[0]), "token_loss: two threads");
    }
    pe::set_num_threads(1);
    if (options.cuda) check_cuda(c, r, first[0], options);
    if (r.family != TokenFamily::kLogProb || r.penalty != TokenPenalty::kNone) return;
    const Result bare(kCpu, c, r, true);
    CHECK(bare.losses.same(first[0].losses) && bare.logps.same(first[0].logps), "token_loss: bare");
    if (options.cuda) CHECK(Result(kCuda, c, r, true).same(bare), "token_loss: bare on cuda");
}

}  // namespace

void test_token_loss(const Options& options) {
    const std::vector<std::vector<int64_t>> all = {
        {}, {0}, {0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 0}, {4099, 0, 5000, 3}};
    for (const auto& lengths : all) {
        for (const bool per_token : {false, true}) {
            const Case c(lengths, per_token);
            for (int family = 0; family < 3; ++family) {
                for (int level = 0; level < 3; ++level) {
                    for (int penalty = 0; penalty < 4; ++penalty) {
                        if (per_token && family == 0 && level == 2) continue;
                        run(options, c,
                            {static_cast<TokenFamily>(family), static_cast<TokenLevel>(level),
                             static_cast<TokenPenalty>(penalty)});
                    }
                }
            }
        }
    }
    printf("  token_loss %zu cases of 36 losses\n", 2 * all.size());
}

}  // namespace native
