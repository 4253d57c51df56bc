// The few pieces of CUDA that cuda/**/*.cu use, on the host: this folder stands before the
// toolkit's on the include path, so the real .cu files compile as C++ and run under the sanitizers.
// A block's threads are fibers on one OS thread; see cuda_on_host.cpp for what it checks that a GPU
// would not.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "tensor_cores.h"

#define __global__
#define __constant__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
// One block runs at a time, so its shared memory is static. run.py renames the .bss of each .cu to
// pe_shared, which is filled with NaN before each block.
#define __shared__ static

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;
constexpr cudaError_t cudaErrorInvalidConfiguration = 9;

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

namespace cuda_on_host {

inline dim3 thread_index, block_index;  // of the fiber that is running

cudaError_t run_grid(dim3 grid, dim3 block, const std::function<void()>& thread);
void sync_threads();
void sync_warp();
bool any_of_block(bool value);
uint64_t shuffle(uint64_t value, int source_lane);
int lane();

// Threads and blocks run backwards when set: a missing barrier then shows as different bits.
void set_reversed(bool reversed);

template <typename T>
T shuffle_as(T value, int source_lane) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);  // as CUDA has it
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = shuffle(bits, source_lane);
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace cuda_on_host

#define threadIdx cuda_on_host::thread_index
#define blockIdx cuda_on_host::block_index
inline dim3 blockDim, gridDim;  // of the launch

inline void __syncthreads() { cuda_on_host::sync_threads(); }
inline void __syncwarp() { cuda_on_host::sync_warp(); }

inline int __syncthreads_or(int value) { return cuda_on_host::any_of_block(value != 0); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return cuda_on_host::shuffle_as(value, cuda_on_host::lane() ^ mask);
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return cuda_on_host::shuffle_as(value, lane);
}

inline float __shfl_up_sync(unsigned, float value, int delta) {
    const int lane = cuda_on_host::lane();
    return cuda_on_host::shuffle_as(value, lane < delta ? lane : lane - delta);
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               const Args&... args) {
    return cuda_on_host::run_grid(config->gridDim, config->blockDim, [&] { kernel(args...); });
}

// The GPU's memory is the host's. New memory is NaN; a copy is done when the call returns, as none would be too early here.
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

inline cudaError_t cudaMalloc(void** p, size_t bytes) {
    *p = malloc(bytes);
    memset(*p, 0xff, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaMalloc(p, bytes); }
inline cudaError_t cudaFree(void* p) { return free(p), cudaSuccess; }
inline cudaError_t cudaFreeHost(void* p) { return free(p), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
    return memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
