// adamw on every instruction set: float64 values, bits, 8-bit codes, nothing written outside.
#include <algorithm>

#include "check.h"
#include "pyengine/ops/adamw.h"
#include "pyengine/ops/adamw_codes.h"

namespace native {
namespace {

using pe::DType;

const pe::AdamWScalars kScalars{.grad_scale = 0.5f,
                                .decay = 0.999f,
                                .beta1 = 0.9f,
                                .one_minus_beta1 = 0.1f,
                                .beta2 = 0.99f,
                                .one_minus_beta2 = 0.01f,
                                .step_size = 0.02f,
                                .inverse_root = 3.0f,
                                .eps = 1e-6f};

// Exactly n bytes of codes.
struct Codes {
    Memory memory;
    int64_t n;

    explicit Codes(int64_t size) : memory(size), n(size) {}
    uint8_t* data() const { return static_cast<uint8_t*>(memory.data()); }
    pe::VectorView view() const { return {memory.data(), DType::kU8, n}; }
    bool same(const Codes& other) const {
        return same_bytes(data(), other.data(), static_cast<size_t>(n));
    }
};

// The magnitude in that place, by walking the decades.
float value(const pe::AdamWCodes& codes, int place) {
    if (place == 0) return 0.0f;
    int row = 0;
    while (row + 1 < pe::kRows && place >= codes.start[row + 1]) ++row;
    return codes.first[row] + codes.part[row] * static_cast<float>(place - codes.start[row]);
}

struct State {
    Matrix param, grad, m, v;
    Codes m_codes, v_codes;
    Matrix m_absmax, v_absmax;

    explicit State(int64_t n)
        : param(floats(n)),
          grad(floats(n)),
          m(floats(n)),
          v(floats(n)),
          m_codes(n),
          v_codes(n),
          m_absmax(floats((n + pe::kAdamWBlock - 1) / pe::kAdamWBlock)),
          v_absmax(floats((n + pe::kAdamWBlock - 1) / pe::kAdamWBlock)) {
        Rng rng(static_cast<uint64_t>(n) + 3);
        for (Matrix* t : {&param, &grad, &m, &v}) t->fill_normal(rng);
        for (int64_t i = 0; i < n; ++i) {
            v.set(0, i, v.get(i) * v.get(i));
            m_codes.data()[i] = static_cast<uint8_t>(rng.below(256));
            v_codes.data()[i] = static_cast<uint8_t>(rng.below(256));
        }
        for (Matrix* t : {&m_absmax, &v_absmax}) {
            for (int64_t i = 0; i < t->cols(); ++i)
                t->set(0, i, static_cast<float>(rng.uniform()) + 0.5f);
        }
    }

    float m_value(int64_t i) const {
        const int place = m_codes.data()[i] - 127;
        const float size = value(pe::kSignedCodes, place < 0 ? -place : place);
        return (place < 0 ? -size : size) * m_absmax.get(i / pe::kAdamWBlock);
    }
    float v_value(int64_t i) const {
        return value(pe::kUnsignedCodes, v_codes.data()[i]) * v_absmax.get(i / pe::kAdamWBlock);
    }
    bool same(const State& other) const {
        return param.same_bits(other.param) && m.same_bits(other.m) && v.same_bits(other.v) &&
               m_codes.same(other.m_codes) && v_codes.same(other.v_codes) &&
               m_absmax.same_bits(other.m_absmax) && v_absmax.same_bits(other.v_absmax);
    }
};

void step(State& s) {
    pe::cpu::adamw_step({.param = s.param.vector(),
                         .grad = s.grad.vector(),
                         .exp_avg = s.m.vector(),
                         .exp_avg_sq = s.v.vector(),
                         .scalars = kScalars});
}

void step_8bit(State& s) {
    pe::cpu::adamw_step_8bit({.param = s.param.vector(),
                              .grad = s.grad.vector(),
                              .exp_avg = s.m_codes.view(),
                              .exp_avg_absmax = s.m_absmax.vector(),
                              .exp_avg_sq = s.v_codes.view(),
                              .exp_avg_sq_absmax = s.v_absmax.vector(),
                              .scalars = kScalars});
}

struct Exact {
    double p, m, v;
};

Exact exact(double p, double grad, double m0, double v0) {
    const pe::AdamWScalars& s = kScalars;
    const double g = grad * s.grad_scale;
    const double m = static_cast<double>(s.beta1) * m0 + static_cast<double>(s.one_minus_beta1) * g;
    const double v =
        static_cast<double>(s.beta2) * v0 + static_cast<double>(s.one_minus_beta2) * g * g;
    return {p * s.decay - s.step_size * m / (std::sqrt(v) * s.inverse_root + s.eps), m, v};
}

double p_bound(const Exact& e, double p, double m_size) {
    const double root = std::sqrt(e.v) * kScalars.inverse_root + kScalars.eps;
    return 8 * kUnit * (std::fabs(p) + kScalars.step_size * m_size / root);
}

double check_values(int64_t n) {
    const State before(n);
    State after(n);
    step(after);
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double p = before.param.get(i), g = before.grad.get(i), m = before.m.get(i);
        const Exact e = exact(p, g, m, before.v.get(i));
        const double size = std::fabs(m) + std::fabs(g);
        const std::string what = "adamw n " + std::to_string(n) + " at " + std::to_string(i);
        worst = std::max(worst, SHARE(after.param.get(i), e.p, p_bound(e, p, size), what + " p"));
        worst = std::max(worst, SHARE(after.m.get(i), e.m, 4 * kUnit * size, what + " m"));
        worst = std::max(worst, SHARE(after.v.get(i), e.v, 6 * kUnit * e.v, what + " v"));
    }
    return worst;
}

// An 8-bit moment is at most half a gap of its neighbours away from what it should be.
double check_values_8bit(int64_t n) {
    const State before(n);
    State after(n);
    step_8bit(after);
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
        const std::string what = "adamw 8 bits n " + std::to_string(n) + " at " + std::to_string(i);
        const double p = before.param.get(i), g = before.grad.get(i), m = before.m_value(i);
        const Exact e = exact(p, g, m, before.v_value(i));
        const double size = std::fabs(m) + std::fabs(g);
        worst = std::max(worst, SHARE(after.param.get(i), e.p, p_bound(e, p, size), what + " p"));
        const double m_max = after.m_absmax.get(i / pe::kAdamWBlock),
                     v_max = after.v_absmax.get(i / pe::kAdamWBlock);
        // The widest gap is that of the top decade, 0.9 / 64 signed and 0.9 / 128 unsigned; -1, which
        // has no code, is half of one away from the lowest.
        const double m_gap = 0.9 / 64 * m_max, v_gap = 0.9 / 128 * v_max;
        SHARE(after.m_value(i), e.m, m_gap * 0.51 + 4 * kUnit * size, what + " m");
        SHARE(after.v_value(i), e.v, v_gap * 0.51 + 6 * kUnit * e.v, what + " v");
    }
    return worst;
}

double check_norm(int64_t n) {
    const State s(n);
    double partial[pe::kAdamWSquaresParts], total = 0;
    long double exact_sum = 0;
    pe::cpu::adamw_sum_squares({.grad = s.grad.vector(), .partial = partial});
    for (const double x : partial) total += x;
    for (int64_t i = 0; i < n; ++i)
        exact_sum += static_cast<long double>(s.grad.get(i)) * s.grad.get(i);
    const auto want = static_cast<double>(exact_sum);
    SHARE(total, want, 1e-14 * want, "adamw_sum_squares n " + std::to_string(n));
    return total;
}

// As many values as there are codes, ascending, and a decade begins after the middle of its neighbours.
void check_table(const pe::AdamWCodes& codes, int count) {
    for (int i = 1; i < count; ++i) {
        const double below = value(codes, i - 1), here = value(codes, i);
        CHECK(below < here, "values ascend");
        for (int row = 0; row < pe::kRows; ++row) {
            if (codes.start[row] != i) continue;
            CHECK(codes.edge[row] <= (below + here) / 2 &&
                      std::nextafter(codes.edge[row], 2.0f) > (below + here) / 2,
                  "an edge is the last float before the middle");
        }
    }
    CHECK(value(codes, count - 1) == 1.0f, "the last value is 1");
}

void check_bits(int64_t n) {
    State one(n), two(n);
    step(one), step_8bit(one);
    const double norm = check_norm(n);
    pe::set_num_threads(2);
    step(two), step_8bit(two);
    CHECK(one.same(two), "adamw: two threads, n " + std::to_string(n));
    CHECK(check_norm(n) == norm, "adamw_sum_squares: two threads");
    pe::set_num_threads(1);
}

}  // namespace

void test_adamw(const Options& options) {
    pe::set_num_threads(1);
    check_table(pe::kSignedCodes, 129);
    check_table(pe::kUnsignedCodes, 256);
    double worst = 0;
    std::vector<int64_t> sizes(std::begin(kSizes), std::end(kSizes));
    for (const int64_t n : {255, 256, 257, 40000}) sizes.push_back(n);
    for (const int64_t n : sizes) {
        std::vector<State> fma;
        for (const auto isa : isas(options)) {
            pe::cpu::set_active_isa(isa);
            worst = std::max({worst, check_values(n), check_values_8bit(n)});
            check_bits(n);
            State s(n);
            step(s), step_8bit(s);
            if (!has_fma(isa)) continue;
            if (!fma.empty()) CHECK(s.same(fma[0]), "adamw: instruction sets with FMA");
            fma.push_back(std::move(s));
        }
    }
    printf("  adamw %zu sizes, largest error / bound %.3f\n", sizes.size(), worst);
}

}  // namespace native
