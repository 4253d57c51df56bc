// adamw on every instruction set and on CUDA's twin: float64 values, bits, 8-bit codes, nothing
// written outside.
#include <algorithm>
#include <array>

#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/adamw.h"
#include "pyengine/ops/adamw_codes.h"

namespace native {
namespace {

using pe::DType;

// One device: an instruction set, or CUDA on the host.
struct Device {
    std::string name;
    bool fma;
    void (*step)(const pe::AdamWArgs&);
    void (*step_8bit)(const pe::AdamW8bitArgs&);
    void (*sum_squares)(const pe::AdamWSumSquaresArgs&);
};

const Device kCpu{"cpu", true, [](const auto& a) { pe::cpu::adamw_step(a); },
                  [](const auto& a) { pe::cpu::adamw_step_8bit(a); },
                  [](const auto& a) { pe::cpu::adamw_sum_squares(a); }};
const Device kCuda{
    "cuda", true,
    [](const auto& a) { CHECK(pe::cuda::adamw_step(a, nullptr) == cudaSuccess, "launch"); },
    [](const auto& a) { CHECK(pe::cuda::adamw_step_8bit(a, nullptr) == cudaSuccess, "launch"); },
    [](const auto& a) { CHECK(pe::cuda::adamw_sum_squares(a, nullptr) == cudaSuccess, "launch"); }};

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

// Values [begin, end) of a vector, whatever its elements.
pe::VectorView part(const pe::VectorView& v, int64_t begin, int64_t end) {
    return {static_cast<char*>(v.data) + begin * pe::dtype_bytes(v.dtype), v.dtype, end - begin};
}

// Both kinds of step on elements [begin, end): begin is a multiple of 256.
void step(const Device& device, State& s, int64_t begin, int64_t end,
          const pe::AdamWScalars& scalars = kScalars) {
    device.step({.param = part(s.param.vector(), begin, end),
                 .grad = part(s.grad.vector(), begin, end),
                 .exp_avg = part(s.m.vector(), begin, end),
                 .exp_avg_sq = part(s.v.vector(), begin, end),
                 .scalars = scalars});
}

void step_8bit(const Device& device, State& s, int64_t begin, int64_t end,
               const pe::AdamWScalars& scalars = kScalars) {
    const int64_t block = begin / pe::kAdamWBlock;
    device.step_8bit({.param = part(s.param.vector(), begin, end),
                      .grad = part(s.grad.vector(), begin, end),
                      .exp_avg = part(s.m_codes.view(), begin, end),
                      .exp_avg_absmax = part(s.m_absmax.vector(), block, s.m_absmax.cols()),
                      .exp_avg_sq = part(s.v_codes.view(), begin, end),
                      .exp_avg_sq_absmax = part(s.v_absmax.vector(), block, s.v_absmax.cols()),
                      .scalars = scalars});
}

void both(const Device& device, State& s, int64_t begin, int64_t end) {
    step(device, s, begin, end);
    step_8bit(device, s, begin, end);
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

double check_values(const Device& device, int64_t n) {
    const State before(n);
    State after(n);
    step(device, after, 0, n);
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
double check_values_8bit(const Device& device, int64_t n) {
    const State before(n);
    State after(n);
    step_8bit(device, after, 0, n);
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

using Squares = std::array<double, pe::kAdamWSquaresParts>;

Squares check_norm(const Device& device, const Matrix& grad) {
    Squares partial;
    double total = 0;
    long double exact_sum = 0;
    device.sum_squares({.grad = grad.vector(), .partial = partial.data()});
    for (const double x : partial) total += x;
    for (int64_t i = 0; i < grad.cols(); ++i)
        exact_sum += static_cast<long double>(grad.get(i)) * grad.get(i);
    const auto want = static_cast<double>(exact_sum);
    SHARE(total, want, 1e-14 * want, "adamw_sum_squares n " + std::to_string(grad.cols()));
    return partial;
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

// Again, in two calls, with two threads or with threads in another order.
void check_bits(const Device& device, int64_t n, const State& whole, const Squares& squares) {
    const auto repeat = [&](int64_t cut, const char* what) {
        State s(n);
        if (cut > 0) both(device, s, 0, cut);
        both(device, s, cut, n);
        const std::string text = "adamw on " + device.name + " n " + std::to_string(n) + ": ";
        CHECK(s.same(whole), text + what);
        CHECK(check_norm(device, s.grad) == squares, text + "squares, " + what);
    };
    repeat(n / 3 / pe::kAdamWBlock * pe::kAdamWBlock, "in two calls");
    if (device.name == "cuda") {
        cuda_on_host::set_reversed(true);
        repeat(0, "threads in another order");
        cuda_on_host::set_reversed(false);
        return;
    }
    pe::set_num_threads(2);
    repeat(0, "two threads");
    pe::set_num_threads(1);
}

// Moments that are the gradient and its square: beside every middle of two magnitudes, at 0, and
// beyond what float holds. 1, once in every block, makes the absmax 1.
State beside_thresholds(int64_t n) {
    State s(n);
    s.m_absmax.fill(0.0f);
    s.v_absmax.fill(0.0f);
    for (int64_t i = 0; i < n; ++i) {
        const bool is_signed = i % 2 == 0;  // else the root, whose square is beside a middle of v's
        const pe::AdamWCodes& codes = is_signed ? pe::kSignedCodes : pe::kUnsignedCodes;
        const int place = static_cast<int>(i / 6 % (is_signed ? 128 : 255));
        float x = (value(codes, place) + value(codes, place + 1)) / 2;
        x = i / 2 % 3 == 0 ? x : std::nextafter(x, i / 2 % 3 == 1 ? 0.0f : 2.0f);
        if (!is_signed) x = std::sqrt(x);
        s.grad.set(0, i, i % 256 == 0 ? 1.0f : i % 256 == 7 ? 0.0f : i % 5 == 0 ? -x : x);
    }
    return s;
}

void check_codes(const Device& device) {
    constexpr int64_t n = 1600;
    const pe::AdamWScalars scalars{.eps = 1e-6f};
    State s = beside_thresholds(n), by_cpu = beside_thresholds(n);
    step_8bit(kCpu, by_cpu, 0, n, scalars);
    step_8bit(device, s, 0, n, scalars);
    CHECK(s.same(by_cpu), "codes on " + device.name + " beside every threshold");
    for (int64_t i = 0; i < n; ++i) {  // no other place is nearer
        const double x = std::fabs(s.grad.get(i)) / s.m_absmax.get(i / pe::kAdamWBlock);
        const double off = std::fabs(std::fabs(s.m_value(i)) - x);
        for (int place = 0; place < 128; ++place)
            CHECK(off <= std::fabs(value(pe::kSignedCodes, place) - x), "the nearest code");
    }
    // An absmax stays finite, and one value that is not spoils no other's code.
    State bad = beside_thresholds(n), bad_by_cpu = beside_thresholds(n);
    for (State* t : {&bad, &bad_by_cpu}) {
        t->grad.set(0, 3, 1e30f);
        t->grad.set(0, 300, INFINITY);
        t->grad.set(0, 600, NAN);
    }
    step_8bit(kCpu, bad_by_cpu, 0, n, scalars);
    step_8bit(device, bad, 0, n, scalars);
    CHECK(bad.m_codes.same(bad_by_cpu.m_codes) && bad.v_codes.same(bad_by_cpu.v_codes) &&
              bad.m_absmax.same_bits(bad_by_cpu.m_absmax) &&
              bad.v_absmax.same_bits(bad_by_cpu.v_absmax),
          "codes on " + device.name + " beside values that are not finite");
}

// Parts of several slabs on CUDA, the last of them not full.
void check_long_norm(const Options& options) {
    Matrix grad = floats(300'001);
    Rng rng(11);
    grad.fill_normal(rng);
    const Squares squares = check_norm(kCpu, grad);
    if (!options.cuda) return;
    for (const bool reversed : {false, true}) {
        cuda_on_host::set_reversed(reversed);
        CHECK(check_norm(kCuda, grad) == squares, "adamw_sum_squares: a long gradient");
    }
    cuda_on_host::set_reversed(false);
}

double check_size(int64_t n, const Options& options) {
    const bool large = n > 10'000;  // once on CUDA's twin: fibers are slow
    double worst = 0;
    std::vector<State> fma;
    std::vector<Squares> squares;
    const auto check = [&](const Device& device) {
        worst = std::max({worst, check_values(device, n), check_values_8bit(device, n)});
        State s(n);
        both(device, s, 0, n);
        squares.push_back(check_norm(device, s.grad));
        CHECK(squares.back() == squares[0], "adamw_sum_squares: all devices have the same bits");
        if (device.name != "cuda" || !(large || options.small))
            check_bits(device, n, s, squares[0]);
        if (!device.fma) return;
        if (!fma.empty()) CHECK(s.same(fma[0]), "adamw: " + device.name + " and others with FMA");
        fma.push_back(std::move(s));
    };
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        Device device = kCpu;
        device.name = pe::cpu::isa_name(isa);
        device.fma = has_fma(isa);
        check(device);
    }
    if (options.cuda && !(large && options.small)) check(kCuda);
    return worst;
}

}  // namespace

void test_adamw(const Options& options) {
    pe::set_num_threads(1);
    check_table(pe::kSignedCodes, 129);
    check_table(pe::kUnsignedCodes, 256);
    double worst = 0;
    std::vector<int64_t> sizes(std::begin(kSizes), std::end(kSizes));
    for (const int64_t n : {255, 256, 257, 40000}) sizes.push_back(n);
    for (const int64_t n : sizes) worst = std::max(worst, check_size(n, options));
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        check_codes(kCpu);
    }
    if (options.cuda) check_codes(kCuda);
    check_long_norm(options);
    printf("  adamw %zu sizes, largest error / bound %.3f\n", sizes.size(), worst);
}

}  // namespace native
