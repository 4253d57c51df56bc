// The 256 values that 8 bits stand for: dynamic tree quantisation, arXiv:2110.02861, section 2.2 (figure 2).
//
// A code is the value's place among all values in ascending order. A magnitude below 1 has e leading zeros, a bit that ends them
// and f fraction bits: 10^-e times the middle of the k-th of 2^f equal parts of [0.1, 1]. Signed codes spend a bit on the sign
// (e + f = 6), unsigned ones on the fraction (e + f = 7, e <= 6). 0 and 1 are the two left over; -1 is none.
#pragma once

#include <bit>
#include <cstdint>

namespace pe {
namespace {  // internal linkage: see isa.h

// Magnitudes in ascending order, and how to find the nearest: a table by the float's exponent and 7 bits of its mantissa
// gives the code up to one threshold, a comparison decides.
template <int COUNT, bool SIGNED>
struct AdamWCodes {
    static constexpr uint32_t kShift = 16;
    static constexpr uint32_t kFirst = std::bit_cast<uint32_t>(0x1p-23f) >> kShift;
    static constexpr uint32_t kBuckets = (std::bit_cast<uint32_t>(1.0f) >> kShift) - kFirst + 1;

    float value[COUNT] = {};
    float threshold[COUNT] =
        {};  // what is above it is nearer to the next value; infinite for the last
    uint8_t start[kBuckets + 3] = {};  // a gather of 32 bits may read three bytes more

    constexpr AdamWCodes() {
        int n = 1;  // value[0] = 0
        double power = 1e6;
        for (int e = 6; e >= 0; --e, power /= 10.0) {
            const int parts = 1 << (SIGNED ? 6 - e : 7 - e);
            for (int k = 0; k < parts; ++k) {
                value[n++] = static_cast<float>((0.1 + 0.9 * (k + 0.5) / parts) / power);
            }
        }
        value[n++] = 1.0f;
        complete = n == COUNT;
        for (int i = 0; i + 1 < COUNT; ++i) threshold[i] = middle(value[i], value[i + 1]);
        threshold[COUNT - 1] = __builtin_inff();
        int code = 0;
        for (uint32_t b = 0; b < kBuckets; ++b) {
            const auto low = std::bit_cast<float>((b + kFirst) << kShift);
            const auto high = std::bit_cast<float>((b + kFirst + 1) << kShift);
            while (threshold[code] < low) ++code;
            start[b] = static_cast<uint8_t>(code);
            if (threshold[code] < high && threshold[code + 1] < high) one_a_bucket = false;
        }
        first_is_zero = threshold[0] >= std::bit_cast<float>(kFirst << kShift);
    }

    // The largest float that is not above the exact middle; a tie goes to the smaller magnitude.
    static constexpr float middle(float a, float b) {
        const double exact = (static_cast<double>(a) + static_cast<double>(b)) / 2.0;
        const auto near = static_cast<float>(exact);
        if (static_cast<double>(near) <= exact) return near;
        return std::bit_cast<float>(std::bit_cast<uint32_t>(near) - 1);
    }

    bool complete = false, one_a_bucket = true, first_is_zero = false;
};

constexpr AdamWCodes<129, true> kSignedCodes{};
constexpr AdamWCodes<256, false> kUnsignedCodes{};
static_assert(kSignedCodes.complete && kSignedCodes.one_a_bucket && kSignedCodes.first_is_zero);
static_assert(kUnsignedCodes.complete && kUnsignedCodes.one_a_bucket &&
              kUnsignedCodes.first_is_zero);

}  // namespace
}  // namespace pe
