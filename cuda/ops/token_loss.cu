// Layout  8 threads a response, thread i takes its tokens i, i+8, ...: the CPU's 8 chains, joined in its order, with the CPU's
//         formulas in f64, so both devices give the same bits, and a response does not depend on those beside it. A step
//         reads 32 contiguous bytes of each input. What a token's loss takes of the whole response is summed in a pass of
//         its own, after which all 8 threads hold the same totals. No shared memory, no barriers.
#include "pyengine/ops/token_loss.h"

#include "common/chains.cuh"
#include "common/launch.cuh"
#include "pyengine/ops/token_loss_families.h"

namespace pe::cuda {
namespace {

constexpr int kThreads = 64;  // few: responses are, too, and each block may have a multiprocessor
constexpr int kResponsesPerBlock = kThreads / kChains;

// One response; null inputs read as 0. One that is absent has no tokens and stays for the joins.
struct Response {
    const TokenLossArgs& p;
    int64_t s, begin, end;

    __device__ double policy(int64_t n) const { return ptr<float>(p.policy)[n]; }
    __device__ double d(int64_t n) const {
        return p.old.data != nullptr ? policy(n) - static_cast<double>(ptr<float>(p.old)[n]) : 0.0;
    }
    __device__ double rho(int64_t n) const {
        return p.reference.data != nullptr
                   ? policy(n) - static_cast<double>(ptr<float>(p.reference)[n])
                   : 0.0;
    }
    __device__ double advantage(int64_t n) const {
        const int64_t i = p.per_token ? n : s;
        return p.advantages.dtype == DType::kF64 ? ptr<double>(p.advantages)[i]
                                                 : ptr<float>(p.advantages)[i];
    }
};

__device__ inline WholeResponse sum_up(const TokenLossArgs& p, const Response& t) {
    double d = 0.0, rho = 0.0, positive = 0.0, negative = 0.0;
#pragma unroll 4
    for (int64_t n = t.begin + chain(); n < t.end; n += kChains) {
        d = d + t.d(n);
        rho = rho + t.rho(n);
        const double a = t.advantage(n);
        positive = positive + (a < 0.0 ? 0.0 : a);
        negative = negative + (a < 0.0 ? a : 0.0);
    }
    const ResponseSums sums{join_chains(d), join_chains(rho), join_chains(positive),
                            join_chains(negative)};
    if (t.begin == t.end) return {};
    return whole_response(p, sums, p.per_token ? 0.0 : t.advantage(t.begin), t.end - t.begin);
}

__global__ void __launch_bounds__(kThreads) token_loss_kernel(TokenLossArgs p) {
    const int64_t S = p.losses.size;
    const int64_t s = static_cast<int64_t>(blockIdx.x) * kResponsesPerBlock + threadIdx.x / kChains;
    const bool present = s < S;
    const int64_t* starts = ptr<int64_t>(p.cu_seqlens);
    const Response t{p, s, present ? starts[s] : 0, present ? starts[s + 1] : 0};
    const WholeResponse w = takes_two_passes(p) ? sum_up(p, t) : WholeResponse{};
    const double factor = present && p.factor.data != nullptr ? ptr<double>(p.factor)[s] : 1.0;
    double policy = 0.0, ratio = 0.0, kl = 0.0, loss = 0.0;
    for (int64_t n = t.begin + chain(); n < t.end; n += kChains) {
        const double lp = t.policy(n), d = t.d(n), rho = t.rho(n);
        policy = policy + lp;
        ratio = ratio + d;
        kl = kl + rho;
        const TokenSlope<double> l = token_losses(p, w, lp, d, rho, t.advantage(n));
        loss = loss + l.value;
        ptr<float>(p.dlogps)[n] = static_cast<float>(factor * l.slope);
    }
    policy = join_chains(policy), loss = join_chains(loss);
    ratio = join_chains(ratio), kl = join_chains(kl);
    if (!present || chain() != 0) return;
    const int64_t tokens = t.end - t.begin;
    ptr<double>(p.losses)[s] = loss + w.loss;
    ptr<double>(p.logps)[s] = policy;
    if (p.log_ratio.data != nullptr)
        ptr<double>(p.log_ratio)[s] = ratio / static_cast<double>(tokens > 0 ? tokens : 1);
    if (p.kl.data != nullptr) ptr<double>(p.kl)[s] = kl;
}

}  // namespace

int token_loss(const TokenLossArgs& p, void* stream) {
    if (p.losses.size == 0) return cudaSuccess;
    return launch(token_loss_kernel, dim3(ceil_div(p.losses.size, kResponsesPerBlock)), kThreads,
                  stream, p);
}

}  // namespace pe::cuda
