// What tiles fetch ahead (packed_tile.h): every line once, evenly, and none past the end.
#define PE_ISA baseline
#include "pyengine/packed_tile.h"

#include "check.h"

namespace native {
namespace {

namespace tile = pe::cpu::PE_ISA;

void test_ahead(int64_t bytes, int64_t tiles, int64_t steps) {
    const std::string what = std::to_string(bytes) + " bytes, " + std::to_string(tiles) +
                             " tiles, " + std::to_string(steps) + " steps";
    const std::vector<char> panel(static_cast<size_t>(bytes) + 1);
    const int64_t lines = (bytes + 63) / 64, walks = tiles * tile::kPasses;
    tile::Ahead ahead(panel.data(), bytes, tiles, steps);
    int64_t halfway = 0;
    for (int64_t walk = 0; walk < walks; ++walk) {
        for (int64_t step = 0; step < steps;) {
            const int64_t next = ahead.fetch(steps - step);
            CHECK(next > 0 && next <= steps - step, what);
            step += next;
        }
        if (walk < walks / 2) halfway = (ahead.at - panel.data()) / 64;
    }
    const int64_t fetched = (ahead.at - panel.data()) / 64;
    CHECK(fetched < lines + ahead.lines, what + ": past the end");
    CHECK(fetched >= (walks * steps < lines ? walks * steps : lines), what + ": not all");
    // What a fetch is not evenly: a walk begins with one, and steps are whole.
    if (walks % 2 == 0 && steps >= 64) CHECK(halfway >= fetched / 2 - ahead.lines, what + ": late");
}

}  // namespace

void test_packed_tile() {
    for (const int64_t bytes : {0, 1, 64, 65, 73728, 196608}) {
        for (const int64_t tiles : {1, 2, 3, 11, 32}) {
            for (const int64_t steps : {1, 7, 288, 576, 1536}) test_ahead(bytes, tiles, steps);
        }
    }
}

}  // namespace native
