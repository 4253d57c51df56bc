// How large attention_backward's workspace is: the same for every instruction set.
#include "pyengine/attention_backward_workspace.h"

#include "pyengine/ops/attention_backward.h"

namespace pe::cpu {

int64_t attention_backward_workspace_bytes(int64_t T, int64_t S, int64_t num_heads,
                                           int64_t num_kv_heads, int64_t head_dim, int threads) {
    return AttentionBackwardWorkspace(T, S, num_heads, num_kv_heads, head_dim, threads)
               .total_floats() *
           static_cast<int64_t>(sizeof(float));
}

}  // namespace pe::cpu
