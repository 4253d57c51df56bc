// Layout  one thread a draw; philox.h is the same code on host and device.
#include "pyengine/ops/philox_uniform.h"

#include "common/launch.cuh"
#include "pyengine/philox.h"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void philox_uniform_kernel(PhiloxUniformArgs a) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= a.u.size) return;
    ptr<double>(a.u)[i] = sampling_uniform(static_cast<uint64_t>(ptr<int64_t>(a.seed)[i]),
                                           static_cast<uint64_t>(ptr<int64_t>(a.request)[i]),
                                           static_cast<uint32_t>(ptr<int64_t>(a.sample)[i]),
                                           static_cast<uint32_t>(ptr<int64_t>(a.position)[i]));
}

}  // namespace

int philox_uniform(const PhiloxUniformArgs& args, void* stream) {
    if (args.u.size == 0) return cudaSuccess;
    return launch(philox_uniform_kernel, dim3(ceil_div(args.u.size, kThreads)), kThreads, stream,
                  args);
}

}  // namespace pe::cuda
