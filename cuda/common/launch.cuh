// Starting a kernel. Returns a cudaError_t as int; nothing here waits for the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pe::cuda {
namespace {

// The runtime's typed call, not <<<>>>: it reports this launch's error and leaves no other call's
// behind, and a .cu file stays plain C++, so that tests/native can run it on the host.
template <typename... Params, typename... Args>
int launch(void (*kernel)(Params...), dim3 grid, int threads, void* stream, const Args&... args) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = static_cast<cudaStream_t>(stream);
    return static_cast<int>(cudaLaunchKernelEx(&config, kernel, args...));
}

inline unsigned ceil_div(int64_t n, int64_t d) { return static_cast<unsigned>((n + d - 1) / d); }

}  // namespace
}  // namespace pe::cuda
