// layer_norm on every instruction set and on CUDA's twin: float64 values, bits, strides, special
// values.
#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/layer_norm.h"

namespace native {
namespace {

using pe::DType;

constexpr float kEps = 1e-5f;

struct Case {
    int64_t N = 33, D = 111, pad = 0;
    DType x = DType::kF32, weight = DType::kF32, bias = DType::kF32, y = DType::kF32;
    float scale = 1.0f, shift = 0.0f;

    std::string text() const {
        return "layer_norm N " + std::to_string(N) + " D " + std::to_string(D) + " pad " +
               std::to_string(pad) + " dtypes " + std::to_string(static_cast<int>(x)) +
               std::to_string(static_cast<int>(weight)) + std::to_string(static_cast<int>(bias)) +
               std::to_string(static_cast<int>(y)) + " scale " + std::to_string(scale) + " shift " +
               std::to_string(shift);
    }
};

struct Inputs {
    Matrix x, weight, bias, dy, dweight, dbias;

    explicit Inputs(const Case& c)
        : x(c.x, c.N, c.D, c.pad),
          weight(c.weight, 1, c.D),
          bias(c.bias, 1, c.D),
          dy(c.y, c.N, c.D, c.pad),
          dweight(floats(c.D)),
          dbias(floats(c.D)) {
        Rng rng(static_cast<uint64_t>(c.N * 1000 + c.D));
        for (int64_t n = 0; n < c.N; ++n) {
            for (int64_t d = 0; d < c.D; ++d) x.set(n, d, c.scale * (rng.normal() + c.shift));
        }
        for (Matrix* m : {&weight, &bias, &dy, &dweight, &dbias}) m->fill_normal(rng);
    }
};

struct Results {
    Matrix y, mean, rstd, dx, dweight, dbias;

    explicit Results(const Case& c, const Inputs& in)
        : y(c.y, c.N, c.D, c.pad),
          mean(floats(c.N)),
          rstd(floats(c.N)),
          dx(c.x, c.N, c.D, c.pad),
          dweight(in.dweight.copy()),
          dbias(in.dbias.copy()) {}
    bool same_bits(const Results& other) const {
        return y.same_bits(other.y) && mean.same_bits(other.mean) && rstd.same_bits(other.rstd) &&
               dx.same_bits(other.dx) && dweight.same_bits(other.dweight) &&
               dbias.same_bits(other.dbias);
    }
};

// One device: an instruction set, or CUDA on the host.
struct Device {
    std::string name;
    bool fma;
    void (*forward)(const pe::LayerNormForwardArgs&);
    void (*backward)(const pe::LayerNormBackwardArgs&);
};

const Device kCpu{"cpu", true, [](const auto& a) { pe::cpu::layer_norm_forward(a); },
                  [](const auto& a) { pe::cpu::layer_norm_backward(a); }};
const Device kCuda{
    "cuda", true,
    [](const auto& a) { CHECK(pe::cuda::layer_norm_forward(a, nullptr) == cudaSuccess, "launch"); },
    [](const auto& a) {
        CHECK(pe::cuda::layer_norm_backward(a, nullptr) == cudaSuccess, "launch");
    }};

pe::VectorView part(const Matrix& m, int64_t begin, int64_t n) {
    return {static_cast<float*>(m.view().data) + begin, DType::kF32, n};
}

// Rows [begin, begin + n) of the case.
void run(const Device& device, const Inputs& in, const Results& out, int64_t begin, int64_t n) {
    device.forward({.x = in.x.rows(begin, n),
                    .weight = in.weight.vector(),
                    .bias = in.bias.vector(),
                    .eps = kEps,
                    .y = out.y.rows(begin, n),
                    .mean = part(out.mean, begin, n),
                    .rstd = part(out.rstd, begin, n)});
    device.backward({.dy = in.dy.rows(begin, n),
                     .x = in.x.rows(begin, n),
                     .weight = in.weight.vector(),
                     .mean = part(out.mean, begin, n),
                     .rstd = part(out.rstd, begin, n),
                     .dx = out.dx.rows(begin, n),
                     .dweight = out.dweight.vector(),
                     .dbias = out.dbias.vector()});
}

double rounding(DType dtype) { return dtype == DType::kBF16 ? 0x1.0p-8 : 2 * kUnit; }

// What float64 makes of one row, and how far f32 may be from it.
struct RowReference {
    double mean = 0, rstd = 0, g_mean = 0, dots = 0;  // dots: the mean of g * (x - mean)
    double mean_bound = 0, rstd_bound = 0, g_size = 0, dots_size = 0;

    RowReference(const Case& c, const Inputs& in, int64_t n, double chain) {
        const auto D = static_cast<double>(c.D);
        double size = 0, squares = 0;
        for (int64_t d = 0; d < c.D; ++d) {
            mean += in.x.get(n, d) / D;
            size += std::fabs(in.x.get(n, d)) / D;
        }
        mean_bound = chain * size;
        for (int64_t d = 0; d < c.D; ++d) {
            const double v = in.x.get(n, d) - mean;
            const double g = static_cast<double>(in.dy.get(n, d)) * in.weight.get(d);
            squares += v * v / D;
            g_mean += g / D;
            g_size += std::fabs(g) / D;
            dots += g * v / D;
            dots_size += std::fabs(g) * (std::fabs(v) + mean_bound) / D;
        }
        rstd = 1.0 / std::sqrt(squares + static_cast<double>(kEps));
        // A mean that is off by m adds m^2 to the variance.
        rstd_bound = rstd * (chain + mean_bound * mean_bound * rstd * rstd);
    }
};

// Largest error as a share of its bound, over all outputs.
double check_values(const Case& c, const Inputs& in, const Results& out) {
    const double chain = (static_cast<double>(c.D) / 16 + 12) * kUnit;
    const auto columns = static_cast<size_t>(c.D);
    std::vector<double> dweight(columns), dweight_bound(columns), dbias(columns),
        dbias_size(columns);
    double worst = 0;
    const std::string text = c.text();
    const std::string mean_text = text + " mean", rstd_text = text + " rstd", y_text = text + " y",
                      dx_text = text + " dx", dweight_text = text + " dweight",
                      dbias_text = text + " dbias";
    const auto check = [&](double value, double reference, double bound, const std::string& what) {
        worst = std::max(worst, SHARE(value, reference, bound + 0x1.0p-140, what));
    };
    for (int64_t n = 0; n < c.N; ++n) {
        const RowReference row(c, in, n, chain);
        check(out.mean.get(n), row.mean, row.mean_bound, mean_text);
        check(out.rstd.get(n), row.rstd, row.rstd_bound, rstd_text);
        const double relative = 4 * kUnit + row.rstd_bound / row.rstd;
        for (int64_t d = 0; d < c.D; ++d) {
            const auto i = static_cast<size_t>(d);
            const double weight = in.weight.get(d), dy = in.dy.get(n, d), g = dy * weight;
            const double v = in.x.get(n, d) - row.mean, x_hat = v * row.rstd;
            const double hat_bound = std::fabs(x_hat) * relative + row.mean_bound * row.rstd;
            const double y = x_hat * weight + in.bias.get(d);
            check(out.y.get(n, d), y, std::fabs(weight) * hat_bound + std::fabs(y) * rounding(c.y),
                  y_text);
            const double pull = row.rstd * row.rstd;
            const double dx = row.rstd * (g - row.g_mean - v * pull * row.dots);
            const double terms =
                std::fabs(g) + row.g_size + (std::fabs(v) + row.mean_bound) * pull * row.dots_size;
            const double shifts = row.mean_bound * pull *
                                  (row.dots_size + (std::fabs(v) + row.mean_bound) * row.g_size);
            check(out.dx.get(n, d), dx,
                  row.rstd * (terms * 4 * (chain + relative) + shifts) +
                      std::fabs(dx) * rounding(c.x),
                  dx_text);
            dweight[i] += dy * x_hat;
            dweight_bound[i] +=
                std::fabs(dy) *
                (hat_bound + std::fabs(x_hat) * static_cast<double>(c.N + 2) * kUnit);
            dbias[i] += dy;
            dbias_size[i] += std::fabs(dy);
        }
    }
    const double rows = static_cast<double>(c.N + 1) * kUnit;
    for (int64_t d = 0; d < c.D; ++d) {
        const auto i = static_cast<size_t>(d);
        const double dw = in.dweight.get(d), db = in.dbias.get(d);
        check(out.dweight.get(d), dw + dweight[i], dweight_bound[i] + rows * std::fabs(dw),
              dweight_text);
        check(out.dbias.get(d), db + dbias[i], rows * (dbias_size[i] + std::fabs(db)), dbias_text);
    }
    return worst;
}

// Null outputs are skipped and change nothing in the others; y may be x.
void check_optional(const Device& device, const Case& c, const Inputs& in, const Results& whole) {
    const Results out(c, in);
    device.forward({.x = in.x.view(),
                    .weight = in.weight.vector(),
                    .bias = in.bias.vector(),
                    .eps = kEps,
                    .y = out.y.view(),
                    .mean = {},
                    .rstd = {}});
    CHECK(out.y.same_bits(whole.y), c.text() + " without mean and rstd");
    pe::LayerNormBackwardArgs args{.dy = in.dy.view(),
                                   .x = in.x.view(),
                                   .weight = in.weight.vector(),
                                   .mean = whole.mean.vector(),
                                   .rstd = whole.rstd.vector(),
                                   .dx = out.dx.view(),
                                   .dweight = {},
                                   .dbias = {}};
    device.backward(args);
    CHECK(out.dx.same_bits(whole.dx), c.text() + " dx alone");
    args.dx = {};
    args.dweight = out.dweight.vector();
    device.backward(args);
    CHECK(out.dweight.same_bits(whole.dweight), c.text() + " dweight alone");
    args.dweight = {};
    args.dbias = out.dbias.vector();
    device.backward(args);
    CHECK(out.dbias.same_bits(whole.dbias), c.text() + " dbias alone");
    if (c.x != c.y) return;
    const Matrix x = in.x.copy();
    device.forward({.x = x.view(),
                    .weight = in.weight.vector(),
                    .bias = in.bias.vector(),
                    .eps = kEps,
                    .y = x.view(),
                    .mean = {},
                    .rstd = {}});
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
    for (int64_t d = 0; d < c.D; ++d) spoiled.x.set(3, d, d % 2 ? 1e30f : -1e30f);
    for (int64_t d = 0; d < c.D; ++d) spoiled.x.set(4, d, 3.0f);
    const Results a(c, clean), b(c, spoiled);
    run(device, clean, a, 0, c.N);
    run(device, spoiled, b, 0, c.N);
    for (int64_t d = 0; d < c.D; ++d) {
        const std::string what = device.name + " column " + std::to_string(d);
        for (const int64_t n : {0, 5}) {
            CHECK(a.y.get(n, d) == b.y.get(n, d) && a.dx.get(n, d) == b.dx.get(n, d), what);
        }
        CHECK(std::isnan(b.y.get(1, d)), what + ": infinity");
        CHECK(std::isnan(b.y.get(2, d)), what + ": NaN");
        CHECK(b.y.get(3, d) == clean.bias.get(d), what + ": squares overflow, rstd is 0");
        CHECK(b.y.get(4, d) == clean.bias.get(d) && std::isfinite(b.dx.get(4, d)),
              what + ": a row of equal values");
    }
}

}  // namespace

void test_layer_norm(const Options& options) {
    pe::set_num_threads(1);
    std::vector<Case> cases;
    for (const int64_t n : kSizes) cases.push_back({.N = n});
    for (const int64_t d : kSizes) {
        if (d > 0) cases.push_back({.D = d});
    }
    for (const int64_t pad : {1, 7, 64}) cases.push_back({.pad = pad});
    cases.push_back({.D = 200, .pad = 5});  // whole and partial tasks of columns
    for (const float scale : {1e-20f, 1e-3f, 1e4f, 1e17f}) cases.push_back({.scale = scale});
    for (const float shift : {3.0f, 1e3f}) cases.push_back({.shift = shift});
    for (int mask = 1; mask < 16; ++mask) {
        const auto dtype = [&](int bit) { return mask >> bit & 1 ? DType::kBF16 : DType::kF32; };
        cases.push_back(
            {.pad = 3, .x = dtype(0), .weight = dtype(1), .bias = dtype(2), .y = dtype(3)});
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, check_case(c, options));
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        check_special(kCpu);
    }
    if (options.cuda) check_special(kCuda);
    printf("  layer_norm %zu cases, largest error / bound %.3f\n", cases.size(), worst);
}

}  // namespace native
