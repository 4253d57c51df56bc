// silu and gelu_tanh of simd.h.
#include "math_sweep.h"

namespace native {
namespace {

double times_sigmoid(double x, double z) {
    return std::isinf(x) && x < 0 ? -0.0 : x / (1.0 + std::exp(-z));
}

// 2u of gelu_tanh(x) = x (1 + tanh u) / 2 = x / (1 + e^-2u).
double gelu_argument(double x) { return 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x); }

// Both functions, where they leave the beaten track.
void check_limits(const MathCase& c, const Options& options) {
    const float inf = INFINITY;
    check_special(c, options, {0.0f, -0.0f, inf, -inf, NAN, -1e30f, -200.0f, 1e30f, 0x1.0p-149f},
                  [&](const std::vector<float>& y) {
                      CHECK(to_bits(y[0]) == 0 && to_bits(y[1]) == 0x80000000u, "zeros stay");
                      CHECK(y[2] == inf && std::isnan(y[4]), "inf and NaN stay");
                      for (const int i : {3, 5, 6}) {
                          CHECK(to_bits(y[static_cast<size_t>(i)]) == 0x80000000u,
                                "far below 0 it is -0");
                      }
                      CHECK(y[7] == 1e30f, "far above 0 it is x");
                      CHECK(y[8] == 0.0f || y[8] == 0x1.0p-149f, "half the smallest denormal");
                  });
}

}  // namespace

void test_activations(const Options& options) {
    const MathCase silu{.name = "silu",
                        .function = pe::MathFunction::kSilu,
                        .reference = [](double x) { return times_sigmoid(x, x); },
                        .max_ulps = 3.0};
    // Below 0 the rounding of 2u counts |2u| times.
    const MathCase gelu{.name = "gelu_tanh",
                        .function = pe::MathFunction::kGeluTanh,
                        .reference = [](double x) { return times_sigmoid(x, gelu_argument(x)); },
                        .max_ulps = 3.0,
                        .tail = [](double x) { return 1 + std::max(-gelu_argument(x), 0.0); }};
    for (const MathCase& c : {silu, gelu}) {
        check_limits(c, options);
        sweep(c, options);
    }
}

}  // namespace native
