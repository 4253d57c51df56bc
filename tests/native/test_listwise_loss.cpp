// listwise_loss on every instruction set and on CUDA's twin: float64 losses, slopes by differences, bits, threads, nothing
// written outside memory and workspace.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/listwise_loss.h"

namespace native {
namespace {

using pe::DType;
using pe::ListFamily;

constexpr double kBeta = 0.2, kTemperature = 0.7;

struct Case {
    int64_t G, S;
    Wide groups, index, policy, weight;
    Matrix reference, values;

    explicit Case(const std::vector<int64_t>& sizes)
        : G(static_cast<int64_t>(sizes.size())),
          S(std::accumulate(sizes.begin(), sizes.end(), int64_t{0})),
          groups(G + 1),
          index(S),
          policy(S),
          weight(G),
          reference(floats(S)),
          values(floats(S)) {
        int64_t end = 0, g = 0;
        groups.i64()[0] = 0;
        for (const int64_t n : sizes) groups.i64()[++g] = end += n;
        Rng rng(static_cast<uint64_t>(S) + 9);
        reference.fill_normal(rng, 5.0f);
        for (int64_t j = 0; j < S; ++j) {
            policy.f64()[j] = reference.get(j) + 3.0 * static_cast<double>(rng.normal());
            values.set(0, j, static_cast<float>(rng.below(6)) / 4.0f);
            index.i64()[j] = j;
        }
        for (int64_t j = S - 1; j > 0; --j)
            std::swap(index.i64()[j], index.i64()[rng.below(j + 1)]);
        for (int64_t k = 0; k < G; ++k) weight.f64()[k] = rng.uniform();
    }
};

// Group g of another case, in the order of its places.
Case alone(const Case& c, int64_t g) {
    const int64_t begin = c.groups.i64()[g], n = c.groups.i64()[g + 1] - begin;
    Case part({n});
    part.weight.f64()[0] = c.weight.f64()[g];
    for (int64_t k = 0; k < n; ++k) {
        const int64_t j = c.index.i64()[begin + k];
        part.policy.f64()[k] = c.policy.f64()[j], part.index.i64()[k] = k;
        part.reference.set(0, k, c.reference.get(j)), part.values.set(0, k, c.values.get(j));
    }
    return part;
}

// The instruction set that is active, or CUDA on the host.
struct Device {
    int64_t (*bytes)(const pe::ListwiseLossArgs&);
    void (*loss)(const pe::ListwiseLossArgs&);
};

const Device kCpu{pe::cpu::listwise_loss_bytes, [](const auto& a) { pe::cpu::listwise_loss(a); }};
const Device kCuda{pe::cuda::listwise_loss_bytes, [](const auto& a) {
                       CHECK(pe::cuda::listwise_loss(a, nullptr) == cudaSuccess, "launch");
                   }};

struct Result {
    Wide losses, dsums;
    Wide ranking;

    Result(const Device& device, const Case& c, ListFamily family, bool mean)
        : losses(c.G), dsums(c.S), ranking(3 * c.G) {
        pe::ListwiseLossArgs args;
        args.family = family, args.mean = mean;
        args.beta = kBeta, args.temperature = kTemperature;
        args.policy = c.policy.doubles(), args.reference = c.reference.vector();
        args.values = c.values.vector(), args.groups = c.groups.integers();
        args.index = c.index.integers(), args.weight = c.weight.doubles();
        args.losses = losses.doubles(), args.dsums = dsums.doubles();
        args.ranking = {ranking.f64(), DType::kF64, 3, c.G, c.G};
        args.threads = pe::num_threads();
        const Memory workspace(device.bytes(args));
        args.workspace = workspace.data();
        device.loss(args);
    }
    bool same(const Result& o) const {
        return losses.same(o.losses) && dsums.same(o.dsums) && ranking.same(o.ranking);
    }
};

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

double logsumexp(const std::vector<double>& v, size_t begin = 0) {
    const double most = *std::max_element(v.begin() + static_cast<int64_t>(begin), v.end());
    double sum = 0;
    for (size_t k = begin; k < v.size(); ++k) sum += std::exp(v[k] - most);
    return most + std::log(sum);
}

std::vector<size_t> falling(const std::vector<double>& v) {
    std::vector<size_t> order(v.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return v[i] > v[j]; });
    return order;
}

double pairs(ListFamily family, bool mean, const std::vector<double>& s,
             const std::vector<double>& x, const std::vector<size_t>& by_score) {
    std::vector<double> discount(s.size());
    for (size_t k = 0; k < s.size(); ++k)
        discount[by_score[k]] = 1.0 / std::log(static_cast<double>(k) + 2.0);
    double loss = 0;
    int count = 0;
    for (size_t i = 0; i < s.size(); ++i) {
        for (size_t j = 0; j < s.size(); ++j) {
            if (!(x[i] > x[j])) continue;
            const double swap =
                std::fabs(std::exp2(x[i]) - std::exp2(x[j])) * std::fabs(discount[i] - discount[j]);
            loss += (family == ListFamily::kPairs ? 1.0 : swap) * softplus(s[j] - s[i]);
            ++count;
        }
    }
    return mean && count > 0 ? loss / count : loss;
}

// The loss of scores; ranks by score are given, since they take no slope.
double exact(ListFamily family, bool mean, const std::vector<double>& s,
             const std::vector<double>& x, const std::vector<size_t>& by_score) {
    const size_t K = s.size();
    if (family == ListFamily::kPairs || family == ListFamily::kLambdaPairs)
        return pairs(family, mean, s, x, by_score);
    double loss = 0;
    if (family == ListFamily::kPlackettLuce) {
        std::vector<double> ranked;
        for (const size_t k : falling(x)) ranked.push_back(s[k]);
        for (size_t k = 0; k < K; ++k) loss += logsumexp(ranked, k) - ranked[k];
        return loss;
    }
    std::vector<double> share = x;
    const double total = std::accumulate(x.begin(), x.end(), 0.0);
    for (double& v : share) v = family == ListFamily::kSoftmax ? v : v / kTemperature;
    const double lse = logsumexp(share);
    for (double& v : share)
        v = family != ListFamily::kSoftmax ? std::exp(v - lse) : total > 0 ? v / total : 0.0;
    for (size_t k = 0; k < K; ++k) {
        if (family == ListFamily::kNca) {
            loss += share[k] * softplus(-s[k]) + softplus(s[k]) / static_cast<double>(K);
        } else {
            loss += share[k] * (logsumexp(s) - s[k]);
        }
    }
    return loss;
}

void check_group(const Case& c, const Result& r, ListFamily family, bool mean, int64_t g) {
    const int64_t begin = c.groups.i64()[g], end = c.groups.i64()[g + 1];
    std::vector<double> s, x;
    for (int64_t k = begin; k < end; ++k) {
        const int64_t j = c.index.i64()[k];
        s.push_back(kBeta * (c.policy.f64()[j] - static_cast<double>(c.reference.get(j))));
        x.push_back(static_cast<double>(c.values.get(j)));
    }
    const auto by_score = falling(s);
    const double loss = s.empty() ? 0.0 : exact(family, mean, s, x, by_score);
    SHARE(r.losses.f64()[g], loss, 1e-11 * (1 + std::fabs(loss)), "listwise_loss losses");
    if (s.size() > 40) return;  // differences take their time
    for (size_t k = 0; k < s.size(); ++k) {
        constexpr double kStep = 1e-5;
        auto up = s, down = s;
        up[k] += kStep, down[k] -= kStep;
        const double slope =
            (exact(family, mean, up, x, by_score) - exact(family, mean, down, x, by_score)) /
            (2 * kStep);
        const int64_t j = c.index.i64()[begin + static_cast<int64_t>(k)];
        SHARE(r.dsums.f64()[j], c.weight.f64()[g] * kBeta * slope, 1e-8 * (1 + std::fabs(loss)),
              "listwise_loss dsums");
    }
}

// CUDA's twin against the CPU: in one batch, backwards, and each group without the others.
void check_cuda(const Options& options, const Case& c, ListFamily family, bool mean,
                const Result& cpu) {
    const bool large = c.S + c.G > 500;  // once, or not at all: fibers are slow
    if (large && (options.small || mean)) return;
    CHECK(Result(kCuda, c, family, mean).same(cpu), "listwise_loss: cuda has the CPU's bits");
    if (large || options.small) return;
    cuda_on_host::set_reversed(true);
    CHECK(Result(kCuda, c, family, mean).same(cpu), "listwise_loss: threads in another order");
    cuda_on_host::set_reversed(false);
    for (int64_t g = 0; g < c.G; ++g) {
        const Case part = alone(c, g);
        const Result r(kCuda, part, family, mean);
        CHECK(r.losses.f64()[0] == cpu.losses.f64()[g], "listwise_loss: a group alone");
        for (int64_t k = 0; k < part.S; ++k) {
            const int64_t j = c.index.i64()[c.groups.i64()[g] + k];
            CHECK(r.dsums.f64()[k] == cpu.dsums.f64()[j], "listwise_loss: a group alone, dsums");
        }
    }
}

void run(const Options& options, const Case& c, ListFamily family, bool mean) {
    std::vector<Result> first;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        pe::set_num_threads(1);
        first.emplace_back(kCpu, c, family, mean);
        for (int64_t g = 0; g < c.G; ++g) check_group(c, first.back(), family, mean, g);
        CHECK(first.back().same(first[0]), "listwise_loss: every instruction set");
        pe::set_num_threads(2);
        CHECK(Result(kCpu, c, family, mean).same(first[0]), "listwise_loss: two threads");
    }
    pe::set_num_threads(1);
    if (options.cuda) check_cuda(options, c, family, mean, first[0]);
}

}  // namespace

void test_listwise_loss(const Options& options) {
    std::vector<std::vector<int64_t>> all = {{}, {0}, {1}, {0, 1, 2, 3, 4, 8, 9, 24, 25, 40, 0}};
    all.push_back({300, 2, 257});
    all.push_back(std::vector<int64_t>(700, 4));
    all.push_back(std::vector<int64_t>(600, 0));
    for (const auto& sizes : all) {
        const Case c(sizes);
        for (int family = 0; family < 6; ++family) {
            for (const bool mean : {false, true}) {
                run(options, c, static_cast<ListFamily>(family), mean);
            }
        }
    }
    printf("  listwise_loss %zu cases of 6 families\n", all.size());
}

}  // namespace native
