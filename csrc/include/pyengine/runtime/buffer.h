// Zeroed memory on 64 bytes, owned.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "pyengine/view.h"

namespace pe::runtime {

class Buffer {
  public:
    explicit Buffer(int64_t bytes) {
        const auto rounded = static_cast<size_t>((bytes + 63) / 64 * 64 + 64);
        memory_.reset(static_cast<char*>(std::aligned_alloc(64, rounded)));
        if (memory_ == nullptr) throw std::bad_alloc();
        memset(memory_.get(), 0, rounded);
    }
    template <typename T>
    T* as() const {
        return reinterpret_cast<T*>(memory_.get());
    }

  private:
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    std::unique_ptr<char, Free> memory_;
};

// A matrix with room for `capacity` rows.
class Rows {
  public:
    Rows(int64_t capacity, int64_t cols, DType dtype)
        : cols_(cols), dtype_(dtype), buffer_(capacity * cols * dtype_bytes(dtype)) {}

    // Rows [begin, begin + count).
    MatrixView view(int64_t begin, int64_t count) const {
        char* data = buffer_.as<char>() + begin * cols_ * dtype_bytes(dtype_);
        return {data, dtype_, count, cols_, cols_};
    }
    MatrixView view(int64_t count) const { return view(0, count); }

  private:
    int64_t cols_;
    DType dtype_;
    Buffer buffer_;
};

}  // namespace pe::runtime
