// How much workspace linear_kl takes: the same for every instruction set.
#include "pyengine/ops/linear_kl_workspace.h"

namespace pe::cpu {

int64_t linear_kl_forward_bytes(const LinearKlForwardArgs& a) {
    return KlWorkspace(a, KlPass::kForward, 0).total_bytes();
}

// The two gradients are made one after the other, in the same memory.
int64_t linear_kl_backward_bytes(const LinearKlBackwardArgs& a) {
    const int64_t groups = a.groups ? a.groups.size - 1 : 1;
    const int64_t hidden = a.dhidden ? KlWorkspace(a, KlPass::kHidden, groups).total_bytes() : 0;
    const int64_t weight = a.dweight ? KlWorkspace(a, KlPass::kWeight, groups).total_bytes() : 0;
    return hidden > weight ? hidden : weight;
}

}  // namespace pe::cpu
