// attention_backward on every instruction set and on CUDA's host twin: float64 values, bits, and memory that it must not look at.
#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/attention_backward.h"

namespace native {
namespace {

using pe::DType;

// A prompt's rows and its responses'.
using Tree = std::vector<int32_t>;

struct Case {
    DType dtype = DType::kF32, dout = DType::kF32, grad = DType::kF32;
    int64_t K = 2, G = 3, head_dim = 24, pad = 3;
    std::vector<Tree> trees = {{65, 33, 0, 70}, {1, 1}, {64}};
    float scale = 0.2f;
    int64_t window = 0;

    int64_t H() const { return K * G; }
    std::string text() const {
        return "attention_backward of " + std::to_string(trees.size()) + " trees K " +
               std::to_string(K) + " G " + std::to_string(G) + " hd " + std::to_string(head_dim) +
               " dtypes " + std::to_string(static_cast<int>(dtype)) +
               std::to_string(static_cast<int>(dout)) + std::to_string(static_cast<int>(grad)) +
               " window " + std::to_string(window);
    }
};

struct Gradients {
    Matrix dq, dk, dv;
    bool same_bits(const Gradients& o) const {
        return dq.same_bits(o.dq) && dk.same_bits(o.dk) && dv.same_bits(o.dv);
    }
};

// Sums of sizes, of which each error is a small share.
struct Sums {
    std::vector<double> value, size;
    explicit Sums(const Matrix& m)
        : value(static_cast<size_t>(m.rows() * m.cols())), size(value.size()) {}
    void add(int64_t i, double x, double bound) {
        value[static_cast<size_t>(i)] += x;
        size[static_cast<size_t>(i)] += bound;
    }
};

struct Inputs {
    const Case& c;
    std::vector<int32_t> cu = {0}, prefix;
    Matrix dout, q, k, v, out, lse;

    explicit Inputs(const Case& case_)
        : c(case_),
          dout(c.dout, count(case_), c.H() * c.head_dim, c.pad),
          q(c.dtype, count(case_), c.H() * c.head_dim, c.pad),
          k(c.dtype, count(case_), c.K * c.head_dim, c.pad),
          v(c.dtype, count(case_), c.K * c.head_dim, c.pad),
          out(c.dtype, count(case_), c.H() * c.head_dim, c.pad),
          lse(DType::kF32, count(case_), c.H(), c.pad) {
        Rng rng(static_cast<uint64_t>(count(c) * 1000 + c.head_dim));
        for (Matrix* m : {&dout, &q, &k, &v}) m->fill_normal(rng);
        for (const Tree& tree : c.trees) {
            for (size_t i = 0; i < tree.size(); ++i) {
                cu.push_back(cu.back() + tree[i]);
                prefix.push_back(i == 0 ? 0 : tree[0]);
            }
        }
        for_each_row([&](int64_t i, const std::vector<int64_t>& seen) {
            for (int64_t h = 0; h < c.H(); ++h) forward(i, h, seen);
        });
    }

    static int64_t count(const Case& c) {
        int64_t n = 0;
        for (const Tree& tree : c.trees) {
            for (const int32_t rows : tree) n += rows;
        }
        return n;
    }

    // f(row, rows that it sees)
    template <typename F>
    void for_each_row(const F& f) const {
        int64_t start = 0;
        for (const Tree& tree : c.trees) {
            int64_t begin = start;
            for (size_t s = 0; s < tree.size(); ++s) {
                std::vector<int64_t> seen;
                for (int64_t j = 0; s > 0 && j < tree[0]; ++j) seen.push_back(start + j);
                while (c.window > 0 && static_cast<int64_t>(seen.size()) > c.window)
                    seen.erase(seen.begin());
                for (int64_t i = begin; i < begin + tree[s]; ++i) {
                    seen.push_back(i);
                    if (c.window > 0 && static_cast<int64_t>(seen.size()) > c.window)
                        seen.erase(seen.begin());
                    f(i, seen);
                }
                begin += tree[s];
            }
            start = begin;
        }
    }

    double dot(const Matrix& a, int64_t i, int64_t ha, const Matrix& b, int64_t j, int64_t hb,
               double* size = nullptr) const {
        double total = 0;
        for (int64_t d = 0; d < c.head_dim; ++d) {
            const double x =
                static_cast<double>(a.get(i, ha * c.head_dim + d)) * b.get(j, hb * c.head_dim + d);
            total += x;
            if (size != nullptr) *size += std::fabs(x);
        }
        return total;
    }

    void forward(int64_t i, int64_t h, const std::vector<int64_t>& seen) {
        double total = 0;
        std::vector<double> value(static_cast<size_t>(c.head_dim));
        for (const int64_t j : seen) {
            const double w = std::exp(c.scale * dot(q, i, h, k, j, h / c.G));
            total += w;
            for (int64_t d = 0; d < c.head_dim; ++d)
                value[static_cast<size_t>(d)] += w * v.get(j, h / c.G * c.head_dim + d);
        }
        for (int64_t d = 0; d < c.head_dim; ++d) {
            out.set(i, h * c.head_dim + d,
                    static_cast<float>(value[static_cast<size_t>(d)] / total));
        }
        lse.set(i, h, static_cast<float>(std::log(total)));
    }

    Gradients zeros() const {
        return {Matrix(c.grad, q.rows(), q.cols(), c.pad),
                Matrix(c.grad, q.rows(), k.cols(), c.pad),
                Matrix(c.grad, q.rows(), k.cols(), c.pad)};
    }

    // Of rows [begin, begin + rows), whose sequences are [first, first + S).
    pe::AttentionBackwardArgs args(const Gradients& g, int64_t begin, int64_t rows,
                                   std::vector<int32_t>& bounds, int64_t first, int64_t S) {
        return {.dout = dout.rows(begin, rows),
                .q = q.rows(begin, rows),
                .k = k.rows(begin, rows),
                .v = v.rows(begin, rows),
                .out = out.rows(begin, rows),
                .lse = lse.rows(begin, rows),
                .cu_seqlens = {bounds.data(), DType::kI32, S + 1},
                .prefix_rows = {prefix.data() + first, DType::kI32, S},
                .num_heads = c.H(),
                .num_kv_heads = c.K,
                .head_dim = c.head_dim,
                .scale = c.scale,
                .window = c.window,
                .dq = g.dq.rows(begin, rows),
                .dk = g.dk.rows(begin, rows),
                .dv = g.dv.rows(begin, rows)};
    }

    void check_padding(const Gradients& g) const {
        for (const Matrix* m : {&g.dq, &g.dk, &g.dv})
            CHECK(m->padding_is_intact(), c.text() + " writes between rows");
    }

    Gradients run(int threads) {
        Gradients g = zeros();
        const auto S = static_cast<int64_t>(prefix.size());
        const Memory workspace(pe::cpu::attention_backward_workspace_bytes(q.rows(), S, c.H(), c.K,
                                                                           c.head_dim, threads));
        pe::set_num_threads(threads);
        pe::AttentionBackwardArgs a = args(g, 0, q.rows(), cu, 0, S);
        a.workspace = workspace.data();
        a.threads = threads;
        pe::cpu::attention_backward(a);
        pe::set_num_threads(1);
        check_padding(g);
        return g;
    }

    void call_cuda(pe::AttentionBackwardArgs a) const {
        const Memory workspace(pe::cuda::attention_backward_workspace_bytes(a.q.rows, c.H()));
        a.workspace = workspace.data();
        CHECK(pe::cuda::attention_backward(a, nullptr) == cudaSuccess, c.text());
    }

    Gradients run_on_cuda() {
        Gradients g = zeros();
        call_cuda(args(g, 0, q.rows(), cu, 0, static_cast<int64_t>(prefix.size())));
        check_padding(g);
        return g;
    }

    // Each tree in a call of its own.
    Gradients run_on_cuda_by_tree() {
        Gradients g = zeros();
        size_t s = 0;
        for (const Tree& tree : c.trees) {
            std::vector<int32_t> bounds;
            for (size_t i = 0; i <= tree.size(); ++i) bounds.push_back(cu[s + i] - cu[s]);
            call_cuda(args(g, cu[s], bounds.back(), bounds, static_cast<int64_t>(s),
                           static_cast<int64_t>(tree.size())));
            s += tree.size();
        }
        return g;
    }
};

// Largest error as a share of its bound.
double check_values(const Inputs& in, const Gradients& g) {
    const Case& c = in.c;
    const int64_t hd = c.head_dim;
    const double unit = c.dtype == DType::kBF16 ? 0x1.0p-9 : 0.0;  // of what is rounded on the way
    Sums dq(g.dq), dk(g.dk), dv(g.dv);
    in.for_each_row([&](int64_t i, const std::vector<int64_t>& seen) {
        const double chain = static_cast<double>(in.q.rows() + 2 * hd + 40) * kUnit;
        for (int64_t h = 0; h < c.H(); ++h) {
            const int64_t kv = h / c.G;
            double delta_size = 0;
            const double delta = in.dot(in.dout, i, h, in.out, i, h, &delta_size);
            for (const int64_t j : seen) {
                double score_size = 0, dp_size = 0;
                const double score = in.dot(in.q, i, h, in.k, j, kv, &score_size) * c.scale;
                const double dp = in.dot(in.dout, i, h, in.v, j, kv, &dp_size);
                const double p = std::exp(score - in.lse.get(i, h));
                const double p_error =
                    unit + 4 * (score_size * std::fabs(c.scale) + std::fabs(score) + 4) * chain;
                const double ds = p * (dp - delta) * c.scale;
                const double ds_size =
                    p * std::fabs(c.scale) *
                    ((p_error + unit) * std::fabs(dp - delta) + (dp_size + delta_size) * chain +
                     (c.dout == DType::kF32 ? 2 * unit * dp_size : 0.0));
                for (int64_t d = 0; d < hd; ++d) {
                    const double x = in.dout.get(i, h * hd + d), q = in.q.get(i, h * hd + d),
                                 k = in.k.get(j, kv * hd + d);
                    dv.add(j * c.K * hd + kv * hd + d, p * x,
                           p * std::fabs(x) * (p_error + 2 * unit + chain));
                    dq.add(i * c.H() * hd + h * hd + d, ds * k,
                           (ds_size + std::fabs(ds) * (unit + chain)) * std::fabs(k));
                    dk.add(j * c.K * hd + kv * hd + d, ds * q,
                           (ds_size + std::fabs(ds) * (unit + chain)) * std::fabs(q));
                }
            }
        }
    });
    double worst = 0;
    const double rounding = c.grad == DType::kBF16 ? 0x1.0p-8 : 0x1.0p-23;
    const auto compare = [&](const Matrix& m, const Sums& sums, const char* name) {
        for (int64_t n = 0; n < m.rows() * m.cols(); ++n) {
            const double value = sums.value[static_cast<size_t>(n)];
            worst = std::max(worst, SHARE(m.get(n), value,
                                          sums.size[static_cast<size_t>(n)] +
                                              rounding * std::fabs(value) + 1e-30,
                                          c.text() + " " + name + " " + std::to_string(n)));
        }
    };
    compare(g.dq, dq, "dq"), compare(g.dk, dk, "dk"), compare(g.dv, dv, "dv");
    return worst;
}

double check_case(const Case& c, const Options& options) {
    Inputs in(c);
    double worst = 0;
    std::vector<Gradients> fma;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        Gradients g = in.run(1);
        const std::string where = c.text() + " on " + pe::cpu::isa_name(isa);
        worst = std::max(worst, check_values(in, g));
        for (const int threads : {1, 2, 3})  // a few trees are cut into query heads
            CHECK(in.run(threads).same_bits(g), where + ", threads " + std::to_string(threads));
        if (!has_fma(isa)) continue;
        if (!fma.empty()) CHECK(g.same_bits(fma[0]), where + " against the first with FMA");
        fma.push_back(std::move(g));
    }
    if (!options.cuda || (options.small && c.window != 0 && c.window != 40)) return worst;
    Gradients g = in.run_on_cuda();
    worst = std::max(worst, check_values(in, g));
    if (c.dtype == DType::kF32 && !fma.empty())
        CHECK(g.same_bits(fma[0]), c.text() + " on cuda against the CPU");
    if (options.small) return worst;
    cuda_on_host::set_reversed(true);
    CHECK(in.run_on_cuda().same_bits(g), c.text() + " on cuda, threads the other way round");
    cuda_on_host::set_reversed(false);
    CHECK(in.run_on_cuda_by_tree().same_bits(g), c.text() + " on cuda, tree by tree");
    return worst;
}

}  // namespace

void test_attention_backward(const Options& options) {
    std::vector<Case> cases;
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const Case base{.dtype = dtype, .dout = dtype, .grad = dtype};
        cases.push_back(base);
        const DType other = dtype == DType::kF32 ? DType::kBF16 : DType::kF32;
        cases.push_back({.dtype = dtype, .dout = other, .grad = other, .trees = {{5, 3}}});
        cases.push_back({.dtype = dtype, .dout = dtype, .trees = {}});
        for (const int64_t window : {1, 40, 100}) {
            cases.push_back({.dtype = dtype,
                             .dout = dtype,
                             .K = 1,
                             .G = 2,
                             .head_dim = 32,
                             .trees = {{70, 80, 3}, {30, 9}},
                             .window = window});
        }
        cases.push_back({.dtype = dtype,
                         .dout = dtype,
                         .K = 1,
                         .G = 2,
                         .head_dim = 128,
                         .pad = 8,  // rows on 16 bytes
                         .trees = {{33, 40, 65}}});
        cases.push_back({.dtype = dtype, .dout = dtype, .trees = {{0}, {0, 0}, {2}}});
        for (const int64_t head_dim : {1, 16, 17, 80}) {
            cases.push_back({.dtype = dtype,
                             .dout = dtype,
                             .K = 1,
                             .G = 2,
                             .head_dim = head_dim,
                             .trees = {{17, 2, 66}}});
        }
        cases.push_back(
            {.dtype = dtype, .dout = dtype, .K = 1, .G = 1, .head_dim = 256, .trees = {{18, 2}}});
        cases.push_back({.dtype = dtype,
                         .dout = dtype,
                         .K = 2,
                         .G = 1,
                         .head_dim = 8,
                         .trees = std::vector<Tree>(13, {3, 2, 1})});
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, check_case(c, options));
    printf("  attention_backward %zu cases, largest error / bound %.3f\n", cases.size(), worst);
}

}  // namespace native
