// Which element of a matrix a lane's register holds, as the PTX manual draws it. The twins go by
// these maps, and tests/native/cute_fragments.cpp holds them against CuTe's.
#pragma once

namespace cuda_on_host {

struct Place {
    int row, column;
};

// Of mma.m16n8k16 with 16-bit operands: element i of a lane's 8 of A, 4 of B, 4 of C. Two elements share a register.
constexpr Place place_in_a(int lane, int i) {
    return {lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
}
constexpr Place place_in_b(int lane, int i) { return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4}; }
constexpr Place place_in_c(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }

// Of ldmatrix: element i of the two that a lane gets of an 8 x 8 matrix.
constexpr Place place_in_8x8(int lane, int i) { return {lane / 4, lane % 4 * 2 + i}; }

}  // namespace cuda_on_host
