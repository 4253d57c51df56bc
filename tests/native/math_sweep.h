// A function of simd.h against double's over floats `stride` apart in their bits: stride 1 is all
// 2^32 of them.
#pragma once

#include <algorithm>

#include "check.h"
#include "math_probe.h"

namespace native {

inline float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// Of f32 around y, denormals included.
inline double ulp(double y) {
    uint64_t bits;
    memcpy(&bits, &y, sizeof bits);
    const uint64_t exponent = std::max<uint64_t>(bits >> 52 & 0x7ff, 1023 - 126) - 23;
    bits = exponent << 52;
    memcpy(&y, &bits, sizeof y);
    return y;
}

struct MathCase {
    const char* name;
    pe::MathFunction function;
    double (*reference)(double x);
    double max_ulps;  // times tail(x)
    double (*tail)(double x) = [](double) { return 1.0; };
};

// Whoever computes it: an instruction set, or CUDA's twin on the host.
struct MathDevice {
    std::string name;
    bool fma, cuda;
    pe::cpu::Isa isa;

    void run(const pe::MathProbeArgs& args) const {
        if (cuda) return pe::cuda::math_probe(args);
        pe::cpu::set_active_isa(isa);
        pe::cpu::math_probe(args);
    }
};

inline std::vector<MathDevice> math_devices(const Options& options) {
    std::vector<MathDevice> devices;
    for (const auto isa : isas(options)) {
        devices.push_back({pe::cpu::isa_name(isa), has_fma(isa), false, isa});
    }
    if (options.cuda) devices.push_back({"cuda", true, true, {}});
    return devices;
}

// Special values, one after the other, on every device.
template <typename F>
void check_special(const MathCase& c, const Options& options, std::vector<float> x, const F& f) {
    x.resize((x.size() + 15) / 16 * 16);
    std::vector<float> y(x.size());
    for (const MathDevice& device : math_devices(options)) {
        device.run({c.function, x.data(), y.data(), static_cast<int64_t>(x.size())});
        f(y);
    }
}

struct Worst {
    double ulps = 0;
    float x = 0;
};

inline void check_one(const MathCase& c, float x, float y, double reference, Worst* worst) {
    if (std::isnan(reference)) {
        CHECK(std::isnan(y), std::string(c.name) + " of " + std::to_string(x));
        return;
    }
    if (std::fabs(reference) >= 0x1.ffffffp127) {  // rounds to infinity
        CHECK(std::isinf(y) && (y > 0) == (reference > 0),
              std::string(c.name) + " of " + std::to_string(x));
        return;
    }
    const double error = std::fabs(y - reference) / (ulp(reference) * c.tail(x));
    if (!(error <= worst->ulps)) *worst = {error, x};
}

// Values on the first device with FMA and on the one without; the others' bits equal the former's.
inline void sweep(const MathCase& c, const Options& options) {
    constexpr int64_t kChunk = 1 << 14;
    const std::vector<MathDevice> devices = math_devices(options);
    std::vector<float> x(kChunk), y(kChunk), fma(kChunk);
    std::vector<double> reference(kChunk);
    Worst worst[2];
    const uint64_t step = uint64_t{options.exp_stride} * kChunk;
    for (uint64_t first = 0; first < (uint64_t{1} << 32); first += step) {
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] = from_bits(static_cast<uint32_t>(first + i * options.exp_stride));
            reference[i] = c.reference(x[i]);
        }
        bool have_fma = false;
        for (const MathDevice& device : devices) {
            device.run({c.function, x.data(), y.data(), kChunk});
            if (device.fma && have_fma) {
                for (size_t i = 0; i < x.size(); ++i) {
                    CHECK(to_bits(y[i]) == to_bits(fma[i]) ||
                              (std::isnan(y[i]) && std::isnan(fma[i])),
                          std::string(c.name) + "'s bits on " + device.name);
                }
                continue;
            }
            for (size_t i = 0; i < x.size(); ++i) {
                check_one(c, x[i], y[i], reference[i], &worst[device.fma]);
            }
            if (device.fma) have_fma = true, std::swap(y, fma);
        }
    }
    for (const bool with_fma : {false, true}) {
        std::string names;
        for (const MathDevice& device : devices) {
            if (device.fma == with_fma) names += (names.empty() ? "" : " ") + device.name;
        }
        if (names.empty()) continue;
        const Worst& w = worst[with_fma];
        printf("  %-9s %11lld floats, worst %.4f ulp at %.9g: %s\n", c.name,
               static_cast<long long>((uint64_t{1} << 32) / options.exp_stride), w.ulps, w.x,
               names.c_str());
        CHECK(w.ulps <= c.max_ulps, c.name);
    }
}

}  // namespace native
