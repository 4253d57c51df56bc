#include <array>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>

#include "bind.h"
#include "check.h"
#include "pyengine/ops/pairwise_loss.h"
#include "pyengine/ops/segment_sum.h"
#include "reductions.h"

namespace pe::bindings::objective {
namespace {

constexpr const char* kSegmentSum = "segment_sum";
constexpr const char* kPairwiseLoss = "pairwise_loss";

// segment_sum

void sum_forward(py::object values_, py::object weights, py::object cu_seqlens, py::object sums) {
    const TensorArg values = borrow(kSegmentSum, "values", values_);
    on_cpu(values, {DType::kF32});
    check_dims(values, "(N,)", 1);
    const int64_t N = values.shape[0];
    SegmentSumArgs args{.values = vector(values), .weights = {}, .cu_seqlens = {}, .sums = {}};
    args.weights =
        sized(on_cpu(borrow_optional(kSegmentSum, "weights", weights), {DType::kF32}), "(N,)", N);
    args.cu_seqlens = segment_bounds(
        on_cpu(borrow(kSegmentSum, "cu_seqlens", cu_seqlens), {DType::kI64}), "N", N);
    args.sums = sized(on_cpu(borrow(kSegmentSum, "sums", sums), {DType::kF64}), "(S,)",
                      args.cu_seqlens.size - 1);
    py::gil_scoped_release release;
    cpu::segment_sum_forward(args);
}

void sum_backward(py::object dsums, py::object weights, py::object cu_seqlens,
                  py::object dvalues_) {
    const TensorArg dvalues = borrow(kSegmentSum, "dvalues", dvalues_);
    on_cpu(dvalues, {DType::kF32});
    check_dims(dvalues, "(N,)", 1);
    const int64_t N = dvalues.shape[0];
    SegmentSumBackwardArgs args{
        .dsums = {}, .weights = {}, .cu_seqlens = {}, .dvalues = vector(dvalues)};
    args.weights =
        sized(on_cpu(borrow_optional(kSegmentSum, "weights", weights), {DType::kF32}), "(N,)", N);
    args.cu_seqlens = segment_bounds(
        on_cpu(borrow(kSegmentSum, "cu_seqlens", cu_seqlens), {DType::kI64}), "N", N);
    args.dsums = sized(on_cpu(borrow(kSegmentSum, "dsums", dsums), {DType::kF64}), "(S,)",
                       args.cu_seqlens.size - 1);
    py::gil_scoped_release release;
    cpu::segment_sum_backward(args);
}

// pairwise_loss

[[noreturn]] void refuse(const std::string& what) {
    throw py::value_error("[" + std::string(kPairwiseLoss) + "] " + what);
}

// What messages call the parts of operands and terms; made once, since a TensorArg keeps no copy.
struct Names {
    using Text = char[32];
    Text operand[kPairOperands][3];  // policy, reference, index
    Text term[kPairTerms][2];        // shift, scale
    Text coefficient[kPairTerms][kPairOperands];

    Names() {
        const char *parts[] = {"policy", "reference", "index"}, *numbers[] = {"shift", "scale"};
        for (int k = 0; k < kPairOperands; ++k) {
            for (int i = 0; i < 3; ++i)
                snprintf(operand[k][i], sizeof(Text), "operands[%d].%s", k, parts[i]);
        }
        for (int i = 0; i < kPairTerms; ++i) {
            for (int j = 0; j < 2; ++j)
                snprintf(term[i][j], sizeof(Text), "terms[%d].%s", i, numbers[j]);
            for (int k = 0; k < kPairOperands; ++k)
                snprintf(coefficient[i][k], sizeof(Text), "terms[%d].coefficients[%d]", i, k);
        }
    }
};

const Names& names() {
    static const Names all;
    return all;
}

// Lists and tuples alike; holds the items for the call.
py::tuple items(const char* what, py::handle object) {
    if (!PyTuple_Check(object.ptr()) && !PyList_Check(object.ptr())) {
        throw py::type_error("[" + std::string(kPairwiseLoss) + "] " + what +
                             " must be a list or a tuple but is " +
                             std::string(Py_TYPE(object.ptr())->tp_name));
    }
    return py::reinterpret_steal<py::tuple>(PySequence_Tuple(object.ptr()));
}

int count(const char* what, const py::tuple& list, int most) {
    if (list.size() < 1 || list.size() > static_cast<size_t>(most)) {
        refuse(std::string(what) + " must have 1 to " + std::to_string(most) + " items but has " +
               std::to_string(list.size()));
    }
    return static_cast<int>(list.size());
}

py::tuple fields(const char* what, size_t i, py::handle object, size_t size, const char* kind) {
    if (!PyTuple_Check(object.ptr()) || PyTuple_GET_SIZE(object.ptr()) != Py_ssize_t(size)) {
        throw py::type_error("[" + std::string(kPairwiseLoss) + "] " + what + "[" +
                             std::to_string(i) + "] must be a " + kind + " but is " +
                             std::string(Py_TYPE(object.ptr())->tp_name));
    }
    return py::reinterpret_borrow<py::tuple>(object);
}

bool is_number(py::handle object) {
    return PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr());
}

double number(const char* name, py::handle object) {
    const double value = PyFloat_AsDouble(object.ptr());
    if (value == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (!std::isfinite(value)) {
        refuse(std::string(name) + " must be finite but is " + std::string(py::str(object)));
    }
    return value;
}

// A number, or a tensor of C of them.
PairCoefficient coefficient(const char* name, py::handle object, int64_t C) {
    if (is_number(object))
        return {.data = nullptr, .dtype = DType::kF64, .value = number(name, object)};
    const TensorArg t = borrow(kPairwiseLoss, name, object);
    on_cpu(t, {DType::kF32, DType::kF64});
    const VectorView view = sized(t, "(C,)", C);
    return {.data = view.data, .dtype = view.dtype, .value = 0.0};
}

PairFamily family(size_t i, py::handle object) {
    static const std::array<const char*, 7> known = {"logistic", "square",       "hinge", "sigmoid",
                                                     "linear",   "exp_logistic", "exo"};
    const char* text = PyUnicode_Check(object.ptr()) ? PyUnicode_AsUTF8(object.ptr()) : nullptr;
    std::string list;
    for (size_t f = 0; f < known.size(); ++f) {
        if (text != nullptr && std::string_view(text) == known[f])
            return static_cast<PairFamily>(f);
        list += (f > 0 ? ", " : "") + std::string(known[f]);
    }
    PyErr_Clear();
    refuse("terms[" + std::to_string(i) + "].family must be one of " + list + " but is " +
           std::string(py::repr(object)));
}

double parameter(size_t i, PairFamily kind, py::handle object) {
    const std::string name = "terms[" + std::to_string(i) + "].parameter";
    if (!is_number(object)) {
        throw py::type_error("[" + std::string(kPairwiseLoss) + "] " + name +
                             " must be a number but is " +
                             std::string(Py_TYPE(object.ptr())->tp_name));
    }
    const double x = number(name.c_str(), object);
    const auto check = [&](bool valid, const char* rule) {
        if (!valid) refuse(name + " must be " + rule + " but is " + std::string(py::str(object)));
    };
    if (kind == PairFamily::kExpLogistic) {
        check(x >= 1e-6 && x <= 1e6, "tau in [1e-6, 1e6]");
    } else if (kind == PairFamily::kExo) {
        check(x > 0.0 && x < 1.0 && 1.0 - x < 1.0, "eps in (0, 1)");
    } else {
        check(x == 0.0, "0 for a family that has none");
    }
    return x;
}

// C, S: of the first operand, below 0 before it.
struct Sizes {
    int64_t C = -1, S = -1;
    bool indexed = false;
};

PairOperand operand(size_t k, py::handle object, Sizes* sizes) {
    const py::tuple parts = fields("operands", k, object, 3, "PairOperand");
    const auto take = [&](size_t part) {
        return borrow_optional(kPairwiseLoss, names().operand[k][part], parts[part]);
    };
    const TensorArg policy = borrow(kPairwiseLoss, names().operand[k][0], parts[0]);
    const TensorArg reference = take(1), index = take(2);
    for (const TensorArg* t : {&policy, &reference}) on_cpu(*t, {DType::kF32, DType::kF64});
    on_cpu(index, {DType::kI64});
    check_dims(policy, index.present() ? "(S,)" : "(C,)", 1);
    if (index.present()) check_dims(index, "(C,)", 1);
    if (sizes->S < 0) {
        sizes->indexed = index.present();
        sizes->S = policy.shape[0];
        sizes->C = sizes->indexed ? index.shape[0] : sizes->S;
    } else if (index.present() != sizes->indexed) {
        refuse("operands must all have an index or none, but operands[" + std::to_string(k) +
               (sizes->indexed ? "] has none" : "] has one"));
    }
    const char* shape = sizes->indexed ? "(S,)" : "(C,)";
    PairOperand result{.policy = sized(policy, shape, sizes->S),
                       .reference = sized(reference, shape, sizes->S),
                       .index = sized(index, "(C,)", sizes->C)};
    if (sizes->indexed) check_indices(index, result.index, sizes->S);
    return result;
}

PairTerm term(size_t i, py::handle object, int K, int64_t C) {
    const py::tuple parts = fields("terms", i, object, 5, "PairTerm");
    const std::string where = "terms[" + std::to_string(i) + "].coefficients";
    const py::tuple coefficients = items(where.c_str(), parts[1]);
    if (coefficients.size() != static_cast<size_t>(K)) {
        refuse(where + " must have one item for each of K = " + std::to_string(K) +
               " operands but has " + std::to_string(coefficients.size()));
    }
    PairTerm result;
    result.family = family(i, parts[0]);
    for (size_t k = 0; k < coefficients.size(); ++k) {
        result.coefficients[k] = coefficient(names().coefficient[i][k], coefficients[k], C);
    }
    result.shift = coefficient(names().term[i][0], parts[2], C);
    result.scale = coefficient(names().term[i][1], parts[3], C);
    result.parameter = parameter(i, result.family, parts[4]);
    return result;
}

void take_weight(const py::object& weight, const TensorArg& dsums, const Sizes& sizes,
                 PairwiseLossArgs* args) {
    if (!sizes.indexed) {
        if (!weight.is_none()) refuse("weight is of dsums, so the operands must have an index");
        if (dsums.present()) refuse("dsums must be None where the operands have no index");
        return;
    }
    const TensorArg t = borrow_optional(kPairwiseLoss, "weight", weight);
    if (!t.present()) refuse("weight must be given where the operands have an index");
    on_cpu(t, {DType::kF32, DType::kF64});
    const VectorView view = sized(t, "(C,)", sizes.C);
    if (!dsums.present()) {
        refuse("dsums must have shape (S,) = (" + std::to_string(sizes.S) + ",) but is None");
    }
    args->weight = {.data = view.data, .dtype = view.dtype, .value = 0.0};
    args->dsums = sized(on_cpu(dsums, {DType::kF64}), "(S,)", sizes.S);
}

void loss(py::object operands_, py::object terms_, py::object weight, py::object losses,
          py::object slopes_, py::object dsums) {
    PairwiseLossArgs args;
    Sizes sizes;
    const py::tuple operands = items("operands", operands_), terms = items("terms", terms_);
    args.K = count("operands", operands, kPairOperands);
    args.I = count("terms", terms, kPairTerms);
    for (size_t k = 0; k < operands.size(); ++k) args.operands[k] = operand(k, operands[k], &sizes);
    args.C = sizes.C;
    for (size_t i = 0; i < terms.size(); ++i) args.terms[i] = term(i, terms[i], args.K, sizes.C);
    args.losses =
        sized(on_cpu(borrow(kPairwiseLoss, "losses", losses), {DType::kF32}), "(C,)", sizes.C);
    const TensorArg slopes = borrow(kPairwiseLoss, "slopes", slopes_);
    on_cpu(slopes, {DType::kF32});
    check_shape(slopes, "(K, C)", {args.K, sizes.C});
    args.slopes = matrix(slopes);
    take_weight(weight, borrow_optional(kPairwiseLoss, "dsums", dsums), sizes, &args);
    py::gil_scoped_release release;
    cpu::pairwise_loss(args);
}

}  // namespace

void bind(py::module_& m) {
    m.def("segment_sum_forward", &sum_forward, py::arg("values"), py::arg("weights").none(true),
          py::arg("cu_seqlens"), py::arg("sums"));
    m.def("segment_sum_backward", &sum_backward, py::arg("dsums"), py::arg("weights").none(true),
          py::arg("cu_seqlens"), py::arg("dvalues"));
    m.def("pairwise_loss", &loss, py::arg("operands"), py::arg("terms"),
          py::arg("weight").none(true), py::arg("losses"), py::arg("slopes"),
          py::arg("dsums").none(true));
}

}  // namespace pe::bindings::objective
