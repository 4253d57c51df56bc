// linear_pack of rows that are in no memory. Of the CPU alone: what a GPU multiplies comes from there.
#pragma once

#include "pyengine/ops/linear.h"

namespace pe {

// Rows that lie in an open file, one behind the other from byte `at`: `pack.weight` has
// their dtype and shape, and no data. `error` becomes what read_file (read_file.h) returns where that is not 0; outputs are
// undefined then.
struct LinearPackFileArgs {
    LinearPackArgs pack;
    int file = -1;
    int64_t at = 0;
    void* workspace = nullptr;
    int threads = 1;  // at most, as many as the workspace was sized for
    int* error = nullptr;
};

namespace cpu {
constexpr int64_t kPackedAtOnce = 16;  // rows, by a thread
constexpr int64_t linear_pack_file_workspace_bytes(int64_t K, DType weight, int threads) {
    return threads * kPackedAtOnce * K * dtype_bytes(weight);
}
PE_CPU_KERNEL(linear_pack_file, LinearPackFileArgs)
}  // namespace cpu

}  // namespace pe
