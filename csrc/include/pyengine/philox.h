// Philox4x32-10, a counter-based random generator: the same key and counter give the same draw on host and device.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "pyengine/dtype.h"

namespace pe {
namespace {  // internal linkage: see isa.h

struct Philox4x32 {
    uint32_t word[4];
};

PE_HOST_DEVICE inline Philox4x32 philox4x32(uint64_t key, Philox4x32 counter) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    Philox4x32 c = counter;
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c.word[0];
        const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c.word[2];
        c = {{static_cast<uint32_t>(b >> 32) ^ c.word[1] ^ k0, static_cast<uint32_t>(b),
              static_cast<uint32_t>(a >> 32) ^ c.word[3] ^ k1, static_cast<uint32_t>(a)}};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// The uniform in [0, 1) that decides token `position` of sample `sample` of request `request`: 53 random bits.
PE_HOST_DEVICE inline double sampling_uniform(uint64_t seed, uint64_t request, uint32_t sample,
                                              uint32_t position) {
    const Philox4x32 r = philox4x32(
        seed,
        {{static_cast<uint32_t>(request), static_cast<uint32_t>(request >> 32), sample, position}});
    const uint64_t bits = (static_cast<uint64_t>(r.word[0]) << 32) | r.word[1];
    return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

}  // namespace
}  // namespace pe
