// linear_kl on every instruction set and on CUDA's twin: float64 values, bits, exact workspace, equal models.
#include <algorithm>
#include <memory>

#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/linear.h"
#include "pyengine/ops/linear_kl.h"

namespace native {
namespace {

using pe::DType;
using pe::PackedKind;

struct Case {
    int64_t T = 33, D = 48, D2 = 19, V = 300, pad = 0;
    DType dtypes[4] = {DType::kF32, DType::kF32, DType::kF32, DType::kF32};

    bool pairs(int side) const {
        return dtypes[2 * side] == DType::kBF16 && dtypes[2 * side + 1] == DType::kBF16;
    }
    std::string text() const {
        std::string s = "linear_kl T " + std::to_string(T) + " D " + std::to_string(D) + " D2 " +
                        std::to_string(D2) + " V " + std::to_string(V) + " pad " +
                        std::to_string(pad) + " dtypes ";
        for (const DType d : dtypes) s += std::to_string(static_cast<int>(d));
        return s;
    }
};

struct Inputs {
    Matrix hidden, weight, hidden2, weight2, dkl, dweight;

    explicit Inputs(const Case& c)
        : hidden(c.dtypes[0], c.T, c.D, c.pad),
          weight(c.dtypes[1], c.V, c.D, c.pad),
          hidden2(c.dtypes[2], c.T, c.D2, c.pad),
          weight2(c.dtypes[3], c.V, c.D2, c.pad),
          dkl(floats(c.T)),
          dweight(DType::kF32, c.V, c.D, c.pad) {
        Rng rng(static_cast<uint64_t>(c.T * 1000003 + c.D * 1009 + c.V));
        hidden.fill_normal(rng);
        weight.fill_normal(rng, 0.3f);
        hidden2.fill_normal(rng);
        weight2.fill_normal(rng, 0.3f);
        dkl.fill_normal(rng);
        dweight.fill_normal(rng);
    }
};

struct Results {
    Matrix kl, lse, dhidden, dweight;
    Matrix reversed;  // dhidden of KL(q || p)

    Results(const Case& c, const Inputs& in)
        : kl(floats(c.T)),
          lse(DType::kF32, c.T, 4),
          dhidden(DType::kF32, c.T, c.D, c.pad),
          dweight(in.dweight.copy()),
          reversed(DType::kF32, c.T, c.D, c.pad) {}
    bool same_bits(const Results& o) const {
        return kl.same_bits(o.kl) && lse.same_bits(o.lse) && dhidden.same_bits(o.dhidden) &&
               dweight.same_bits(o.dweight) && reversed.same_bits(o.reversed);
    }
};

struct Head {
    pe::PackedMatrix view;
    Memory memory;

    Head(const Matrix& weight, PackedKind kind)
        : view{nullptr, kind, weight.rows(), weight.cols(), nullptr},
          memory(view.panels() * view.panel_bytes()) {
        view.data = memory.data();
        memset(memory.data(), 0, memory.bytes());
        pe::cpu::linear_pack({.weight = weight.view(), .packed = view});
    }
};

struct Heads {
    const Head *p = nullptr, *q = nullptr;
};

pe::VectorView part(const Matrix& m, int64_t begin, int64_t n) {
    return {static_cast<float*>(m.vector().data) + begin, DType::kF32, n};
}

// Rows [begin, begin + n), with a workspace of exactly the stated size.
void run(const Inputs& in, const Results& out, int64_t begin, int64_t n, int threads,
         const std::vector<int64_t>& groups = {}, const Heads& heads = {}, bool on_cuda = false) {
    const auto ended = [](int status) { CHECK(status == cudaSuccess, "launch"); };
    const auto side = [&](const Matrix& hidden, const Matrix& weight, const Head* head) {
        pe::LinearKlSide s{.hidden = hidden.rows(begin, n)};
        if (head != nullptr) {
            s.packed = head->view;
        } else {
            s.weight = weight.view();
        }
        return s;
    };
    pe::LinearKlForwardArgs f{.p = side(in.hidden, in.weight, heads.p),
                              .q = side(in.hidden2, in.weight2, heads.q),
                              .kl = part(out.kl, begin, n),
                              .lse = out.lse.rows(begin, n),
                              .threads = threads,
                              .inverse_temperature = 1.25f};
    const Memory forward(on_cuda ? pe::cuda::linear_kl_forward_bytes(f)
                                 : pe::cpu::linear_kl_forward_bytes(f));
    f.workspace = forward.data();
    on_cuda ? ended(pe::cuda::linear_kl_forward(f, nullptr)) : pe::cpu::linear_kl_forward(f);
    pe::LinearKlBackwardArgs b{.dkl = part(in.dkl, begin, n),
                               .p = f.p,
                               .q = f.q,
                               .kl = f.kl,
                               .lse = f.lse,
                               .dhidden = out.dhidden.rows(begin, n),
                               .dweight = out.dweight.view(),
                               .threads = threads,
                               .inverse_temperature = 1.25f};
    if (!groups.empty()) {
        b.groups = {const_cast<int64_t*>(groups.data()), DType::kI64,
                    static_cast<int64_t>(groups.size())};
    }
    const auto go_back = [&] {
        on_cuda ? ended(pe::cuda::linear_kl_backward(b, nullptr)) : pe::cpu::linear_kl_backward(b);
    };
    const Memory backward(on_cuda ? pe::cuda::linear_kl_backward_bytes(b)
                                  : pe::cpu::linear_kl_backward_bytes(b));
    b.workspace = backward.data();
    go_back();
    // The other gradient takes the same way; its values are checked from Python.
    b.dhidden = out.reversed.rows(begin, n);
    b.dweight = {};
    b.reverse = true;
    go_back();
}

std::vector<double> log_softmax(const Matrix& hidden, const Matrix& weight, int64_t t) {
    std::vector<double> z(static_cast<size_t>(weight.rows()));
    double largest = -INFINITY, total = 0;
    for (int64_t v = 0; v < weight.rows(); ++v) {
        double dot = 0;
        for (int64_t d = 0; d < weight.cols(); ++d) {
            dot += static_cast<double>(hidden.get(t, d)) * weight.get(v, d);
        }
        z[static_cast<size_t>(v)] = dot * 1.25;
        largest = std::max(largest, dot * 1.25);
    }
    for (const double x : z) total += std::exp(x - largest);
    for (double& x : z) x -= largest + std::log(total);
    return z;
}

// Logits here are below 30 in size: 2e-4 is far above the rounding of float32 and far below a wrong term. In bf16 c is rounded.
double check_values(const Case& c, const Inputs& in, const Results& out) {
    double worst = 0;
    const auto cells = static_cast<size_t>(c.V * c.D);
    std::vector<double> dweight(cells), sizes(cells);
    for (int64_t i = 0; i < c.V * c.D; ++i) dweight[static_cast<size_t>(i)] = in.dweight.get(i);
    const double relative = c.pairs(0) ? 0x1.0p-8 : 1e-5;
    for (int64_t t = 0; t < c.T; ++t) {
        const auto p = log_softmax(in.hidden, in.weight, t);
        const auto q = log_softmax(in.hidden2, in.weight2, t);
        double kl = 0;
        for (size_t v = 0; v < p.size(); ++v) kl += std::exp(p[v]) * (p[v] - q[v]);
        CHECK(out.kl.get(t) >= 0.0f, c.text() + " kl >= 0");
        worst = std::max(worst, SHARE(out.kl.get(t), kl, 2e-5 * (1 + kl), c.text() + " kl"));
        const auto D = static_cast<size_t>(c.D);
        std::vector<double> dhidden(D), size(D);
        const double g = in.dkl.get(t);
        for (size_t v = 0; v < p.size(); ++v) {
            const double coefficient = 1.25 * g * std::exp(p[v]) * (p[v] - q[v] - kl);
            for (size_t d = 0; d < D; ++d) {
                const auto row = static_cast<int64_t>(v), col = static_cast<int64_t>(d);
                const double x = coefficient * in.weight.get(row, col);
                dhidden[d] += x, size[d] += std::fabs(x);
                const double y = coefficient * in.hidden.get(t, col);
                dweight[v * D + d] += y, sizes[v * D + d] += std::fabs(y);
            }
        }
        for (size_t d = 0; d < D; ++d) {
            worst = std::max(
                worst, SHARE(out.dhidden.get(t, static_cast<int64_t>(d)), dhidden[d],
                             2e-4 * std::fabs(g) + relative * size[d], c.text() + " dhidden"));
        }
    }
    for (size_t i = 0; i < cells; ++i) {
        const double bound = 2e-5 + 1e-6 * std::fabs(dweight[i]) + (relative + 1e-4) * sizes[i];
        worst = std::max(worst, SHARE(out.dweight.get(static_cast<int64_t>(i)), dweight[i], bound,
                                      c.text() + " dweight"));
    }
    return worst;
}

// CUDA's twin takes both sides of one kind. In f32 it has the CPU's kl.
double check_on_cuda(const Case& c, const Inputs& in, const Results& cpu,
                     const std::vector<int64_t>& groups, bool once) {
    if (c.pairs(0) != c.pairs(1) || c.dtypes[0] != c.dtypes[1]) return 0;
    const PackedKind kind = c.pairs(0) ? PackedKind::kBF16 : PackedKind::kF32;
    const Head p(in.weight, kind), q(in.weight2, kind);
    double worst = 0;
    for (const Heads& heads : {Heads{}, Heads{&p, &q}}) {
        const std::string name = c.text() + (heads.p ? " on cuda, packed" : " on cuda");
        const Results out(c, in);
        run(in, out, 0, c.T, 1, groups, heads, true);
        CHECK(out.dhidden.padding_is_intact() && out.dweight.padding_is_intact(),
              name + " writes between rows");
        worst = std::max(worst, check_values(c, in, out));
        if (kind == PackedKind::kF32)
            CHECK(out.kl.same_bits(cpu.kl) && out.lse.same_bits(cpu.lse), name + ": the CPU's kl");
        for (int64_t t = 0; t < c.T; ++t) {
            for (int64_t d = 0; d < c.D; ++d) {
                const double x = cpu.reversed.get(t, d);
                // |p - q| is 2 in all, an element of a word below 2 in size.
                const double size = 1.25 * 2 * 2 * std::fabs(in.dkl.get(t));
                const double relative = c.pairs(0) ? 0x1.0p-8 : 2e-5;
                worst = std::max(worst, SHARE(out.reversed.get(t, d), x, relative * size + 1e-6,
                                              name + " reversed"));
            }
        }
        if (once) continue;
        const Results again(c, in), parts(c, in);
        cuda_on_host::set_reversed(true);
        run(in, again, 0, c.T, 1, groups, heads, true);
        cuda_on_host::set_reversed(false);
        CHECK(again.same_bits(out), name + ": threads the other way round");
        const int64_t a = groups[1], b = groups[2];
        run(in, parts, 0, a, 1, {}, heads, true);
        run(in, parts, a, c.T - a, 1, {0, b - a, c.T - a}, heads, true);
        CHECK(parts.same_bits(out), name + ": in two batches");
    }
    return worst;
}

double check_case(const Case& c, const Options& options) {
    const Inputs in(c);
    // Groups of an odd number of rows and of none; a second call goes on with the first's chain.
    const int64_t a = std::min<int64_t>(c.T, 13), b = std::min<int64_t>(c.T, 20);
    const std::vector<int64_t> groups = {0, a, b, b, c.T};
    double worst = 0;
    std::unique_ptr<Results> fma;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        const std::string name = c.text() + " on " + pe::cpu::isa_name(isa);
        auto out = std::make_unique<Results>(c, in);
        run(in, *out, 0, c.T, 1, groups);
        CHECK(out->dhidden.padding_is_intact() && out->dweight.padding_is_intact(),
              name + " writes between rows");
        worst = std::max(worst, check_values(c, in, *out));
        const Head p(in.weight, c.pairs(0) ? PackedKind::kBF16 : PackedKind::kF32);
        const Head q(in.weight2, c.pairs(1) ? PackedKind::kBF16 : PackedKind::kF32);
        for (const int threads : {1, 2, 3}) {
            pe::set_num_threads(threads);
            for (const Heads& heads : {Heads{}, Heads{&p, nullptr}, Heads{&p, &q}}) {
                const Results again(c, in);
                run(in, again, 0, c.T, threads, groups, heads);
                CHECK(again.same_bits(*out), name + ": threads or packed heads change bits");
            }
        }
        pe::set_num_threads(1);
        const Results parts(c, in);
        run(in, parts, 0, a, 1);
        run(in, parts, a, c.T - a, 1, {0, b - a, c.T - a});
        CHECK(parts.same_bits(*out), name + ": in two batches");
        if (!has_fma(isa)) continue;
        if (fma) CHECK(out->same_bits(*fma), name + ": against the first with FMA");
        if (!fma) fma = std::move(out);
    }
    const bool large = c.T * c.D * c.V > 300'000 && !c.pairs(0);  // fibers are slow
    if (options.cuda && fma && !(large && options.small))
        worst = std::max(worst, check_on_cuda(c, in, *fma, groups, options.small));
    return worst;
}

// The same model twice: exactly 0, and no gradient.
void check_equal(DType dtype, bool on_cuda = false) {
    const Case c{.D2 = 48, .V = on_cuda ? 520 : 4099, .dtypes = {dtype, dtype, dtype, dtype}};
    Inputs in(c);
    const auto copy = [](const Matrix& from, Matrix* to) {
        for (int64_t i = 0; i < from.rows(); ++i) {
            for (int64_t j = 0; j < from.cols(); ++j) to->set(i, j, from.get(i, j));
        }
    };
    copy(in.hidden, &in.hidden2);
    copy(in.weight, &in.weight2);
    const Results out(c, in);
    const Head head(in.weight, c.pairs(0) ? PackedKind::kBF16 : PackedKind::kF32);
    const Heads heads = on_cuda ? Heads{&head, &head} : Heads{};
    run(in, out, 0, c.T, 1, {}, heads, on_cuda);
    for (int64_t t = 0; t < c.T; ++t) CHECK(out.kl.get(t) == 0.0f, "kl of equal models");
    for (int64_t i = 0; i < c.T * c.D; ++i) CHECK(out.dhidden.get(i) == 0.0f, "its dhidden");
    CHECK(out.dweight.same_bits(in.dweight), "its dweight");
}

std::vector<Case> make_cases() {
    std::vector<Case> cases;
    for (const int64_t n : {0, 1, 31, 111}) cases.push_back({.T = n});
    for (const int64_t n : {1, 31, 33}) cases.push_back({.D = n});
    for (const int64_t n : {1, 31, 256, 257, 1030}) cases.push_back({.T = 13, .V = n});
    cases.push_back({.T = 1100, .D = 5, .D2 = 3, .V = 40});
    const DType f = DType::kF32, b = DType::kBF16;
    cases.push_back({.D = 31, .pad = 3, .dtypes = {b, b, b, b}});
    cases.push_back({.T = 13, .V = 1030, .dtypes = {b, b, b, b}});
    cases.push_back({.T = 600, .D = 5, .D2 = 3, .V = 40, .dtypes = {b, b, b, b}});
    cases.push_back({.pad = 1, .dtypes = {b, b, f, f}});
    cases.push_back({.pad = 1, .dtypes = {f, b, b, f}});
    cases.push_back({.pad = 1, .dtypes = {b, f, b, b}});
    return cases;
}

}  // namespace

void test_linear_kl(const Options& options) {
    pe::set_num_threads(1);
    const std::vector<Case> cases = make_cases();
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, check_case(c, options));
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        check_equal(DType::kF32);
        check_equal(DType::kBF16);
    }
    if (options.cuda) {
        check_equal(DType::kF32, true);
        check_equal(DType::kBF16, true);
    }
    printf("  linear_kl %zu cases, largest error / bound %.3f\n", cases.size(), worst);
}

}  // namespace native
