#include <pybind11/stl.h>

#include <cmath>
#include <vector>

#include "bind.h"
#include "check.h"
#include "pyengine/ops/sample.h"
#include "pyengine/parallel.h"

namespace pe::bindings::sample {
namespace {

constexpr const char* kOp = "sample";

std::string text(double x) { return py::str(py::float_(x)); }

// `rule` is what every element must be; the message names the first that is not.
template <typename T, typename F>
void check_each(const TensorArg& t, const char* rule, const F& holds) {
    const T* value = static_cast<const T*>(t.data);
    for (int64_t i = 0; i < t.shape[0]; ++i) {
        if (holds(value[i])) continue;
        value_error(t, "must be " + std::string(rule) + " but " + t.name + "[" + std::to_string(i) +
                           "] = " + text(static_cast<double>(value[i])));
    }
}

// The ids' own message: an integer of 64 bits need not be a double.
void check_ids(const TensorArg& t, int64_t end) {
    const int64_t* id = static_cast<const int64_t*>(t.data);
    for (int64_t i = 0; i < t.shape[0]; ++i) {
        if (id[i] >= 0 && id[i] < end) continue;
        value_error(t, "must be in [0, " + std::to_string(end) + ") but " + t.name + "[" +
                           std::to_string(i) + "] = " + std::to_string(id[i]));
    }
}

struct Logits {
    std::vector<MatrixView> views;
    std::vector<float> coefficients;
    int64_t R = 0, V = 0;
    TensorArg first;  // all other tensors are on its device
};

Logits borrow_logits(const py::list& tensors, const std::vector<double>& coefficients) {
    const auto refuse = [](const std::string& what) { throw py::value_error("[sample] " + what); };
    const auto M = static_cast<int64_t>(tensors.size());
    if (M < 1 || M > kMaxSampledModels)
        refuse("logits must be of 1 to 3 models but are of " + std::to_string(M));
    if (static_cast<int64_t>(coefficients.size()) != M) {
        refuse("coefficients must have M = " + std::to_string(M) + " numbers but have " +
               std::to_string(coefficients.size()));
    }
    Logits logits;
    for (int64_t m = 0; m < M; ++m) {
        const TensorArg t = borrow(kOp, "logits", tensors[static_cast<size_t>(m)]);
        check_dtype(t, {DType::kF32});
        check_dims(t, "(R, V)", 2);
        if (m == 0) logits.R = t.shape[0], logits.V = t.shape[1], logits.first = t;
        if (logits.V < 1 || logits.V > INT32_MAX)
            value_error(t, "must have V in [1, 2^31) but got shape " + t.shape_text());
        check_shape(t, "(R, V)", {logits.R, logits.V});
        check_same_device(logits.first, {&t});
        logits.views.push_back(matrix(t));
        const auto c = static_cast<float>(coefficients[static_cast<size_t>(m)]);
        if (!std::isfinite(c))
            refuse("coefficients must be finite but coefficients[" + std::to_string(m) +
                   "] = " + text(static_cast<double>(c)));
        logits.coefficients.push_back(c);
    }
    check_cuda_built(logits.first);
    return logits;
}

// One tensor per field of SampleParams, and of LogitAdjust: compressed rows, draw b's changes are [offsets[b], offsets[b + 1]).
struct Columns {
    TensorArg rows, uniform, temperature, top_k, top_p, min_p;
    TensorArg offsets, ids, repetition, subtract, bias;  // absent: no changes
    int64_t B, N = 0;

    void check_params(const Logits& logits) const {
        for (const TensorArg* t : {&rows, &top_k}) check_dtype(*t, {DType::kI64});
        for (const TensorArg* t : {&uniform, &temperature, &top_p, &min_p})
            check_dtype(*t, {DType::kF64});
        for (const TensorArg* t : {&rows, &uniform, &temperature, &top_k, &top_p, &min_p}) {
            check_shape(*t, "(B,)", {B});
            check_same_device(logits.first, {t});
            vector(*t);
        }
    }

    void check_adjust(const Logits& logits) {
        if (!offsets.present()) return;
        for (const TensorArg* t : {&offsets, &ids}) check_dtype(*t, {DType::kI64});
        for (const TensorArg* t : {&repetition, &subtract, &bias}) check_dtype(*t, {DType::kF32});
        check_shape(offsets, "(B + 1,)", {B + 1});
        check_dims(ids, "(N,)", 1);
        N = ids.shape[0];
        for (const TensorArg* t : {&repetition, &subtract, &bias}) check_shape(*t, "(N,)", {N});
        for (const TensorArg* t : {&offsets, &ids, &repetition, &subtract, &bias}) {
            check_same_device(logits.first, {t});
            vector(*t);
        }
    }
};

// What follows reads values, on the CPU only: on CUDA it would wait for the device. There sample gives status 1 to a row that
// is not there, and passes over changes of words that are not.
std::vector<SampleParams> read_params(const Logits& logits, const Columns& c) {
    check_ids(c.rows, logits.R);
    check_each<double>(c.uniform, "in [0, 1)", [](double u) { return u >= 0.0 && u < 1.0; });
    check_each<double>(c.temperature, "0 or in [1e-30, 1e30]",
                       [](double t) { return t == 0.0 || (t >= 1e-30 && t <= 1e30); });
    check_each<int64_t>(c.top_k, ">= 0", [](int64_t k) { return k >= 0; });
    check_each<double>(c.top_p, "in (0, 1]", [](double p) { return p > 0.0 && p <= 1.0; });
    check_each<double>(c.min_p, "in [0, 1]", [](double p) { return p >= 0.0 && p <= 1.0; });
    std::vector<SampleParams> params(static_cast<size_t>(c.B));
    for (size_t b = 0; b < params.size(); ++b) {
        params[b].temperature = static_cast<const double*>(c.temperature.data)[b];
        params[b].top_p = static_cast<const double*>(c.top_p.data)[b];
        params[b].min_p = static_cast<const double*>(c.min_p.data)[b];
        params[b].top_k = static_cast<const int64_t*>(c.top_k.data)[b];
        params[b].uniform = static_cast<const double*>(c.uniform.data)[b];
        params[b].row = static_cast<const int64_t*>(c.rows.data)[b];
    }
    return params;
}

std::vector<LogitAdjust> read_adjust(int64_t V, const Columns& c,
                                     std::vector<SampleParams>& params) {
    if (!c.offsets.present()) return {};
    const int64_t B = c.B, N = c.N;
    check_ids(c.ids, V);
    check_each<float>(c.repetition, "> 0 and finite",
                      [](float x) { return x > 0.0f && std::isfinite(x); });
    check_each<float>(c.subtract, "finite", [](float x) { return std::isfinite(x); });
    check_each<float>(c.bias, "finite or -inf", [](float x) { return x < INFINITY; });
    const int64_t* offset = static_cast<const int64_t*>(c.offsets.data);
    const int64_t* id = static_cast<const int64_t*>(c.ids.data);
    if (offset[0] != 0 || offset[B] != N) {
        value_error(c.offsets, "must begin with 0 and end with N = " + std::to_string(N) +
                                   " but are " + std::to_string(offset[0]) + " and " +
                                   std::to_string(offset[B]));
    }
    for (int64_t b = 0; b < B; ++b) {
        if (offset[b] > offset[b + 1]) {
            value_error(c.offsets, "must not descend but do after draw " + std::to_string(b));
        }
    }
    for (int64_t b = 0; b < B; ++b) {
        for (int64_t i = offset[b] + 1; i < offset[b + 1]; ++i) {
            if (id[i - 1] >= id[i])
                value_error(c.ids, "must ascend within a draw but adjust_ids[" + std::to_string(i) +
                                       "] = " + std::to_string(id[i]) + " follows " +
                                       std::to_string(id[i - 1]));
        }
        params[static_cast<size_t>(b)].adjust_begin = offset[b];
        params[static_cast<size_t>(b)].adjust_end = offset[b + 1];
    }
    std::vector<LogitAdjust> adjust(static_cast<size_t>(N));
    for (size_t i = 0; i < adjust.size(); ++i) {
        adjust[i] = {.id = static_cast<int32_t>(id[i]),
                     .repetition = static_cast<const float*>(c.repetition.data)[i],
                     .subtract = static_cast<const float*>(c.subtract.data)[i],
                     .bias = static_cast<const float*>(c.bias.data)[i]};
    }
    return adjust;
}

void check_bytes(const TensorArg& workspace, int64_t need) {
    const int64_t have = workspace.shape[0] * dtype_bytes(workspace.dtype);
    if (need > have) {
        value_error(workspace,
                    "must have " + std::to_string(need) + " bytes but has " + std::to_string(have));
    }
}

// The threads that the workspace has room for: set_num_threads may have been called since it was sized.
int threads_that_fit(const TensorArg& workspace, int64_t V) {
    const int64_t have = workspace.shape[0] * dtype_bytes(workspace.dtype);
    int threads = num_threads();
    while (threads > 1 && cpu::sample_workspace_bytes(V, threads) > have) --threads;
    check_bytes(workspace, cpu::sample_workspace_bytes(V, threads));
    return threads;
}

#ifdef PE_WITH_CUDA
// Of B draws with N changes: the structs that columns are made into, and then sample's own.
int64_t cuda_workspace_bytes(int64_t V, int64_t B, int64_t N) {
    return B * static_cast<int64_t>(sizeof(SampleParams)) +
           N * static_cast<int64_t>(sizeof(LogitAdjust)) + cuda::sample_workspace_bytes(V, B);
}

void sample_on_cuda(SampleArgs args, const Columns& c, const TensorArg& workspace, void* stream) {
    check_bytes(workspace, cuda_workspace_bytes(args.logits[0].cols, c.B, c.N));
    auto* params = static_cast<SampleParams*>(workspace.data);
    auto* adjust = reinterpret_cast<LogitAdjust*>(params + c.B);
    const cuda::SampleColumns columns{.rows = vector(c.rows),
                                      .uniform = vector(c.uniform),
                                      .temperature = vector(c.temperature),
                                      .top_k = vector(c.top_k),
                                      .top_p = vector(c.top_p),
                                      .min_p = vector(c.min_p),
                                      .adjust_offsets = vector(c.offsets),
                                      .adjust_ids = vector(c.ids),
                                      .adjust_repetition = vector(c.repetition),
                                      .adjust_subtract = vector(c.subtract),
                                      .adjust_bias = vector(c.bias),
                                      .params = params,
                                      .adjust = adjust};
    args.params = params;
    args.adjust = adjust;
    args.workspace = adjust + c.N;
    py::gil_scoped_release release;
    const int status = cuda::sample_params(columns, stream);
    check_cuda_status(kOp, status != 0 ? status : cuda::sample(args, stream));
}
#endif

void sample(const py::list& logits_, const std::vector<double>& coefficients, py::object rows,
            py::object uniform, py::object temperature, py::object top_k, py::object top_p,
            py::object min_p, py::object adjust_offsets, py::object adjust_ids,
            py::object adjust_repetition, py::object adjust_subtract, py::object adjust_bias,
            py::object token_ids_, py::object logprobs_, py::object sampling_logprobs_,
            py::object kept_mass_, py::object entropy_, py::object top_ids_,
            py::object top_logprobs_, py::object status_, py::object workspace_, uintptr_t stream) {
    const Logits logits = borrow_logits(logits_, coefficients);
    const auto M = static_cast<int64_t>(logits.views.size());
    const TensorArg token_ids = borrow(kOp, "token_ids", token_ids_);
    const TensorArg logprobs = borrow(kOp, "logprobs", logprobs_);
    const TensorArg sampling_logprobs = borrow(kOp, "sampling_logprobs", sampling_logprobs_);
    const TensorArg kept_mass = borrow(kOp, "kept_mass", kept_mass_);
    const TensorArg entropy = borrow_optional(kOp, "entropy", entropy_);
    const TensorArg top_ids = borrow_optional(kOp, "top_ids", top_ids_);
    const TensorArg top_logprobs = borrow_optional(kOp, "top_logprobs", top_logprobs_);
    const TensorArg status = borrow(kOp, "status", status_);
    const TensorArg workspace = borrow(kOp, "workspace", workspace_);
    for (const TensorArg* t : {&token_ids, &top_ids}) check_dtype(*t, {DType::kI64});
    for (const TensorArg* t : {&logprobs, &sampling_logprobs, &kept_mass, &entropy, &top_logprobs})
        check_dtype(*t, {DType::kF32});
    check_dtype(status, {DType::kI32});
    check_dims(token_ids, "(B,)", 1);
    const int64_t B = token_ids.shape[0];
    for (const TensorArg* t : {&sampling_logprobs, &kept_mass, &entropy, &status})
        check_shape(*t, "(B,)", {B});
    check_shape(logprobs, "(B, M)", {B, M});
    if (top_ids.present() != top_logprobs.present())
        value_error(top_ids, "must be given with top_logprobs, or neither");
    if (top_ids.present()) {
        check_dims(top_ids, "(B, k)", 2);
        const int64_t k = top_ids.shape[1];
        check_shape(top_ids, "(B, k)", {B, k});
        check_shape(top_logprobs, "(B, k)", {B, k});
        if (k < 1 || k > logits.V) {
            value_error(top_ids, "must have k in [1, V = " + std::to_string(logits.V) +
                                     "] but got shape " + top_ids.shape_text());
        }
    }
    check_same_device(logits.first, {&token_ids, &logprobs, &sampling_logprobs, &kept_mass,
                                     &entropy, &top_ids, &top_logprobs, &status, &workspace});
    check_dims(workspace, "(bytes,)", 1);
    vector(workspace);
    const auto given = [&](const char* name, const py::object& tensor) {
        return adjust_offsets.is_none() ? borrow_optional(kOp, name, adjust_offsets)
                                        : borrow(kOp, name, tensor);
    };
    Columns columns{.rows = borrow(kOp, "rows", rows),
                    .uniform = borrow(kOp, "uniform", uniform),
                    .temperature = borrow(kOp, "temperature", temperature),
                    .top_k = borrow(kOp, "top_k", top_k),
                    .top_p = borrow(kOp, "top_p", top_p),
                    .min_p = borrow(kOp, "min_p", min_p),
                    .offsets = given("adjust_offsets", adjust_offsets),
                    .ids = given("adjust_ids", adjust_ids),
                    .repetition = given("adjust_repetition", adjust_repetition),
                    .subtract = given("adjust_subtract", adjust_subtract),
                    .bias = given("adjust_bias", adjust_bias),
                    .B = B};
    columns.check_params(logits);
    columns.check_adjust(logits);
    SampleArgs args{.logits = logits.views.data(),
                    .coefficients = logits.coefficients.data(),
                    .models = M,
                    .draws = B,
                    .token_ids = vector(token_ids),
                    .logprobs = matrix(logprobs),
                    .sampling_logprobs = vector(sampling_logprobs),
                    .kept_mass = vector(kept_mass),
                    .entropy = vector(entropy),
                    .top_ids = matrix(top_ids),
                    .top_logprobs = matrix(top_logprobs),
                    .status = vector(status),
                    .workspace = workspace.data};
#ifdef PE_WITH_CUDA
    if (logits.first.is_cuda)
        return sample_on_cuda(args, columns, workspace, reinterpret_cast<void*>(stream));
#endif
    (void)stream;
    std::vector<SampleParams> params = read_params(logits, columns);
    const std::vector<LogitAdjust> adjust = read_adjust(logits.V, columns, params);
    args.params = params.data();
    args.adjust = adjust.data();
    args.threads = threads_that_fit(workspace, logits.V);
    py::gil_scoped_release release;
    cpu::sample(args);
}

// On CUDA for B draws with N changes.
int64_t workspace_bytes(int64_t V, int64_t B, int64_t N, bool cuda) {
#ifdef PE_WITH_CUDA
    if (cuda) return cuda_workspace_bytes(V, B, N);
#endif
    (void)B, (void)N, (void)cuda;
    return cpu::sample_workspace_bytes(V, num_threads());
}

}  // namespace

void bind(py::module_& m) {
    m.def("sample_workspace_bytes", &workspace_bytes, py::arg("V"), py::arg("B") = 0,
          py::arg("N") = 0, py::arg("cuda") = false);
    m.def("sample", &sample, py::arg("logits"), py::arg("coefficients"), py::arg("rows"),
          py::arg("uniform"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
          py::arg("min_p"), py::arg("adjust_offsets").none(true), py::arg("adjust_ids").none(true),
          py::arg("adjust_repetition").none(true), py::arg("adjust_subtract").none(true),
          py::arg("adjust_bias").none(true), py::arg("token_ids"), py::arg("logprobs"),
          py::arg("sampling_logprobs"), py::arg("kept_mass"), py::arg("entropy").none(true),
          py::arg("top_ids").none(true), py::arg("top_logprobs").none(true), py::arg("status"),
          py::arg("workspace"), py::arg("stream") = 0);
}

}  // namespace pe::bindings::sample
