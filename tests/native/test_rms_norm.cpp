// rms_norm on every instruction set and on CUDA's twin: float64 values, bits, strides, special
// values.
#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/rms_norm.h"

namespace native {
namespace {

using pe::DType;

constexpr float kEps = 1e-5f;

struct Case {
    int64_t N = 33, D = 111, pad = 0;
    DType x = DType::kF32, weight = DType::kF32, y = DType::kF32;
    float scale = 1.0f;

    std::string text() const {
        return "rms_norm N " + std::to_string(N) + " D " + std::to_string(D) + " pad " +
               std::to_string(pad) + " dtypes " + std::to_string(static_cast<int>(x)) +
               std::to_string(static_cast<int>(weight)) + std::to_string(static_cast<int>(y)) +
               " scale " + std::to_string(scale);
    }
};

struct Inputs {
    Matrix x, weight, dy, dweight;

    explicit Inputs(const Case& c)
        : x(c.x, c.N, c.D, c.pad),
          weight(c.weight, 1, c.D),
          dy(c.y, c.N, c.D, c.pad),
          dweight(floats(c.D)) {
        Rng rng(static_cast<uint64_t>(c.N * 1000 + c.D));
        x.fill_normal(rng, c.scale);
        weight.fill_normal(rng);
        dy.fill_normal(rng);
        dweight.fill_normal(rng);
    }
};

struct Results {
    Matrix y, rstd, dx, dweight;

    explicit Results(const Case& c, const Inputs& in)
        : y(c.y, c.N, c.D, c.pad),
          rstd(floats(c.N)),
          dx(c.x, c.N, c.D, c.pad),
          dweight(in.dweight.copy()) {}
    bool same_bits(const Results& other) const {
        return y.same_bits(other.y) && rstd.same_bits(other.rstd) && dx.same_bits(other.dx) &&
               dweight.same_bits(other.dweight);
    }
};

// One device: an instruction set, or CUDA on the host.
struct Device {
    std::string name;
    bool fma;
    void (*forward)(const pe::RmsNormForwardArgs&);
    void (*backward)(const pe::RmsNormBackwardArgs&);
};

const Device kCpu{"cpu", true, [](const auto& a) { pe::cpu::rms_norm_forward(a); },
                  [](const auto& a) { pe::cpu::rms_norm_backward(a); }};
const Device kCuda{
    "cuda", true,
    [](const auto& a) { CHECK(pe::cuda::rms_norm_forward(a, nullptr) == cudaSuccess, "launch"); },
    [](const auto& a) { CHECK(pe::cuda::rms_norm_backward(a, nullptr) == cudaSuccess, "launch"); }};

pe::VectorView part(const Matrix& m, int64_t begin, int64_t n) {
    return {static_cast<float*>(m.view().data) + begin, DType::kF32, n};
}

// Rows [begin, begin + n) of the case.
void run(const Device& device, const Inputs& in, const Results& out, int64_t begin, int64_t n) {
    device.forward({.x = in.x.rows(begin, n),
                    .weight = in.weight.vector(),
                    .eps = kEps,
                    .y = out.y.rows(begin, n),
                    .rstd = part(out.rstd, begin, n)});
    device.backward({.dy = in.dy.rows(begin, n),
                     .x = in.x.rows(begin, n),
                     .weight = in.weight.vector(),
                     .rstd = part(out.rstd, begin, n),
                     .dx = out.dx.rows(begin, n),
                     .dweight = out.dweight.vector()});
}

double rounding(DType dtype) { return dtype == DType::kBF16 ? 0x1.0p-8 : 2 * kUnit; }

// Largest error as a share of its bound, over all outputs.
double check_values(const Case& c, const Inputs& in, const Results& out) {
    const double chain = (static_cast<double>(c.D) / 16 + 12) * kUnit;
    std::vector<double> dweight(static_cast<size_t>(c.D)), dweight_size(static_cast<size_t>(c.D));
    const std::string rstd_text = c.text() + " rstd", y_text = c.text() + " y",
                      dx_text = c.text() + " dx";
    double worst = 0;
    for (int64_t n = 0; n < c.N; ++n) {
        double squares = 0, dots = 0, dots_size = 0;
        for (int64_t d = 0; d < c.D; ++d)
            squares += static_cast<double>(in.x.get(n, d)) * in.x.get(n, d);
        const double rstd =
            1.0 / std::sqrt(squares / static_cast<double>(c.D) + static_cast<double>(kEps));
        for (int64_t d = 0; d < c.D; ++d) {
            const double dot =
                static_cast<double>(in.dy.get(n, d)) * in.weight.get(d) * in.x.get(n, d);
            dots += dot;
            dots_size += std::fabs(dot);
        }
        worst = std::max(worst, SHARE(out.rstd.get(n), rstd, chain * rstd, rstd_text));
        for (int64_t d = 0; d < c.D; ++d) {
            const double x = in.x.get(n, d),
                         g = static_cast<double>(in.dy.get(n, d)) * in.weight.get(d);
            const double y = x * rstd * in.weight.get(d),
                         pull = rstd * rstd * x / static_cast<double>(c.D);
            const double dx = rstd * (g - pull * dots);
            const double y_bound = std::fabs(y) * (chain + rounding(c.y)) + 0x1.0p-140;
            const double dx_bound =
                rstd * (std::fabs(g) + std::fabs(pull) * dots_size) * 3 * chain +
                std::fabs(dx) * rounding(c.x) + 0x1.0p-140;
            worst = std::max(worst, SHARE(out.y.get(n, d), y, y_bound, y_text));
            worst = std::max(worst, SHARE(out.dx.get(n, d), dx, dx_bound, dx_text));
            dweight[static_cast<size_t>(d)] += in.dy.get(n, d) * x * rstd;
            dweight_size[static_cast<size_t>(d)] += std::fabs(in.dy.get(n, d) * x * rstd);
        }
    }
    for (int64_t d = 0; d < c.D; ++d) {
        const auto i = static_cast<size_t>(d);
        const double start = in.dweight.get(d);
        const double bound =
            (static_cast<double>(c.N) * kUnit + chain) * (dweight_size[i] + std::fabs(start));
        worst = std::max(
            worst, SHARE(out.dweight.get(d), start + dweight[i], bound, c.text() + " dweight"));
    }
    return worst;
}

// Null outputs are skipped and change nothing in the others; y may be x.
void check_optional(const Device& device, const Case& c, const Inputs& in, const Results& whole) {
    const Results out(c, in);
    device.forward({.x = in.x.view(),
                    .weight = in.weight.vector(),
                    .eps = kEps,
                    .y = out.y.view(),
                    .rstd = {}});
    CHECK(out.y.same_bits(whole.y), c.text() + " without rstd");
    pe::RmsNormBackwardArgs args{.dy = in.dy.view(),
                                 .x = in.x.view(),
                                 .weight = in.weight.vector(),
                                 .rstd = whole.rstd.vector(),
                                 .dx = out.dx.view(),
                                 .dweight = {}};
    device.backward(args);
    CHECK(out.dx.same_bits(whole.dx), c.text() + " without dweight");
    args.dx = {};
    args.dweight = out.dweight.vector();
    device.backward(args);
    CHECK(out.dweight.same_bits(whole.dweight), c.text() + " without dx");
    if (c.x != c.y) return;
    const Matrix x = in.x.copy();
    device.forward(
        {.x = x.view(), .weight = in.weight.vector(), .eps = kEps, .y = x.view(), .rstd = {}});
    CHECK(x.same_bits(whole.y), c.text() + " in place");
}

// Bits: again, in other batches, with two threads.
void check_bits(const Device& device, const Case& c, const Inputs& in, const Results& whole) {
    const auto repeat = [&](const std::vector<int64_t>& cuts, const char* what) {
        const Results out(c, in);
        for (size_t i = 0; i + 1 < cuts.size(); ++i)
            run(device, in, out, cuts[i], cuts[i + 1] - cuts[i]);
        CHECK(out.same_bits(whole), c.text() + " on " + device.name + ": " + what);
    };
    repeat({0, c.N}, "a second run");
    repeat({0, c.N / 3, c.N / 3 + c.N / 2, c.N}, "in three batches");
    if (device.name == "cuda") {
        cuda_on_host::set_reversed(true);
        repeat({0, c.N}, "threads in another order");
        cuda_on_host::set_reversed(false);
        return;
    }
    pe::set_num_threads(2);
    repeat({0, c.N}, "two threads");
    pe::set_num_threads(1);
}

double check_case(const Case& c, const Options& options) {
    const Inputs in(c);
    const bool large = c.N * c.D > 100'000;  // once on CUDA's twin: fibers are slow
    double worst = 0;
    std::vector<Results> fma;
    const auto check = [&](const Device& device) {
        Results out(c, in);
        run(device, in, out, 0, c.N);
        CHECK(out.y.padding_is_intact() && out.dx.padding_is_intact(),
              c.text() + " writes between rows");
        worst = std::max(worst, check_values(c, in, out));
        if (device.name != "cuda" || !(large || options.small)) {
            check_bits(device, c, in, out);
            check_optional(device, c, in, out);
        }
        if (!device.fma) return;
        if (!fma.empty())
            CHECK(out.same_bits(fma[0]),
                  c.text() + ": " + device.name + " against the first with FMA");
        fma.push_back(std::move(out));
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

// A row with inf or NaN, or whose squares overflow, spoils no other row.
void check_special(const Device& device) {
    const Case c{.N = 6, .D = 33};
    Inputs clean(c), spoiled(c);
    spoiled.x.set(1, 5, INFINITY);
    spoiled.x.set(2, 32, NAN);
    for (int64_t d = 0; d < c.D; ++d) spoiled.x.set(3, d, 1e30f);
    for (int64_t d = 0; d < c.D; ++d) spoiled.x.set(4, d, 0.0f);
    const Results a(c, clean), b(c, spoiled);
    run(device, clean, a, 0, c.N);
    run(device, spoiled, b, 0, c.N);
    for (int64_t d = 0; d < c.D; ++d) {
        const std::string what = device.name + " column " + std::to_string(d);
        for (const int64_t n : {0, 5}) {
            CHECK(a.y.get(n, d) == b.y.get(n, d) && a.dx.get(n, d) == b.dx.get(n, d), what);
        }
        CHECK(std::isnan(b.y.get(1, d)) == (d == 5), what + ": inf * 0 is NaN, the rest 0");
        CHECK(std::isnan(b.y.get(2, d)), what + ": NaN");
        CHECK(b.y.get(3, d) == 0.0f, what + ": squares overflow, rstd is 0");
        CHECK(b.y.get(4, d) == 0.0f && std::isfinite(b.dx.get(4, d)), what + ": a row of zeros");
    }
}

}  // namespace

void test_rms_norm(const Options& options) {
    pe::set_num_threads(1);
    std::vector<Case> cases;
    for (const int64_t n : kSizes) cases.push_back({.N = n});
    for (const int64_t d : kSizes) {
        if (d > 0) cases.push_back({.D = d});
    }
    for (const int64_t pad : {1, 7, 64}) cases.push_back({.pad = pad});
    for (const float scale : {1e-20f, 1e-3f, 1e4f, 1e17f}) cases.push_back({.scale = scale});
    for (int mask = 1; mask < 8; ++mask) {
        const auto dtype = [&](int bit) { return mask >> bit & 1 ? DType::kBF16 : DType::kF32; };
        cases.push_back({.pad = 3, .x = dtype(0), .weight = dtype(1), .y = dtype(2)});
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, check_case(c, options));
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        check_special(kCpu);
    }
    if (options.cuda) check_special(kCuda);
    printf("  rms_norm %zu cases, largest error / bound %.3f\n", cases.size(), worst);
}

}  // namespace native
