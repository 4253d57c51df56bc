// Operands of a product in shared memory, a stage of 32 along K at a time. Chunks of 16 bytes, which cp.async writes, are swizzled so that
// a warp's reads meet in no bank; tests/native/test_mma.cpp counts them.
#pragma once

#include "common/math.cuh"
#include "common/mma.cuh"
#include "pyengine/packed.h"

namespace pe::cuda {
namespace {

constexpr int kStageDepth = 32;               // along K
constexpr int kStagePairs = kStageDepth / 2;  // packed rows of a panel
constexpr int kPanelWidth = static_cast<int>(kPanel);

// Rows of x in shared memory: 64 bytes of K each, 4 chunks. Rows r and r + 2 would meet in a bank.
template <int ROWS>
struct RowsOfX {
    alignas(16) uint32_t word[ROWS * kStagePairs];

    __device__ static int chunk(int row, int c) { return (row * 4 + (c ^ (row / 2 % 4))) * 4; }
    __device__ const uint32_t* address(int row, int c) const { return word + chunk(row, c); }
};

// Rows of queries: HD elements each, of which 8 rows' chunks would meet in the same banks.
template <int ROWS, int HD>
struct RowsOfQ {
    alignas(16) bf16 value[ROWS * HD];

    __device__ static int place(int row, int c) { return row * HD + (c ^ row % 8) * 8; }
    __device__ const bf16* chunk(int row, int c) const { return value + place(row, c); }
    __device__ bf16& at(int row, int d) { return value[place(row, d / 8) + d % 8]; }
};

// Packed pairs, a row of WIDTH outputs each, as in panels and in pages. Four rows' words would meet in a bank.
template <int PAIRS, int WIDTH>
struct WordRows {
    alignas(16) uint32_t word[PAIRS * WIDTH];

    __device__ static int place(int pair, int c) { return pair * WIDTH + (c ^ pair % 4 * 2) * 4; }
    __device__ uint32_t* chunk(int pair, int c) { return word + place(pair, c); }
};

// A lane's words of WordRows, as the B fragment of step `step` of 16 along the sum and tile `tile` of 8 outputs has them. Only four
// places differ from lane to lane in more than a constant: they are worked out once.
struct WordsOfLane {
    int place[4];

    template <int PAIRS, int WIDTH>
    __device__ static WordsOfLane of(const WordRows<PAIRS, WIDTH>&, int lane) {
        WordsOfLane words;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int n = i * 8 + lane / 4;
            words.place[i] = WordRows<PAIRS, WIDTH>::place(lane % 4, n / 4) + n % 4;
        }
        return words;
    }
    template <int PAIRS, int WIDTH>
    __device__ FragmentB fragment(const WordRows<PAIRS, WIDTH>& rows, int step, int tile) const {
        const uint32_t* at = rows.word + place[tile % 4] + step * 8 * WIDTH + tile / 4 * 32;
        return {{at[0], at[4 * WIDTH]}};
    }
};

// A panel's packed rows in shared memory: 32 words (bf16) or half as many (int8) each.
template <typename W>
struct PanelOfW {
    static constexpr int kWords = kPanelWidth * static_cast<int>(sizeof(W)) / 2;
    static constexpr int kChunks = kWords / 4;
    alignas(16) uint32_t word[kStagePairs * kWords];

    __device__ static int chunk(int pair, int c) {
        return pair * kWords + (c ^ (sizeof(W) == 2 ? pair % 4 * 2 : pair % 4 / 2)) * 4;
    }
    // Both elements of a pair for output n, as bf16.
    __device__ uint32_t pair_of(int pair, int n) const {
        if constexpr (sizeof(W) == 2) {
            return word[chunk(pair, n / 4) + n % 4];
        } else {
            const uint32_t two = word[chunk(pair, n / 8) + n % 8 / 2] >> (n % 2 * 16);
            // Integers up to 128 are bf16 numbers.
            const uint32_t low = bits_of(static_cast<float>(static_cast<int8_t>(two & 0xff)));
            const uint32_t high = bits_of(static_cast<float>(static_cast<int8_t>(two >> 8 & 0xff)));
            return low >> 16 | (high & 0xffff0000u);
        }
    }
};

}  // namespace
}  // namespace pe::cuda
