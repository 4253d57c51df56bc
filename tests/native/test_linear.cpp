// linear on every instruction set and on CUDA's host twin, with memory of exactly the stated sizes:
// against double, and the same bits for any rows, threads and instruction set with FMA.
#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/linear.h"

namespace native {
namespace {

using E = pe::LinearEpilogue;
using P = pe::PackedKind;

constexpr float kAdded = 0.5f;  // what kAdd finds

struct Case {
    int64_t T, N, K;
    P kind;
    E epilogue;
    bool bias;
    int64_t pad = 3;  // between rows of x

    bool gated() const { return epilogue == E::kSiluGate; }
    int64_t columns() const { return gated() ? N / 2 : N; }
};

struct Packed {
    Memory data, scale;
    pe::PackedMatrix view;

    Packed(const Case& c, const Matrix& weight, bool gated)
        : data(bytes(c)),
          scale(pe::PackedMatrix{nullptr, c.kind, c.N, c.K, nullptr}.panels() * pe::kPanel * 4) {
        const bool i8 = c.kind == pe::PackedKind::kI8;
        memset(data.data(), 0, data.bytes());
        memset(scale.data(), 0, scale.bytes());
        view = {data.data(), c.kind, c.N, c.K, i8 ? static_cast<float*>(scale.data()) : nullptr};
        if (!gated) {
            pe::cpu::linear_pack({weight.view(), view, 0, false});
            return;
        }
        pe::cpu::linear_pack({weight.rows(0, c.N / 2), view, 0, true});
        pe::cpu::linear_pack({weight.rows(c.N / 2, c.N / 2), view, 16, true});
    }
    static int64_t bytes(const Case& c) {
        const pe::PackedMatrix p{nullptr, c.kind, c.N, c.K, nullptr};
        return p.panels() * p.panel_bytes();
    }
};

double activated(const Case& c, double v) {
    if (c.epilogue != pe::LinearEpilogue::kGelu) return v;
    return 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
}

// What the kernel multiplies: the weight as its kind holds it.
double value(const Case& c, const Matrix& weight, int64_t n, int64_t k) {
    if (c.kind == pe::PackedKind::kF32) return weight.get(n, k);
    if (c.kind == pe::PackedKind::kBF16) return pe::to_float(pe::to_bf16(weight.get(n, k)));
    float largest = 0;
    for (int64_t i = 0; i < c.K; ++i) largest = std::max(largest, std::fabs(weight.get(n, i)));
    const float scale = largest / 127.0f;
    return std::nearbyint(weight.get(n, k) * (1.0f / scale)) * static_cast<double>(scale);
}

struct Inputs {
    Matrix x, weight, bias;

    explicit Inputs(const Case& c)
        : x(c.kind == P::kF32 ? pe::DType::kF32 : pe::DType::kBF16, c.T, c.K, c.pad),
          weight(pe::DType::kF32, c.N, c.K, 1),
          bias(floats(c.N)) {
        Rng rng(static_cast<uint64_t>(c.T * 1000003 + c.N * 1009 + c.K));
        x.fill_normal(rng), weight.fill_normal(rng), bias.fill_normal(rng);
    }
};

// y, and what an activation took: its gate and up, or its argument.
struct Outputs {
    Matrix y, kept[2];

    explicit Outputs(const Case& c, pe::DType dtype = pe::DType::kF32)
        : y(dtype, c.T, c.columns(), 2),
          kept{Matrix(dtype, c.T, c.columns()), Matrix(dtype, c.T, c.columns())} {
        if (c.epilogue == E::kAdd) y.fill(kAdded);
    }
    bool same_bits(const Outputs& other) const {
        return y.same_bits(other.y) && kept[0].same_bits(other.kept[0]) &&
               kept[1].same_bits(other.kept[1]);
    }
};

// Rows [begin, begin + n) of the case.
pe::LinearForwardArgs arguments(const Case& c, const Inputs& in, const Packed& packed,
                                const Outputs& out, int64_t begin, int64_t n) {
    pe::LinearForwardArgs args{.x = in.x.rows(begin, n),
                               .weight = packed.view,
                               .bias = c.bias ? in.bias.vector() : pe::VectorView{},
                               .epilogue = c.epilogue,
                               .y = {out.y.rows(begin, n)}};
    const int kept = c.epilogue == E::kSiluGate ? 2 : c.epilogue == E::kGelu ? 1 : 0;
    for (int i = 0; i < kept; ++i) args.kept[i] = out.kept[i].rows(begin, n);
    return args;
}

double check_values(const Case& c, const Inputs& in, const Outputs& out) {
    double worst = 0;
    for (int64_t t = 0; t < c.T; ++t) {
        for (int64_t n = 0; n < c.columns(); ++n) {
            double sum[2] = {0, 0}, size[2] = {0, 0};
            for (int h = 0; h <= (c.gated() ? 1 : 0); ++h) {
                const int64_t row = n + h * c.columns();
                for (int64_t k = 0; k < c.K; ++k) {
                    const double term = in.x.get(t, k) * value(c, in.weight, row, k);
                    sum[h] += term, size[h] += std::fabs(term);
                }
                if (c.bias) sum[h] += in.bias.get(row);
                size[h] += std::fabs(sum[h]);
            }
            const double steps = (static_cast<double>(c.K) + 4) * kUnit;
            double want = activated(c, sum[0]) + (c.epilogue == E::kAdd ? kAdded : 0.0);
            double bound = 2 * steps * size[0] + 8 * kUnit * std::fabs(want) + 1e-6;
            if (c.gated()) {
                const double gate = sum[0] / (1 + std::exp(-sum[0]));
                want = gate * sum[1];
                bound = 2 * steps * (size[0] * std::fabs(sum[1]) + size[1] * std::fabs(gate)) +
                        8 * kUnit * std::fabs(want) + 1e-6;
            }
            worst = std::max(worst, SHARE(out.y.get(t, n), want, bound, "linear"));
            if (c.epilogue != E::kGelu && !c.gated()) continue;
            for (int h = 0; h <= (c.gated() ? 1 : 0); ++h) {
                worst = std::max(worst, SHARE(out.kept[h].get(t, n), sum[h],
                                              2 * steps * size[h] + 1e-6, "linear's kept"));
            }
        }
    }
    return worst;
}

void run_cuda(const Case& c, const Inputs& in, const Packed& packed, const Outputs& out,
              int64_t begin, int64_t n) {
    CHECK(pe::cuda::linear_forward(arguments(c, in, packed, out, begin, n), nullptr) == cudaSuccess,
          "launch");
}

// On tensor cores an output has the same bits whatever stands beside it and whichever tile makes it; in f32 they are the CPU's.
double check_cuda(const Case& c, const Inputs& in, const Packed& packed, const Outputs& cpu,
                  const Options& options) {
    const Outputs whole(c);
    run_cuda(c, in, packed, whole, 0, c.T);
    CHECK(whole.y.padding_is_intact(), "linear wrote between the rows on CUDA");
    if (c.kind == P::kF32) CHECK(whole.same_bits(cpu), "linear's bits on CUDA in f32");
    if (!options.small || c.T < 32) {
        const Outputs parts(c), reversed(c);
        const int64_t cuts[] = {0, c.T / 3, c.T / 3 + std::min<int64_t>(c.T / 3, 1), c.T};
        for (int i = 0; i < 3; ++i) run_cuda(c, in, packed, parts, cuts[i], cuts[i + 1] - cuts[i]);
        CHECK(parts.same_bits(whole), "linear's bits in three batches on CUDA");
        cuda_on_host::set_reversed(true);
        run_cuda(c, in, packed, reversed, 0, c.T);
        cuda_on_host::set_reversed(false);
        CHECK(reversed.same_bits(whole), "linear's bits with threads in another order");
    }
    return check_values(c, in, whole);
}

double run_case(const Case& c, const Options& options) {
    const Inputs in(c);
    std::vector<Outputs> fma;
    double worst = 0;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        const Packed packed(c, in.weight, c.gated());
        for (const int threads : {1, 2}) {
            pe::set_num_threads(threads);
            Outputs out(c);
            pe::cpu::linear_forward(arguments(c, in, packed, out, 0, c.T));
            CHECK(out.y.padding_is_intact(), "linear wrote between the rows");
            if (threads == 1) worst = std::max(worst, check_values(c, in, out));
            if (!has_fma(isa)) continue;
            CHECK(fma.empty() || out.same_bits(fma[0]), "linear's bits");
            if (fma.empty()) fma.push_back(std::move(out));
        }
    }
    if (options.cuda && !fma.empty()) {
        const Packed packed(c, in.weight, c.gated());
        worst = std::max(worst, check_cuda(c, in, packed, fma[0], options));
    }
    return worst;
}

// Three outputs of two dtypes, whose ends are in the midst of a panel, and kept values in bf16: the CPU's values to the last place
// that bf16 has.
void check_outputs_on_cuda() {
    const Case c{5, 70, 33, P::kF32, E::kStore, true};
    const Inputs in(c);
    const Packed packed(c, in.weight, false);
    const auto run = [&](bool cuda, std::vector<Matrix>* y) {
        y->emplace_back(pe::DType::kF32, c.T, 20, 1);
        y->emplace_back(pe::DType::kBF16, c.T, 21, 2);
        y->emplace_back(pe::DType::kF32, c.T, 29);
        pe::LinearForwardArgs args{.x = in.x.view(),
                                   .weight = packed.view,
                                   .bias = in.bias.vector(),
                                   .y = {(*y)[0].view(), (*y)[1].view(), (*y)[2].view()},
                                   .outputs = 3};
        if (!cuda) return pe::cpu::linear_forward(args);
        CHECK(pe::cuda::linear_forward(args, nullptr) == cudaSuccess, "launch");
    };
    std::vector<Matrix> cpu, cuda;
    run(false, &cpu), run(true, &cuda);
    for (size_t i = 0; i < 3; ++i) CHECK(cuda[i].same_bits(cpu[i]), "linear's three outputs");
}

}  // namespace

void test_linear(const Options& options) {
    double worst = 0;
    int cases = 0;
    for (const P kind : {P::kF32, P::kBF16, P::kI8}) {
        for (const Case& c : std::vector<Case>{{0, 33, 17, kind, E::kStore, false},
                                               {1, 1, 1, kind, E::kStore, true},
                                               {1, 100, 65, kind, E::kStore, false},
                                               {13, 32, 31, kind, E::kStore, true},
                                               {25, 33, 48, kind, E::kAdd, true},
                                               {7, 66, 33, kind, E::kSiluGate, true},
                                               {12, 64, 96, kind, E::kGelu, true},
                                               {14, 34, 1027, kind, E::kAdd, true},
                                               {200, 40, 20, kind, E::kStore, false},
                                               {17, 130, 72, kind, E::kStore, false, 0},
                                               {16, 64, 264, kind, E::kSiluGate, false, 8},
                                               {530, 40, 40, kind, E::kGelu, true, 0}}) {
            worst = std::max(worst, run_case(c, options));
            ++cases;
        }
    }
    if (options.cuda) check_outputs_on_cuda();
    printf("  linear %d cases, largest error / bound %.3f\n", cases, worst);
}

}  // namespace native
