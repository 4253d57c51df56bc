// How linear_logprob's workspace is laid out: the same for every instruction set.
#include "pyengine/ops/linear_logprob_workspace.h"

#include "pyengine/ops/linear_logprob.h"

namespace pe::cpu {

int64_t linear_logprob_workspace_bytes(int64_t T, int64_t D, int64_t V, bool backward,
                                       int threads) {
    return LogprobWorkspace(T, D, V, backward, threads).total_floats() *
           static_cast<int64_t>(sizeof(float));
}

}  // namespace pe::cpu
