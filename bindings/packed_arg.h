// A packed weight as Python passes it: words, scale, kind and shape.
#pragma once

#include <string>

#include "check.h"
#include "pyengine/packed.h"

namespace pe::bindings {

inline PackedKind packed_kind(const char* op, const std::string& name) {
    if (name == "float32") return PackedKind::kF32;
    if (name == "bfloat16") return PackedKind::kBF16;
    if (name == "int8") return PackedKind::kI8;
    throw py::value_error("[" + std::string(op) +
                          "] kind must be 'float32', 'bfloat16' or 'int8' but is '" + name + "'");
}

inline PackedMatrix packed_matrix(const char* op, const TensorArg& data, const TensorArg& scale,
                                  const std::string& kind, int64_t N, int64_t K) {
    const std::string prefix = "[" + std::string(op) + "] ";
    check_dtype(data, {DType::kI32});
    check_dtype(scale, {DType::kF32});
    if (N < 1 || K < 1) {
        throw py::value_error(prefix + "N and K must be >= 1 but are " + std::to_string(N) +
                              " and " + std::to_string(K));
    }
    PackedMatrix p{data.data, packed_kind(op, kind), N, K, static_cast<float*>(scale.data)};
    check_shape(data, "(packed words,)", {p.panels() * p.panel_bytes() / 4});
    vector(data);
    if ((p.kind == PackedKind::kI8) != scale.present()) {
        throw py::value_error(
            prefix + "scale must be " +
            (scale.present() ? "None unless kind is 'int8'" : "given when kind is 'int8'"));
    }
    check_shape(scale, "(outputs of all panels,)", {p.panels() * kPanel});
    vector(scale);
    return p;
}

// A weight as Python passes it: a tensor, or (data, kind, N, K) of a PackedWeight.
inline bool is_packed(const py::object& weight) { return py::isinstance<py::tuple>(weight); }

// On the device of `like`. None: no matrix.
inline PackedMatrix packed_weight(const char* op, const char* name, const py::object& weight,
                                  const TensorArg& like) {
    if (weight.is_none()) return {};
    const auto parts = weight.cast<py::tuple>();
    const auto kind = parts[1].cast<std::string>();
    if (kind == "int8") {
        throw py::value_error("[" + std::string(op) + "] " + name +
                              " must be packed as 'float32' or 'bfloat16' but is 'int8'");
    }
    const TensorArg data = borrow(op, name, parts[0]),
                    scale = borrow_optional(op, "scale", py::none());
    check_same_device(like, {&data});
    return packed_matrix(op, data, scale, kind, parts[2].cast<int64_t>(), parts[3].cast<int64_t>());
}

}  // namespace pe::bindings
