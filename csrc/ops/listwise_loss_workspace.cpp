#include "pyengine/ops/listwise_loss_workspace.h"

namespace pe::cpu {

int64_t listwise_loss_bytes(const ListwiseLossArgs& args) {
    return args.threads * kListFields * list_places(args) * 8 + 64;
}

}  // namespace pe::cpu
