#include "pyengine/ops/linear_backward_workspace.h"

#include "pyengine/ops/linear.h"

namespace pe::cpu {

int64_t linear_backward_workspace_bytes(int64_t rows, int64_t N, int64_t K, int64_t groups,
                                        DType x) {
    return LinearBackwardWorkspace(rows, N, K, groups, x).total_bytes();
}

}  // namespace pe::cpu
