// exp of simd.h; and bf16 rounding against an independent one.
#include "math_sweep.h"

namespace native {

void test_exp(const Options& options) {
    const MathCase exp{.name = "exp",
                       .function = pe::MathFunction::kExp,
                       .reference = [](double x) { return std::exp(x); },
                       .max_ulps = 1.0};
    const float inf = INFINITY;
    const std::vector<float> x{0.0f,      -0.0f,    inf,     -inf,   NAN,  88.72283f,
                               88.72284f, -103.97f, -104.0f, -1e30f, 1e30f};
    check_special(exp, options, x, [&](const std::vector<float>& y) {
        CHECK(y[0] == 1.0f && y[1] == 1.0f, "exp(0) is exactly 1");
        CHECK(y[2] == inf && y[3] == 0.0f && std::isnan(y[4]), "exp of inf, -inf, NaN");
        CHECK(y[5] < inf && y[6] == inf, "the last finite result");
        CHECK(y[7] == 0x1.0p-149f && y[8] == 0.0f, "the last result that is not 0");
        CHECK(y[9] == 0.0f && y[10] == inf, "far outside");
    });
    sweep(exp, options);
}

// Every bf16 is itself; halfway between two neighbours goes to the even one, anything else to the
// nearer.
void test_dtype() {
    for (uint32_t high = 0; high < 0x10000; ++high) {
        const pe::bf16 b{static_cast<uint16_t>(high)};
        const float x = pe::to_float(b);
        if (std::isnan(x)) {
            for (const uint32_t low : {0u, 1u, 0xffffu}) {
                CHECK(std::isnan(pe::to_float(pe::to_bf16(from_bits(high << 16 | low)))),
                      "NaN stays NaN");
            }
            continue;
        }
        CHECK(pe::to_bf16(x).bits == high, "bf16 -> f32 -> bf16");
        if (std::isinf(x)) continue;
        const uint32_t even = high % 2 == 0 ? high : high + 1;
        CHECK(pe::to_bf16(from_bits(high << 16 | 0x7fff)).bits == high, "just below halfway");
        CHECK(pe::to_bf16(from_bits(high << 16 | 0x8000)).bits == even, "halfway goes to even");
        CHECK(pe::to_bf16(from_bits(high << 16 | 0x8001)).bits == high + 1, "just above halfway");
    }
}

}  // namespace native
