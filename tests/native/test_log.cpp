// log of simd.h.
#include "math_sweep.h"

namespace native {

void test_log(const Options& options) {
    const MathCase log{.name = "log",
                       .function = pe::MathFunction::kLog,
                       .reference = [](double x) { return std::log(x); },
                       .max_ulps = 1.0};
    const float inf = INFINITY;
    const std::vector<float> x{1.0f, 0.0f,  -0.0f,        inf,         -inf,
                               NAN,  -1.0f, -0x1.0p-149f, 0x1.0p-149f, std::nextafter(1.0f, 2.0f)};
    check_special(log, options, x, [&](const std::vector<float>& y) {
        CHECK(to_bits(y[0]) == 0, "log(1) is exactly 0");
        CHECK(y[1] == -inf && y[2] == -inf, "log(0)");
        CHECK(y[3] == inf && std::isnan(y[4]) && std::isnan(y[5]), "log of inf, -inf, NaN");
        CHECK(std::isnan(y[6]) && std::isnan(y[7]), "log below 0");
        CHECK(y[8] == -103.27893f, "log of the smallest denormal");
        CHECK(y[9] == 0x1.fffffep-24f, "log just above 1");
    });
    sweep(log, options);
}

}  // namespace native
