#include "tensor_arg.h"

#include "dlpack_abi.h"

namespace pe::bindings {
namespace {

// Borrowed for the life of the process: torch is never unloaded.
PyTypeObject* g_tensor = nullptr;
PyTypeObject* g_parameter = nullptr;
const dlpack::ExchangeApi* g_exchange = nullptr;
bool g_use_exchange = false;

[[noreturn]] void refuse(const char* op, const char* name, const std::string& what) {
    throw py::type_error("[" + std::string(op) + "] " + name + " " + what);
}

bool dtype_from_dlpack(dlpack::DataType t, DType* out) {
    if (t.lanes != 1) return false;
    if (t.code == dlpack::kFloat && t.bits == 32) return *out = DType::kF32, true;
    if (t.code == dlpack::kFloat && t.bits == 64) return *out = DType::kF64, true;
    if (t.code == dlpack::kBfloat && t.bits == 16) return *out = DType::kBF16, true;
    if (t.code == dlpack::kInt && t.bits == 32) return *out = DType::kI32, true;
    if (t.code == dlpack::kInt && t.bits == 64) return *out = DType::kI64, true;
    if (t.code == dlpack::kUInt && t.bits == 8) return *out = DType::kU8, true;
    return false;
}

bool dtype_from_name(const std::string& name, DType* out) {
    if (name == "torch.float32") return *out = DType::kF32, true;
    if (name == "torch.float64") return *out = DType::kF64, true;
    if (name == "torch.bfloat16") return *out = DType::kBF16, true;
    if (name == "torch.int32") return *out = DType::kI32, true;
    if (name == "torch.int64") return *out = DType::kI64, true;
    if (name == "torch.uint8") return *out = DType::kU8, true;
    return false;
}

std::string dtype_name(py::handle object) {
    return py::str(object.attr("dtype")).cast<std::string>();
}

void check_ndim(const char* op, const char* name, int64_t ndim) {
    if (ndim > kMaxDims)
        refuse(op, name, "has " + std::to_string(ndim) + " dimensions, more than 8");
}

void read_exchange(TensorArg* arg, py::handle object) {
    dlpack::Tensor t{};
    if (g_exchange->tensor_from_py_object_no_sync(object.ptr(), &t) != 0)
        throw py::error_already_set();
    check_ndim(arg->op, arg->name, t.ndim);
    if (!dtype_from_dlpack(t.dtype, &arg->dtype)) {
        refuse(arg->op, arg->name, "has unsupported dtype " + dtype_name(object));
    }
    arg->data = static_cast<char*>(t.data) + t.byte_offset;
    arg->ndim = t.ndim;
    for (int i = 0; i < t.ndim; ++i) {
        arg->shape[i] = t.shape[i];
        arg->strides[i] = t.strides[i];
    }
    if (t.device.type != dlpack::kCpu && t.device.type != dlpack::kCuda) {
        refuse(arg->op, arg->name, "is on an unsupported device");
    }
    arg->is_cuda = t.device.type == dlpack::kCuda;
    arg->device_id = t.device.id;
}

void read_attributes(TensorArg* arg, py::handle object) {
    const py::tuple shape = object.attr("shape"), strides = object.attr("stride")();
    check_ndim(arg->op, arg->name, static_cast<int64_t>(shape.size()));
    if (!dtype_from_name(dtype_name(object), &arg->dtype)) {
        refuse(arg->op, arg->name, "has unsupported dtype " + dtype_name(object));
    }
    arg->data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
    arg->ndim = static_cast<int>(shape.size());
    for (int i = 0; i < arg->ndim; ++i) {
        arg->shape[i] = shape[static_cast<size_t>(i)].cast<int64_t>();
        arg->strides[i] = strides[static_cast<size_t>(i)].cast<int64_t>();
    }
    const py::object device = object.attr("device");
    const auto type = device.attr("type").cast<std::string>();
    if (type != "cpu" && type != "cuda")
        refuse(arg->op, arg->name, "is on unsupported device " + type);
    arg->is_cuda = type == "cuda";
    arg->device_id = device.attr("index").is_none() ? 0 : device.attr("index").cast<int>();
}

}  // namespace

int64_t TensorArg::numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
}

std::string TensorArg::shape_text() const {
    std::string text = "(";
    for (int i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + (ndim == 1 ? ",)" : ")");
}

std::string TensorArg::device_text() const {
    return is_cuda ? "cuda:" + std::to_string(device_id) : "cpu";
}

void register_torch(py::object tensor_type, py::object parameter_type) {
    g_tensor = reinterpret_cast<PyTypeObject*>(tensor_type.ptr());
    g_parameter = reinterpret_cast<PyTypeObject*>(parameter_type.ptr());
    g_exchange = nullptr;
    if (py::hasattr(tensor_type, "__dlpack_c_exchange_api__")) {
        const py::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
        const auto* api = static_cast<const dlpack::ExchangeApi*>(
            PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeCapsule));
        if (api == nullptr) PyErr_Clear();
        if (api != nullptr && api->header.version.major == dlpack::kMajor &&
            api->tensor_from_py_object_no_sync != nullptr) {
            g_exchange = api;
        }
    }
    g_use_exchange = g_exchange != nullptr;
}

bool use_exchange_api(bool use) {
    g_use_exchange = use && g_exchange != nullptr;
    return g_use_exchange;
}

TensorArg borrow(const char* op, const char* name, py::handle object) {
    PyTypeObject* type = Py_TYPE(object.ptr());
    if (type != g_tensor && type != g_parameter) {
        refuse(op, name, "must be a torch.Tensor but is " + std::string(type->tp_name));
    }
    TensorArg arg;
    arg.op = op;
    arg.name = name;
    try {
        if (g_use_exchange) {
            read_exchange(&arg, object);
        } else {
            read_attributes(&arg, object);
        }
    } catch (const py::error_already_set& error) {  // sparse, meta: torch has no memory to show
        refuse(op, name, "has no plain memory: " + std::string(py::str(error.value())));
    }
    if (object.attr("is_neg")().cast<bool>()) {
        refuse(op, name, "is a negated view: its memory does not hold its values");
    }
    if (arg.data == nullptr && arg.numel() > 0) refuse(op, name, "has no memory behind it");
    return arg;
}

TensorArg borrow_optional(const char* op, const char* name, py::handle object) {
    if (!object.is_none()) return borrow(op, name, object);
    TensorArg arg;
    arg.op = op;
    arg.name = name;
    arg.ndim = -1;
    return arg;
}

}  // namespace pe::bindings
