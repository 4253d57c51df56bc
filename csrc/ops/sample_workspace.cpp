// How much workspace sample needs: the same for every instruction set.
#include "pyengine/ops/sample_workspace.h"

#include "pyengine/ops/sample.h"

namespace pe::cpu {

int64_t sample_workspace_bytes(int64_t V, int threads) {
    return SampleWorkspace(V).total_bytes(threads);
}

}  // namespace pe::cpu
