// The part of DLPack's C ABI (version 1.x) that borrowing a tensor needs. Layouts are fixed by the DLPack standard:
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace dlpack {

inline constexpr const char* kExchangeCapsule = "dlpack_exchange_api";
inline constexpr uint32_t kMajor = 1;

enum DeviceType : int32_t { kCpu = 1, kCuda = 2 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Version {
    uint32_t major, minor;
};

struct Device {
    int32_t type;
    int32_t id;
};

struct DataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};

struct ExchangeApiHeader {
    Version version;
    ExchangeApiHeader* prev_api;
};

struct ExchangeApi {
    ExchangeApiHeader header;
    void* managed_tensor_allocator;
    void* managed_tensor_from_py_object_no_sync;
    void* managed_tensor_to_py_object_no_sync;
    int (*tensor_from_py_object_no_sync)(void* object, Tensor* out);
    void* current_work_stream;
};

}  // namespace dlpack
