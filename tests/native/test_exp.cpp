// exp of simd.h against double's, over floats `stride` apart in their bits: stride 1 is all 2^32 of
// them. And bf16 rounding against an independent one.
#include "check.h"
#include "exp_probe.h"

namespace native {
namespace {

constexpr double kMaxUlps = 1.05;  // 1.0231 over all floats, at 26.716946
constexpr int64_t kChunk = 1 << 16;

float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// Of f32 around y, denormals included.
double ulp(double y) { return std::ldexp(1.0, std::max(std::ilogb(y), -126) - 23); }

struct Worst {
    double ulps = 0;
    float x = 0;
};

void check_one(float x, float y, Worst* worst) {
    if (std::isnan(x)) {
        CHECK(std::isnan(y), "exp(NaN)");
        return;
    }
    const double reference = std::exp(static_cast<double>(x));
    if (reference >= 0x1.ffffffp127) {  // rounds to infinity
        CHECK(std::isinf(y) && y > 0, "exp(" + std::to_string(x) + ")");
        return;
    }
    const double error =
        reference < 0x1.0p-200 ? y / 0x1.0p-149 : std::fabs(y - reference) / ulp(reference);
    if (!(error <= worst->ulps)) *worst = {error, x};
}

// The bits of all results, so that instruction sets can be compared without keeping them.
uint64_t sweep(void (*probe)(const pe::ExpProbeArgs&), uint32_t stride, Worst* worst) {
    std::vector<float> x(kChunk), y(kChunk);
    uint64_t hash = 0xcbf29ce484222325u;
    for (uint64_t first = 0; first < (uint64_t{1} << 32); first += uint64_t{stride} * kChunk) {
        for (int64_t i = 0; i < kChunk; ++i) {
            x[static_cast<size_t>(i)] =
                from_bits(static_cast<uint32_t>(first + static_cast<uint64_t>(i) * stride));
        }
        probe({x.data(), y.data(), kChunk});
        for (size_t i = 0; i < x.size(); ++i) {
            check_one(x[i], y[i], worst);
            if (!std::isnan(y[i])) hash = (hash ^ to_bits(y[i])) * 0x100000001b3u;
        }
    }
    CHECK(worst->ulps <= kMaxUlps,
          std::to_string(worst->ulps) + " ulp at " + std::to_string(worst->x));
    return hash;
}

void check_exact(void (*probe)(const pe::ExpProbeArgs&)) {
    const float inf = INFINITY;
    const float x[16] = {0.0f,      -0.0f,    inf,     -inf,   NAN,  88.72283f,
                         88.72284f, -103.97f, -104.0f, -1e30f, 1e30f};
    float y[16];
    probe({x, y, 16});
    CHECK(y[0] == 1.0f && y[1] == 1.0f, "exp(0) is exactly 1");
    CHECK(y[2] == inf && y[3] == 0.0f && std::isnan(y[4]), "exp of inf, -inf, NaN");
    CHECK(y[5] < inf && y[6] == inf, "the last finite result");
    CHECK(y[7] == 0x1.0p-149f && y[8] == 0.0f, "the last result that is not 0");
    CHECK(y[9] == 0.0f && y[10] == inf, "far outside");
}

}  // namespace

void test_exp(const Options& options) {
    uint64_t fma_hash = 0;
    const auto run = [&](const char* name, void (*probe)(const pe::ExpProbeArgs&), bool fma) {
        check_exact(probe);
        Worst worst;
        const uint64_t hash = sweep(probe, options.exp_stride, &worst);
        if (fma && fma_hash != 0) CHECK(hash == fma_hash, std::string("exp's bits on ") + name);
        if (fma) fma_hash = hash;
        printf("  exp %-12s %11lld floats, worst %.4f ulp at %.9g\n", name,
               static_cast<long long>((uint64_t{1} << 32) / options.exp_stride), worst.ulps,
               worst.x);
    };
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        run(
            pe::cpu::isa_name(isa), [](const pe::ExpProbeArgs& a) { pe::cpu::exp_probe(a); },
            has_fma(isa));
    }
    if (options.cuda) run("cuda", [](const pe::ExpProbeArgs& a) { pe::cuda::exp_probe(a); }, true);
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
