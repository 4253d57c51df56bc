// Memory of the GPU and pinned memory of the host, owned; and copies between them on a stream. CUDA's errors are thrown.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "pyengine/view.h"

namespace pe::cuda {

inline void check_cuda(int status, const char* what) {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string("[cuda] ") + what +
                             " failed: " + cudaGetErrorString(static_cast<cudaError_t>(status)));
}

struct FreeDevice {
    void operator()(void* p) const { cudaFree(p); }
};
struct FreePinned {
    void operator()(void* p) const { cudaFreeHost(p); }
};

class DeviceMemory {
  public:
    DeviceMemory() = default;
    explicit DeviceMemory(int64_t bytes) {
        void* p = nullptr;
        const std::string what = std::to_string(bytes) + " bytes of the GPU's memory";
        if (bytes > 0) check_cuda(cudaMalloc(&p, static_cast<size_t>(bytes)), what.c_str());
        memory_.reset(p);
    }
    char* data() const { return static_cast<char*>(memory_.get()); }

  private:
    std::unique_ptr<void, FreeDevice> memory_;
};

// Host memory and as much of the GPU's: arrays are placed in both, and go over in one copy.
class Staging {
  public:
    // Makes room for `bytes` and begins anew; what was placed before is gone.
    void begin(int64_t bytes) {
        used_ = 0;
        if (bytes <= capacity_) return;
        void* p = nullptr;
        check_cuda(cudaMallocHost(&p, static_cast<size_t>(bytes)), "pinned memory");
        host_.reset(p);
        device_ = DeviceMemory(bytes);
        capacity_ = bytes;
    }

    // An array in both.
    template <typename T>
    struct Place {
        T *host, *device;
    };
    template <typename T>
    Place<T> take(int64_t count) {
        const int64_t at = used_;
        used_ += round_up(count * static_cast<int64_t>(sizeof(T)));
        return {reinterpret_cast<T*>(static_cast<char*>(host_.get()) + at),
                reinterpret_cast<T*>(device_.data() + at)};
    }
    static int64_t round_up(int64_t bytes) { return (bytes + 15) / 16 * 16; }

    void to_device(cudaStream_t stream) const {
        copy(device_.data(), host_.get(), cudaMemcpyHostToDevice, stream);
    }
    void to_host(cudaStream_t stream) const {
        copy(host_.get(), device_.data(), cudaMemcpyDeviceToHost, stream);
    }

  private:
    void copy(void* to, const void* from, cudaMemcpyKind kind, cudaStream_t stream) const {
        if (used_ == 0) return;
        check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(used_), kind, stream), "a copy");
    }

    std::unique_ptr<void, FreePinned> host_;
    DeviceMemory device_;
    int64_t capacity_ = 0, used_ = 0;
};

// A matrix with room for `capacity` rows.
class DeviceRows {
  public:
    DeviceRows(int64_t capacity, int64_t cols, DType dtype)
        : cols_(cols), dtype_(dtype), memory_(capacity * cols * dtype_bytes(dtype)) {}

    MatrixView view(int64_t begin, int64_t count) const {
        return {memory_.data() + begin * cols_ * dtype_bytes(dtype_), dtype_, count, cols_, cols_};
    }
    MatrixView view(int64_t count) const { return view(0, count); }

  private:
    int64_t cols_;
    DType dtype_;
    DeviceMemory memory_;
};

}  // namespace pe::cuda
