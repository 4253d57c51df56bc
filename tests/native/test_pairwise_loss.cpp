// pairwise_loss on every instruction set and on CUDA's twin: float64 values and slopes of each family, sums by response,
// bits, nothing written outside.
#include <algorithm>

#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/pairwise_loss.h"

namespace native {
namespace {

using pe::DType;
using pe::PairFamily;

constexpr PairFamily kFamilies[] = {
    PairFamily::kLogistic, PairFamily::kSquare,      PairFamily::kHinge, PairFamily::kSigmoid,
    PairFamily::kLinear,   PairFamily::kExpLogistic, PairFamily::kExo};
constexpr int kCount = 7;

double parameter_of(PairFamily family) {
    if (family == PairFamily::kExpLogistic) return 0.5;
    return family == PairFamily::kExo ? 1e-3 : 0.0;
}

// Two operands of S responses (or of C without an index), one term of each family: coefficients an array of f32 and
// the number -0.5, the shift an array of f64.
struct Case {
    int64_t C, S;
    bool indexed;
    Wide policy, index0, index1, weight, shift;
    Matrix reference, coefficient;

    Case(int64_t comparisons, bool with_index)
        : C(comparisons),
          S(with_index ? (comparisons > 0 ? comparisons / 3 + 1 : 0) : comparisons),
          indexed(with_index),
          policy(S),
          index0(C),
          index1(C),
          weight(C),
          shift(C),
          reference(floats(S)),
          coefficient(floats(C)) {
        Rng rng(static_cast<uint64_t>(C) + 5);
        reference.fill_normal(rng, 3.0f), coefficient.fill_normal(rng);
        for (int64_t j = 0; j < S; ++j)
            policy.f64()[j] = reference.get(j) + 2.0 * static_cast<double>(rng.normal());
        for (int64_t c = 0; c < C; ++c) {
            index0.i64()[c] = rng.below(S), index1.i64()[c] = rng.below(S);
            weight.f64()[c] = rng.uniform(), shift.f64()[c] = rng.uniform();
        }
    }
    double rho(int k, int64_t c) const {
        const int64_t j = !indexed ? c : k == 0 ? index0.i64()[c] : index1.i64()[c];
        return policy.f64()[j] - static_cast<double>(reference.get(j));
    }
    double x(int64_t c) const {
        return static_cast<double>(coefficient.get(c)) * rho(0, c) - 0.5 * rho(1, c) +
               shift.f64()[c];
    }
};

// The instruction set that is active, or CUDA on the host.
using Device = void (*)(const pe::PairwiseLossArgs&);
const Device kCpu = [](const pe::PairwiseLossArgs& a) { pe::cpu::pairwise_loss(a); };
const Device kCuda = [](const pe::PairwiseLossArgs& a) {
    CHECK(pe::cuda::pairwise_loss(a, nullptr) == cudaSuccess, "launch");
};

double scale_of(int i) { return 1.0 + 0.25 * i; }

struct Result {
    Matrix losses, slopes;
    Wide dsums;

    Result(Device device, const Case& c, int first, int terms)
        : losses(floats(c.C)), slopes(DType::kF32, 2, c.C, 3), dsums(c.indexed ? c.S : 0) {
        pe::PairwiseLossArgs args;
        args.C = c.C, args.K = 2, args.I = terms;
        for (int k = 0; k < 2; ++k) {
            pe::PairOperand& operand = args.operands[k];
            operand.policy = c.policy.doubles(), operand.reference = c.reference.vector();
            if (c.indexed) operand.index = (k == 0 ? c.index0 : c.index1).integers();
        }
        for (int i = 0; i < terms; ++i) {
            pe::PairTerm& term = args.terms[i];
            term.family = kFamilies[first + i];
            term.parameter = parameter_of(term.family);
            term.coefficients[0] = {c.coefficient.vector().data, DType::kF32, 0.0};
            term.coefficients[1].value = -0.5;
            term.shift = {c.shift.f64(), DType::kF64, 0.0};
            term.scale.value = scale_of(first + i);
        }
        args.losses = losses.vector(), args.slopes = slopes.view();
        args.weight = {c.weight.f64(), DType::kF64, 0.0};
        if (c.indexed) args.dsums = dsums.doubles();
        device(args);
    }
    bool same(const Result& other) const {
        return losses.same_bits(other.losses) && slopes.same_bits(other.slopes) &&
               same_bytes(dsums.f64(), other.dsums.f64(), dsums.memory.bytes());
    }
};

struct Exact {
    double value, slope;
};

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }
double sigmoid(double x) { return std::exp(-softplus(-x)); }

Exact exact(PairFamily family, double x) {
    const double p = parameter_of(family), s = sigmoid(x), q = sigmoid(-x);
    switch (family) {
        case PairFamily::kLogistic: return {softplus(-x), -q};
        case PairFamily::kSquare: return {x * x, 2 * x};
        case PairFamily::kHinge: return {std::max(x, 0.0), x > 0 ? 1.0 : 0.0};
        case PairFamily::kSigmoid: return {s, s * q};
        case PairFamily::kLinear: return {x, 1.0};
        case PairFamily::kExpLogistic: {
            const double g = sigmoid(x / p), r = sigmoid(-x / p), e = std::exp(std::min(-x, 80.0));
            return {r * softplus(-x) + g * e,
                    g * r / p * (e - softplus(-x)) - r * q - (x < -80 ? 0.0 : g * e)};
        }
        case PairFamily::kExo: {
            const double a = std::log1p(-p), b = std::log(p);
            return {s * (-softplus(-x) - a) + q * (-softplus(x) - b), s * q * (x + b - a)};
        }
    }
    return {0, 0};
}

// Every term alone, against float64 with the rounding of x: 4 half ulps of what was added.
double check_values(Device device, const Case& c) {
    double worst = 0;
    for (int i = 0; i < kCount; ++i) {
        const Result r(device, c, i, 1);
        CHECK(r.slopes.padding_is_intact(), "pairwise_loss: between the rows");
        for (int64_t n = 0; n < c.C; ++n) {
            const double x = c.x(n), scale = scale_of(i), size = 1 + std::fabs(x);
            const Exact e = exact(kFamilies[i], x);
            const std::string what =
                "pairwise_loss family " + std::to_string(i) + " at " + std::to_string(n);
            // Values and slopes are at most e^-x large, or x^2, or log eps.
            const double large = (1 + std::fabs(e.value) + std::fabs(e.slope) + 7) * size;
            const double bound = 4 * kUnit * scale * large;
            worst = std::max(worst, SHARE(r.losses.get(n), scale * e.value, bound, what));
            for (int k = 0; k < 2; ++k) {
                const double a = k == 0 ? static_cast<double>(c.coefficient.get(n)) : -0.5;
                if (kFamilies[i] == PairFamily::kHinge && std::fabs(x) < 1e-5) continue;
                const double slope = r.slopes.get(k, n);
                worst = std::max(worst, SHARE(slope, scale * e.slope * a,
                                              bound * std::fabs(a) + 1e-30, what + " slope"));
            }
        }
    }
    return worst;
}

// dsums are the sums of the f32 slopes in order, to the last bit.
void check_dsums(const Case& c, const Result& r) {
    if (!c.indexed) return;
    std::vector<double> sums(static_cast<size_t>(c.S), 0.0);
    for (int64_t n = 0; n < c.C; ++n) {
        for (int k = 0; k < 2; ++k) {
            const int64_t j = (k == 0 ? c.index0 : c.index1).i64()[n];
            sums[static_cast<size_t>(j)] +=
                c.weight.f64()[n] * static_cast<double>(r.slopes.get(k, n));
        }
    }
    for (int64_t j = 0; j < c.S; ++j) {
        CHECK(sums[static_cast<size_t>(j)] == r.dsums.f64()[j],
              "pairwise_loss: dsums at " + std::to_string(j));
    }
}

// Far out: finite, whatever the family.
void check_extremes(Device device) {
    Case c(40, false);
    for (int64_t n = 0; n < c.C; ++n) {
        c.reference.set(0, n, 0.0f), c.coefficient.set(0, n, 1.0f), c.shift.f64()[n] = 0.0;
        c.policy.f64()[n] =
            2.0 * (n % 2 ? -1.0 : 1.0) * std::pow(10.0, 0.1 * static_cast<double>(n));
    }
    for (int i = 0; i < kCount; ++i) {
        const Result r(device, c, i, 1);
        for (int64_t n = 0; n < c.C; ++n) {
            CHECK(std::isfinite(r.losses.get(n)) && std::isfinite(r.slopes.get(0, n)),
                  "pairwise_loss family " + std::to_string(i) + ": finite");
        }
    }
}

// All operands and terms that there may be, in f32 and without references, one coefficient the number 0; three responses
// that every comparison is about, in dsums that other blocks have no part of.
struct Most {
    static constexpr int64_t kC = 300, kS = 3;
    Matrix policy = floats(kS), weight = floats(kC), losses = floats(kC);
    Matrix slopes = Matrix(DType::kF32, pe::kPairOperands, kC);
    Wide index = Wide(kC), dsums = Wide(kS);

    explicit Most(Device device) {
        Rng rng(7);
        policy.fill_normal(rng, 3.0f), weight.fill_normal(rng);
        for (int64_t c = 0; c < kC; ++c) index.i64()[c] = rng.below(kS);
        pe::PairwiseLossArgs args;
        args.C = kC, args.K = pe::kPairOperands, args.I = pe::kPairTerms;
        for (auto& operand : args.operands)
            operand.policy = policy.vector(), operand.index = index.integers();
        for (int i = 0; i < args.I; ++i) {
            pe::PairTerm& term = args.terms[i];
            term.family = kFamilies[i % kCount], term.parameter = parameter_of(term.family);
            term.scale.value = scale_of(i);
            for (int k = 0; k < args.K; ++k) term.coefficients[k].value = 0.1 * (k - i);
        }
        args.losses = losses.vector(), args.slopes = slopes.view(), args.dsums = dsums.doubles();
        args.weight = {weight.vector().data, DType::kF32, 0.0};
        device(args);
    }
    bool same(const Most& other) const {
        return losses.same_bits(other.losses) && slopes.same_bits(other.slopes) &&
               dsums.same(other.dsums);
    }
};

// `cpu`: of an instruction set with FMA, or null where this machine has none.
double check_cuda(const Case& c, const Result* cpu, const Options& options) {
    check_extremes(kCuda);
    const double worst = c.C > 111 ? 0.0 : check_values(kCuda, c);
    const Result all(kCuda, c, 0, kCount);
    check_dsums(c, all);
    if (cpu != nullptr) CHECK(all.same(*cpu), "pairwise_loss: cuda has the CPU's bits");
    if (options.small) return worst;
    cuda_on_host::set_reversed(true);
    CHECK(Result(kCuda, c, 0, kCount).same(all), "pairwise_loss: threads in another order");
    cuda_on_host::set_reversed(false);
    return worst;
}

}  // namespace

void test_pairwise_loss(const Options& options) {
    pe::set_num_threads(1);
    double worst = 0;
    for (const int64_t C : {0, 1, 15, 16, 17, 111, 4099, 9001}) {
        for (const bool indexed : {false, true}) {
            const Case c(C, indexed);
            std::vector<Result> fma;
            for (const auto isa : isas(options)) {
                pe::cpu::set_active_isa(isa);
                if (C < 9001) worst = std::max(worst, check_values(kCpu, c));
                check_extremes(kCpu);
                Result all(kCpu, c, 0, kCount);
                check_dsums(c, all);
                pe::set_num_threads(2);
                CHECK(Result(kCpu, c, 0, kCount).same(all), "pairwise_loss: two threads");
                pe::set_num_threads(1);
                if (!has_fma(isa)) continue;
                if (!fma.empty()) CHECK(all.same(fma[0]), "pairwise_loss: sets with FMA");
                fma.push_back(std::move(all));
            }
            if (options.cuda && !(options.small && C > 4099)) {
                const Result* cpu = fma.empty() ? nullptr : &fma[0];
                worst = std::max(worst, check_cuda(c, cpu, options));
            }
        }
    }
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        if (options.cuda && has_fma(isa))
            CHECK(Most(kCuda).same(Most(kCpu)), "pairwise_loss: most on cuda");
    }
    printf("  pairwise_loss %d families, largest error / bound %.3f\n", kCount, worst);
}

}  // namespace native
