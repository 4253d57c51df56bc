// Layout  a thread an element, neighbours beside each other: reads and writes of a warp are whole
//         lines, and no element knows another.
#include "pyengine/ops/lion.h"

#include "common/launch.cuh"
#include "common/math.cuh"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;

// One lane of csrc/ops/lion.cpp's.
__global__ void __launch_bounds__(kThreads) lion_kernel(LionArgs a) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= a.param.size) return;
    const LionScalars& s = a.scalars;
    const float p = ptr<float>(a.param)[i], m = ptr<float>(a.exp_avg)[i];
    const float off = ptr<float>(a.grad)[i] * s.grad_scale - m;
    const float c = fmaf(s.one_minus_beta1, off, m);
    ptr<float>(a.param)[i] = p * s.decay - (c > 0.0f ? s.lr : (c < 0.0f ? -s.lr : 0.0f));
    ptr<float>(a.exp_avg)[i] = fmaf(s.one_minus_beta2, off, m);
}

}  // namespace

int lion_step(const LionArgs& a, void* stream) {
    if (a.param.size == 0) return cudaSuccess;
    return launch(lion_kernel, dim3(ceil_div(a.param.size, kThreads)), kThreads, stream, a);
}

}  // namespace pe::cuda
