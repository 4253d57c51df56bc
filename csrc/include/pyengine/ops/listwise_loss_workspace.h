// The scratch of listwise_loss on CPU: for each thread the places of the groups that it computes together.
#pragma once

#include <cstdint>

#include "pyengine/ops/listwise_loss.h"

namespace pe::cpu {
namespace {  // internal linkage: see isa.h

constexpr int64_t kListPlaces = 256;  // of groups computed together, unless one alone is larger
constexpr int64_t kListFields = 7;    // eight bytes of every place each: see Scratch

// Places of a thread, a multiple of 8 so that a whole vector may stand at the end.
inline int64_t list_places(const ListwiseLossArgs& a) {
    const auto* first = ptr<int64_t>(a.groups);
    int64_t most = kListPlaces;
    for (int64_t g = 1; g < a.groups.size; ++g) {
        if (first[g] - first[g - 1] > most) most = first[g] - first[g - 1];
    }
    return (most + 7) / 8 * 8;
}

}  // namespace
}  // namespace pe::cpu
