// rope on every instruction set and on CUDA's twin: float64 values, bits, strides, in place, NaN.
#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/rope.h"

namespace native {
namespace {

using pe::DType;

struct Case {
    int64_t T = 33, heads = 3, head_dim = 34, pad = 0;
    DType x = DType::kF32, y = DType::kF32;

    int64_t columns() const { return heads * head_dim; }
    std::string text() const {
        return "rope T " + std::to_string(T) + " heads " + std::to_string(heads) + " head_dim " +
               std::to_string(head_dim) + " pad " + std::to_string(pad) + " dtypes " +
               std::to_string(static_cast<int>(x)) + std::to_string(static_cast<int>(y));
    }
};

constexpr int64_t kPositions = 50;

struct Inputs {
    Matrix x, cos, sin;
    Memory positions;

    explicit Inputs(const Case& c)
        : x(c.x, c.T, c.columns(), c.pad),
          cos(DType::kF32, kPositions, c.head_dim / 2, c.pad),
          sin(DType::kF32, kPositions, c.head_dim / 2, c.pad),
          positions(8 * c.T) {
        Rng rng(static_cast<uint64_t>(c.T * 1000 + c.head_dim));
        x.fill_normal(rng);
        for (int64_t p = 0; p < kPositions; ++p) {
            for (int64_t i = 0; i < c.head_dim / 2; ++i) {
                const double angle = 100.0 * rng.uniform();
                cos.set(p, i, static_cast<float>(std::cos(angle)));
                sin.set(p, i, static_cast<float>(std::sin(angle)));
            }
        }
        for (int64_t t = 0; t < c.T; ++t) at(t) = rng.below(kPositions);
    }
    int64_t& at(int64_t t) const { return static_cast<int64_t*>(positions.data())[t]; }
};

// One device: an instruction set, or CUDA on the host.
struct Device {
    std::string name;
    void (*rope)(const pe::RopeArgs&);
};

const Device kCpu{"cpu", [](const auto& a) { pe::cpu::rope(a); }};
const Device kCuda{
    "cuda", [](const auto& a) { CHECK(pe::cuda::rope(a, nullptr) == cudaSuccess, "launch"); }};

// Rows [begin, begin + n) of the case, from x into y.
void run(const Device& device, const Case& c, const Inputs& in, const Matrix& x, const Matrix& y,
         int64_t begin, int64_t n, bool inverse) {
    device.rope({.x = x.rows(begin, n),
                 .head_dim = c.head_dim,
                 .cos = in.cos.view(),
                 .sin = in.sin.view(),
                 .positions = {&in.at(begin), DType::kI64, n},
                 .y = y.rows(begin, n),
                 .inverse = inverse});
}

Matrix output(const Case& c) { return Matrix(c.y, c.T, c.columns(), c.pad); }

// Largest error as a share of its bound.
double check_values(const Case& c, const Inputs& in, const Matrix& y, bool inverse) {
    const std::string text = c.text() + (inverse ? " inverse" : "");
    const double unit = c.y == DType::kBF16 ? 0x1.0p-8 : 0;
    const int64_t half = c.head_dim / 2;
    double worst = 0;
    for (int64_t t = 0; t < c.T; ++t) {
        for (int64_t k = 0; k < c.heads * half; ++k) {
            const int64_t i = k % half, left_at = k / half * c.head_dim + i;
            const double cos = in.cos.get(in.at(t), i);
            const double sin = in.sin.get(in.at(t), i) * (inverse ? -1.0 : 1.0);
            const double left = in.x.get(t, left_at), right = in.x.get(t, left_at + half);
            // Three roundings of what is summed, then the output's own.
            const auto check = [&](int64_t at, double a, double b) {
                const double bound = 2 * kUnit * (std::fabs(a) + std::fabs(b)) +
                                     unit * std::fabs(a + b) + 0x1.0p-140;
                worst = std::max(worst, SHARE(y.get(t, at), a + b, bound, text));
            };
            check(left_at, left * cos, -right * sin);
            check(left_at + half, right * cos, left * sin);
        }
    }
    return worst;
}

// Bits: again, in other batches, with two threads, in place.
void check_bits(const Device& device, const Case& c, const Inputs& in, const Matrix& whole,
                bool inverse) {
    const auto repeat = [&](const std::vector<int64_t>& cuts, const char* what) {
        const Matrix y = output(c);
        for (size_t i = 0; i + 1 < cuts.size(); ++i)
            run(device, c, in, in.x, y, cuts[i], cuts[i + 1] - cuts[i], inverse);
        CHECK(y.same_bits(whole), c.text() + " on " + device.name + ": " + what);
    };
    repeat({0, c.T}, "a second run");
    repeat({0, c.T / 3, c.T / 3 + c.T / 2, c.T}, "in three batches");
    if (device.name == "cuda") {
        cuda_on_host::set_reversed(true);
        repeat({0, c.T}, "threads in another order");
        cuda_on_host::set_reversed(false);
    } else {
        pe::set_num_threads(2);
        repeat({0, c.T}, "two threads");
        pe::set_num_threads(1);
    }
    if (c.x != c.y) return;
    const Matrix x = in.x.copy();
    run(device, c, in, x, x, 0, c.T, inverse);
    CHECK(x.same_bits(whole), c.text() + " on " + device.name + ": in place");
}

double check_case(const Case& c, const Options& options) {
    const Inputs in(c);
    const bool large = c.T * c.columns() > 30'000;  // once on CUDA's twin: fibers are slow
    double worst = 0;
    for (const bool inverse : {false, true}) {
        std::vector<Matrix> results;
        const auto check = [&](const Device& device) {
            Matrix y = output(c);
            run(device, c, in, in.x, y, 0, c.T, inverse);
            CHECK(y.padding_is_intact(), c.text() + " writes between rows");
            worst = std::max(worst, check_values(c, in, y, inverse));
            if (device.name != "cuda" || !(large || options.small))
                check_bits(device, c, in, y, inverse);
            // Nothing is fused: an instruction set without FMA has the same bits.
            if (!results.empty())
                CHECK(y.same_bits(results[0]),
                      c.text() + ": " + device.name + " against the first");
            results.push_back(std::move(y));
        };
        for (const auto isa : isas(options)) {
            pe::cpu::set_active_isa(isa);
            check({pe::cpu::isa_name(isa), kCpu.rope});
        }
        if (options.cuda && !(large && (options.small || inverse))) check(kCuda);
    }
    return worst;
}

// An infinity or NaN spoils its own pair only.
void check_special(const Device& device) {
    const Case c{.T = 4};
    Inputs in(c);
    const Matrix clean = output(c), spoiled = output(c);
    run(device, c, in, in.x, clean, 0, c.T, false);
    in.x.set(1, 5, INFINITY);   // pair 5 of head 0
    in.x.set(2, 34 + 20, NAN);  // pair 3 of head 1
    run(device, c, in, in.x, spoiled, 0, c.T, false);
    for (int64_t t = 0; t < c.T; ++t) {
        for (int64_t j = 0; j < c.columns(); ++j) {
            const bool touched =
                (t == 1 && (j == 5 || j == 22)) || (t == 2 && (j == 37 || j == 54));
            const float value = spoiled.get(t, j);
            CHECK(touched ? !std::isfinite(value) : value == clean.get(t, j),
                  device.name + " row " + std::to_string(t) + " column " + std::to_string(j));
        }
    }
}

// CUDA's binding cannot look at positions: the kernel reads no table outside, and says so by NaN.
void check_unknown_positions() {
    const Case c{.T = 4};
    const Inputs in(c);
    in.at(1) = kPositions;
    in.at(2) = -1;
    const Matrix y = output(c);
    run(kCuda, c, in, in.x, y, 0, c.T, false);
    for (int64_t t = 0; t < c.T; ++t) {
        for (int64_t j = 0; j < c.columns(); ++j) {
            CHECK(std::isnan(y.get(t, j)) == (t == 1 || t == 2),
                  "position outside the tables, row " + std::to_string(t));
        }
    }
}

}  // namespace

void test_rope(const Options& options) {
    pe::set_num_threads(1);
    std::vector<Case> cases;
    for (const int64_t t : kSizes) cases.push_back({.T = t});
    for (const int64_t heads : {0, 1, 9}) cases.push_back({.heads = heads});
    for (const int64_t d : {2, 4, 30, 32, 62, 64, 80, 128, 256}) cases.push_back({.head_dim = d});
    for (const int64_t pad : {1, 7, 64}) cases.push_back({.pad = pad});
    for (int mask = 1; mask < 4; ++mask) {
        const auto dtype = [&](int bit) { return mask >> bit & 1 ? DType::kBF16 : DType::kF32; };
        cases.push_back({.pad = 3, .x = dtype(0), .y = dtype(1)});
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, check_case(c, options));
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        check_special(kCpu);
    }
    if (options.cuda) {
        check_special(kCuda);
        check_unknown_positions();
    }
    printf("  rope %zu cases, largest error / bound %.3f\n", cases.size(), worst);
}

}  // namespace native
