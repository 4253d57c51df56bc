#pragma once

#include <cstdint>

namespace pe::cuda {

// A warp's c (16, 8) += a (16, K) . b (K, 8)^T, b given as (8, K); a and b are bits of bf16, K a
// multiple of 16 up to 64.
struct MmaProbeArgs {
    const uint16_t* a;
    const uint16_t* b;
    float* c;
    int K;
    bool transposed;  // a is given as (K, 16), and b as (K, 8)
    bool forget;      // to wait for the copies
};

void mma_probe(const MmaProbeArgs& args);

// The words of shared memory that the 32 lanes of a warp read at once, of shared_tiles.cuh: a row's
// chunk of x by ldmatrix (8 lanes at a time), or an output's pair.
enum class SharedRead { kRowsOfX, kPanelBf16, kPanelInt8, kRowsOfQ, kWordRows };
void shared_read(SharedRead read, int step, int (&words)[32]);

}  // namespace pe::cuda
