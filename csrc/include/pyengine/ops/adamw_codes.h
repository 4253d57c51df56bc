// The 256 values that 8 bits stand for: dynamic tree quantisation, arXiv:2110.02861, section 2.2 (figure 2).
//
// A code is the value's place among all values in ascending order. A magnitude below 1 has e leading zeros, a bit that ends
// them and f fraction bits: 10^-e times the middle of the k-th of 2^f equal parts of [0.1, 1]. Signed codes spend a bit on the
// sign (e + f = 6), unsigned ones on the fraction (e + f = 7, e <= 6). 0 and 1 are the two left over; -1 is none.
//
// Value and place are computed, since a gather costs more: magnitude number t = 2^f + k in [2^f, 2^(f+1)) (unsigned: the code
// plus 1) as a float has f in its exponent and k / 2^f in its mantissa. A decade is a row of the tables; 1 is row 7.
#pragma once

#include <bit>
#include <cstdint>

namespace pe {
namespace {  // internal linkage: see isa.h

constexpr int kRows = 8;

struct AdamWCodes {
    // Twice each, for a register of 16.
    alignas(64) float first[2 * kRows] = {};  // the value of k = 0
    alignas(64) float width[2 * kRows] =
        {};  // of the decade: value = first + width * (k / 2^f), nothing fused
    alignas(64) float part[2 * kRows] = {};          // width / 2^f
    alignas(64) float low[2 * kRows] = {};           // where the decade begins
    alignas(64) float parts_a_unit[2 * kRows] = {};  // 1 / part; 0 for the row of 1
    alignas(64) float last[2 * kRows] = {};          // 2^f - 1
    alignas(
        64) int32_t start[2 * kRows] = {};  // the magnitude's place at k = 0: 2^f, unsigned 2^f - 1
    float edge[kRows] =
        {};  // what is above belongs to this row: the last float not above the middle of neighbours
    int32_t lowest = 0;  // f of row 0

    constexpr explicit AdamWCodes(int first_f) : lowest(first_f) {
        double power = 1e6;
        float before = 0.0f;  // the value below the row
        for (int row = 0; row < kRows; ++row, power /= 10.0) {
            const bool top = row == kRows - 1;
            const int parts = top ? 1 : 1 << (row + lowest);
            for (int i = row; i < 2 * kRows; i += kRows) {
                first[i] = top ? 1.0f : static_cast<float>((0.1 + 0.45 / parts) / power);
                width[i] = top ? 0.0f : static_cast<float>(0.9 / power);
                part[i] = width[i] / static_cast<float>(parts);
                low[i] = top ? 1.0f : static_cast<float>(0.1 / power);
                parts_a_unit[i] = top ? 0.0f : static_cast<float>(parts * power / 0.9);
                last[i] = static_cast<float>(parts - 1);
                start[i] = (1 << (row + lowest)) - lowest;
            }
            edge[row] = middle(before, first[row]);
            before = first[row] + part[row] * last[row];
        }
    }

    // The largest float that is not above the exact middle: a tie goes to the smaller magnitude.
    static constexpr float middle(float a, float b) {
        const double exact = (static_cast<double>(a) + static_cast<double>(b)) / 2.0;
        const auto near = static_cast<float>(exact);
        if (static_cast<double>(near) <= exact) return near;
        return std::bit_cast<float>(std::bit_cast<uint32_t>(near) - 1);
    }
};

constexpr AdamWCodes kSignedCodes{0};
constexpr AdamWCodes kUnsignedCodes{1};
static_assert(kSignedCodes.start[7] == 128 && kUnsignedCodes.start[7] == 255);

}  // namespace
}  // namespace pe
