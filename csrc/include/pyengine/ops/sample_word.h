// What sample does with a single word, for CPU and CUDA: changes of its logit, its place in the total order, whether it is kept.
#pragma once

#include "pyengine/math64.h"
#include "pyengine/ops/sample.h"

namespace pe {
namespace {  // internal linkage: see isa.h

PE_FORMULA float adjusted_logit(float logit, const LogitAdjust& change) {
    float x = logit > 0.0f ? logit / change.repetition : logit * change.repetition;
    x = x - change.subtract;
    return x + change.bias;
}

// Bits whose order as an unsigned integer is that of the floats from the largest down, and back.
PE_FORMULA uint32_t flip(uint32_t bits) {
    const auto sign = static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31);  // all ones or 0
    return bits ^ (~sign & 0x7fffffffu);
}

// A word as one integer: a smaller key comes earlier in the order (logit descending, id ascending). -0 and +0 are equal,
// as logits are.
PE_FORMULA uint64_t order_key(float logit, int64_t id) {
    return static_cast<uint64_t>(flip(bits_as<uint32_t>(logit + 0.0f))) << 32 |
           static_cast<uint32_t>(id);
}

PE_FORMULA float logit_of(uint64_t key) {
    return bits_as<float>(flip(static_cast<uint32_t>(key >> 32)));
}

PE_FORMULA int64_t id_of(uint64_t key) { return static_cast<int64_t>(key & 0xffffffffu); }

// Where the kept words end in the total order.
struct Boundary {
    float z = -__builtin_huge_valf();
    int64_t id = 0xffffffff;

    PE_FORMULA bool all() const { return z == -__builtin_huge_valf(); }
    PE_FORMULA bool keeps(float logit, int64_t word) const {
        return logit > z || (logit == z && word <= id);
    }
};

}  // namespace
}  // namespace pe
