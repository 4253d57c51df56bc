// lion on every instruction set and on CUDA's twin: float64 values, bits, zeros, nothing written
// outside.
#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/lion.h"

namespace native {
namespace {

const pe::LionScalars kScalars{.grad_scale = 0.5f,
                               .decay = 0.999f,
                               .lr = 0.01f,
                               .one_minus_beta1 = 0.1f,
                               .one_minus_beta2 = 0.01f};

struct State {
    Matrix param, grad, m;

    explicit State(int64_t n) : param(floats(n)), grad(floats(n)), m(floats(n)) {
        Rng rng(static_cast<uint64_t>(n) + 5);
        for (Matrix* t : {&param, &grad, &m}) t->fill_normal(rng);
    }
    bool same(const State& other) const {
        return param.same_bits(other.param) && m.same_bits(other.m);
    }
};

// One device: an instruction set, or CUDA on the host.
struct Device {
    std::string name;
    bool fma;
    void (*step)(const pe::LionArgs&);
};

const Device kCpu{"cpu", true, [](const auto& a) { pe::cpu::lion_step(a); }};
const Device kCuda{"cuda", true, [](const auto& a) {
                       CHECK(pe::cuda::lion_step(a, nullptr) == cudaSuccess, "launch");
                   }};

pe::VectorView part(const Matrix& m, int64_t begin, int64_t end) {
    return {static_cast<float*>(m.view().data) + begin, pe::DType::kF32, end - begin};
}

// Elements [begin, end) of the state.
void step(const Device& device, State& s, int64_t begin, int64_t end) {
    device.step({.param = part(s.param, begin, end),
                 .grad = part(s.grad, begin, end),
                 .exp_avg = part(s.m, begin, end),
                 .scalars = kScalars});
}

double check_values(const State& before, const State& after) {
    double worst = 0;
    for (int64_t i = 0; i < before.param.cols(); ++i) {
        const double p = before.param.get(i), m = before.m.get(i);
        const double g = static_cast<double>(before.grad.get(i)) * kScalars.grad_scale;
        const double size = std::fabs(m) + std::fabs(g);
        const double c = m + kScalars.one_minus_beta1 * (g - m);
        const double moved = p * kScalars.decay - std::copysign(kScalars.lr, c);
        const std::string what = "lion at " + std::to_string(i);
        if (std::fabs(c) > 4 * kUnit * size) {  // else its sign is rounding
            const double bound = 2 * kUnit * (std::fabs(p) + kScalars.lr);
            worst = std::max(worst, SHARE(after.param.get(i), moved, bound, what + " p"));
        }
        const double want = m + kScalars.one_minus_beta2 * (g - m);
        worst = std::max(worst, SHARE(after.m.get(i), want, 4 * kUnit * size, what + " m"));
    }
    return worst;
}

// Again, in two calls, with two threads or with threads in another order.
void check_bits(const Device& device, int64_t n, const State& whole) {
    const auto repeat = [&](int64_t cut, const char* what) {
        State s(n);
        step(device, s, 0, cut);
        step(device, s, cut, n);
        CHECK(s.same(whole), "lion on " + device.name + " n " + std::to_string(n) + ": " + what);
    };
    repeat(n / 3, "in two calls");
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

// Where both terms are 0 the weight only decays, and what is NaN stays where it is.
void check_special(const Device& device) {
    State s(3), spoiled(3);
    for (State* t : {&s, &spoiled}) {
        t->param.set(0, 0, 2.0f);
        t->grad.set(0, 0, 0.0f);
        t->m.set(0, 0, 0.0f);
    }
    spoiled.grad.set(0, 1, NAN);
    step(device, s, 0, 3);
    step(device, spoiled, 0, 3);
    CHECK(s.param.get(0) == 2.0f * kScalars.decay && s.m.get(0) == 0.0f, device.name);
    CHECK(std::isnan(spoiled.m.get(1)) && std::isfinite(spoiled.param.get(1)), device.name);
    for (const int64_t i : {0, 2}) {
        CHECK(s.param.get(i) == spoiled.param.get(i) && s.m.get(i) == spoiled.m.get(i),
              device.name);
    }
}

}  // namespace

void test_lion(const Options& options) {
    pe::set_num_threads(1);
    std::vector<int64_t> sizes(std::begin(kSizes), std::end(kSizes));
    for (const int64_t n : {256, 257, 140000}) sizes.push_back(n);
    double worst = 0;
    for (const int64_t n : sizes) {
        const bool large = n > 10'000;  // once on CUDA's twin: fibers are slow
        std::vector<State> fma;
        const auto check = [&](const Device& device) {
            const State before(n);
            State s(n);
            step(device, s, 0, n);
            worst = std::max(worst, check_values(before, s));
            if (device.name != "cuda" || !(large || options.small)) check_bits(device, n, s);
            if (!device.fma) return;
            if (!fma.empty())
                CHECK(s.same(fma[0]), "lion: " + device.name + " and others with FMA");
            fma.push_back(std::move(s));
        };
        for (const auto isa : isas(options)) {
            pe::cpu::set_active_isa(isa);
            Device device = kCpu;
            device.name = pe::cpu::isa_name(isa);
            device.fma = has_fma(isa);
            check(device);
            check_special(device);
        }
        if (options.cuda && !(large && options.small)) check(kCuda);
    }
    if (options.cuda) check_special(kCuda);
    printf("  lion %zu sizes, largest error / bound %.3f\n", sizes.size(), worst);
}

}  // namespace native
