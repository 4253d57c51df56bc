// linear on every instruction set, with memory of exactly the stated sizes: against double, and the
// same bits for any rows, threads and instruction set with FMA.
#include "check.h"
#include "pyengine/ops/linear.h"

namespace native {
namespace {

struct Case {
    int64_t T, N, K;
    pe::PackedKind kind;
    pe::LinearEpilogue epilogue;
    bool bias;
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

void run_case(const Case& c, const Options& options, double* worst) {
    Rng rng(static_cast<uint64_t>(c.T * 1000003 + c.N * 1009 + c.K));
    const bool gated = c.epilogue == pe::LinearEpilogue::kSiluGate;
    const bool add = c.epilogue == pe::LinearEpilogue::kAdd;
    const pe::DType x_dtype = c.kind == pe::PackedKind::kF32 ? pe::DType::kF32 : pe::DType::kBF16;
    Matrix x(x_dtype, c.T, c.K, 3), weight(pe::DType::kF32, c.N, c.K, 1), bias = floats(c.N);
    x.fill_normal(rng), weight.fill_normal(rng), bias.fill_normal(rng);
    const int64_t columns = gated ? c.N / 2 : c.N;
    std::vector<Matrix> seen;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        const Packed packed(c, weight, gated);
        for (const int threads : {1, 2}) {
            pe::set_num_threads(threads);
            Matrix y(pe::DType::kF32, c.T, columns, 2);
            if (add) y.fill(0.5f);
            pe::LinearForwardArgs args{.x = x.view(),
                                       .weight = packed.view,
                                       .bias = c.bias ? bias.vector() : pe::VectorView{},
                                       .epilogue = c.epilogue,
                                       .y = {y.view()}};
            pe::cpu::linear_forward(args);
            CHECK(y.padding_is_intact(), "linear wrote between the rows");
            if (has_fma(isa)) {
                CHECK(seen.empty() || y.same_bits(seen[0]), "linear's bits");
                if (seen.empty()) seen.push_back(y.copy());
            }
            for (int64_t t = 0; t < c.T; ++t) {
                for (int64_t n = 0; n < columns; ++n) {
                    double sum[2] = {0, 0}, size[2] = {0, 0};
                    for (int h = 0; h <= (gated ? 1 : 0); ++h) {
                        const int64_t row = n + h * columns;
                        for (int64_t k = 0; k < c.K; ++k) {
                            const double term = x.get(t, k) * value(c, weight, row, k);
                            sum[h] += term, size[h] += std::fabs(term);
                        }
                        if (c.bias) sum[h] += bias.get(row);
                        size[h] += std::fabs(sum[h]);
                    }
                    const double steps = (static_cast<double>(c.K) + 4) * kUnit;
                    double want = activated(c, sum[0]) + (add ? 0.5 : 0.0);
                    double bound = 2 * steps * size[0] + 8 * kUnit * std::fabs(want) + 1e-6;
                    if (gated) {
                        const double gate = sum[0] / (1 + std::exp(-sum[0]));
                        want = gate * sum[1];
                        bound =
                            2 * steps * (size[0] * std::fabs(sum[1]) + size[1] * std::fabs(gate)) +
                            8 * kUnit * std::fabs(want) + 1e-6;
                    }
                    const double used = SHARE(y.get(t, n), want, bound, "linear");
                    *worst = std::max(*worst, used);
                }
            }
        }
    }
}

}  // namespace

void test_linear(const Options& options) {
    using E = pe::LinearEpilogue;
    using P = pe::PackedKind;
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
                                               {200, 40, 20, kind, E::kStore, false}}) {
            run_case(c, options, &worst);
            ++cases;
        }
    }
    printf("  linear %d cases, largest error / bound %.3f\n", cases, worst);
}

}  // namespace native
