// How linear_logprob's workspace is laid out: the same for every instruction set.
#include "pyengine/ops/linear_logprob_workspace.h"

#include "pyengine/ops/linear_logprob.h"

namespace pe::cpu {

int64_t linear_logprob_forward_bytes(const LinearLogprobForwardArgs& a) {
    return LogprobWorkspace(logprob_size(a)).total_bytes();
}

int64_t linear_logprob_backward_bytes(const LinearLogprobBackwardArgs& a) {
    return LogprobWorkspace(logprob_size(a)).total_bytes();
}

}  // namespace pe::cpu
