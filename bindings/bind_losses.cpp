#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bind.h"
#include "pyengine/ops/listwise_loss.h"
#include "pyengine/ops/token_loss.h"
#include "pyengine/parallel.h"
#include "reductions.h"

namespace pe::bindings::losses {
namespace {

constexpr const char* kToken = "token_loss";
constexpr const char* kList = "listwise_loss";

[[noreturn]] void refuse(const char* op, const std::string& what) {
    throw py::value_error("[" + std::string(op) + "] " + what);
}

// Which of the names, in the order of its enum.
template <typename Enum, size_t N>
Enum named(const char* op, const char* what, const std::string& name,
           const std::array<const char*, N>& known) {
    std::string list;
    for (size_t i = 0; i < N; ++i) {
        if (name == known[i]) return static_cast<Enum>(i);
        list += (i > 0 ? ", " : "") + std::string(known[i]);
    }
    refuse(op, std::string(what) + " must be one of " + list + " but is '" + name + "'");
}

void check(const char* op, const char* what, double x, bool valid, const char* rule) {
    if (!valid) {
        refuse(op, std::string(what) + " must be " + rule + " but is " +
                       std::string(py::str(py::float_(x))));
    }
}

// Required and optional (size,) vectors, on the device of `first`.
VectorView beside(const TensorArg& first, const TensorArg& t, std::initializer_list<DType> allowed,
                  const char* shape, int64_t size) {
    check_dtype(t, allowed);
    check_same_device(first, {&t});
    return sized(t, shape, size);
}

// An output that is there if and only if its input is.
VectorView metric(const TensorArg& first, const TensorArg& t, const TensorArg& input, int64_t S) {
    if (t.present() != input.present()) {
        refuse(kToken,
               std::string(t.name) + " must be given if " + input.name + " is, and only then");
    }
    return beside(first, t, {DType::kF64}, "(S,)", S);
}

// token_loss

void take_numbers(double low, double high, const py::object& dual, double beta,
                  TokenLossArgs* args) {
    args->low = low, args->high = high, args->beta = beta;
    check(kToken, "low", low, low >= 0.0 && low <= 1.0, "in [0, 1]");
    check(kToken, "high", high, high >= 0.0 && std::isfinite(high), ">= 0 and finite");
    check(kToken, "beta", beta, std::isfinite(beta), "finite");
    args->dual = dual.is_none() ? HUGE_VAL : dual.cast<double>();
    check(kToken, "dual", args->dual, dual.is_none() || (args->dual > 1.0 && args->dual < HUGE_VAL),
          "> 1 and finite, or None");
}

void token(const py::object& policy_, const py::object& old_, const py::object& reference_,
           const py::object& cu_seqlens, const py::object& advantages, bool per_token,
           const py::object& factor, const std::string& family, const std::string& level,
           double low, double high, const py::object& dual, const std::string& penalty, double beta,
           const py::object& losses, const py::object& dlogps, const py::object& logps,
           const py::object& log_ratio, const py::object& kl, uintptr_t stream) {
    TokenLossArgs args;
    args.family =
        named<TokenFamily, 3>(kToken, "family", family, {"clipped", "log_prob", "tapered"});
    args.level = named<TokenLevel, 3>(kToken, "level", level, {"token", "mean", "sum"});
    args.penalty = named<TokenPenalty, 4>(kToken, "penalty", penalty,
                                          {"none", "k3", "log_ratio", "sum_log_ratio"});
    take_numbers(low, high, dual, beta, &args);
    const TensorArg policy = borrow(kToken, "policy", policy_);
    check_dtype(policy, {DType::kF32});
    check_dims(policy, "(N,)", 1);
    check_cuda_built(policy);
    const int64_t N = policy.shape[0];
    const auto optional = [](const char* name, const py::object& object) {
        return borrow_optional(kToken, name, object);
    };
    const TensorArg old = optional("old", old_), reference = optional("reference", reference_);
    args.policy = vector(policy);
    args.old = beside(policy, old, {DType::kF32}, "(N,)", N);
    args.reference = beside(policy, reference, {DType::kF32}, "(N,)", N);
    if (!old.present() && args.family != TokenFamily::kLogProb)
        refuse(kToken, "old must be given with family '" + family + "'");
    if (!reference.present() && args.penalty != TokenPenalty::kNone)
        refuse(kToken, "reference must be given with penalty '" + penalty + "'");
    const TensorArg bounds = borrow(kToken, "cu_seqlens", cu_seqlens);
    check_same_device(policy, {&bounds});
    args.cu_seqlens = segment_bounds(bounds, "N", N);
    const int64_t S = args.cu_seqlens.size - 1;
    args.per_token = per_token;
    if (per_token && args.family == TokenFamily::kClipped && args.level == TokenLevel::kSum)
        refuse(kToken, "per_token must be False where level 'sum' is clipped");
    args.advantages =
        beside(policy, borrow(kToken, "advantages", advantages), {DType::kF32, DType::kF64},
               per_token ? "(N,)" : "(S,)", per_token ? N : S);
    args.factor = beside(policy, optional("factor", factor), {DType::kF64}, "(S,)", S);
    args.losses = beside(policy, borrow(kToken, "losses", losses), {DType::kF64}, "(S,)", S);
    args.dlogps = beside(policy, borrow(kToken, "dlogps", dlogps), {DType::kF32}, "(N,)", N);
    args.logps = beside(policy, borrow(kToken, "logps", logps), {DType::kF64}, "(S,)", S);
    args.log_ratio = metric(policy, optional("log_ratio", log_ratio), old, S);
    args.kl = metric(policy, optional("kl", kl), reference, S);
    py::gil_scoped_release release;
#ifdef PE_WITH_CUDA
    if (policy.is_cuda)
        return check_cuda_status(kToken, cuda::token_loss(args, reinterpret_cast<void*>(stream)));
#endif
    (void)stream;
    cpu::token_loss(args);
}

// listwise_loss

// Every response once, which is checked on the CPU only, as segment_bounds.
VectorView places(const TensorArg& first, const TensorArg& index, int64_t S) {
    const VectorView view = beside(first, index, {DType::kI64}, "(S,)", S);
    if (!view || index.is_cuda) return view;
    check_indices(index, view, S);
    std::vector<char> seen(static_cast<size_t>(S), 0);
    for (int64_t k = 0; k < S; ++k) {
        const int64_t j = ptr<int64_t>(view)[k];
        if (seen[static_cast<size_t>(j)]++ != 0)
            value_error(index,
                        "must have every response once but has " + std::to_string(j) + " twice");
    }
    return view;
}

// Of a GPU's workspace for S responses; the CPU's is made here.
int64_t list_workspace_bytes([[maybe_unused]] int64_t S) {
#ifdef PE_WITH_CUDA
    ListwiseLossArgs args;
    args.policy.size = S;
    return cuda::listwise_loss_bytes(args);
#else
    return 0;
#endif
}

#ifdef PE_WITH_CUDA
void* list_workspace(const TensorArg& policy, const TensorArg& workspace) {
    const int64_t need = list_workspace_bytes(policy.shape[0]);
    if (!workspace.present()) refuse(kList, "workspace must be given on a GPU");
    check_same_device(policy, {&workspace});
    check_dims(workspace, "(bytes,)", 1);
    vector(workspace);
    const int64_t have = workspace.shape[0] * dtype_bytes(workspace.dtype);
    if (have < need) {
        value_error(workspace,
                    "must have " + std::to_string(need) + " bytes but has " + std::to_string(have));
    }
    return workspace.data;
}
#endif

void list(const py::object& policy_, const py::object& reference, const py::object& values,
          const py::object& groups, const py::object& index, const py::object& weight,
          const std::string& family, double beta, double temperature, bool mean,
          const py::object& losses, const py::object& dsums, const py::object& ranking_,
          const py::object& workspace_, uintptr_t stream) {
    ListwiseLossArgs args;
    args.family = named<ListFamily, 6>(
        kList, "family", family,
        {"plackett_luce", "softmax", "infonca", "nca", "pairs", "lambda_pairs"});
    args.beta = beta, args.temperature = temperature, args.mean = mean;
    check(kList, "beta", beta, std::isfinite(beta), "finite");
    check(kList, "temperature", temperature, temperature > 0.0 && std::isfinite(temperature),
          "> 0 and finite");
    const TensorArg policy = borrow(kList, "policy", policy_);
    const auto given = [&](const char* name, const py::object& object,
                           std::initializer_list<DType> allowed, const char* shape, int64_t size) {
        return beside(policy, borrow(kList, name, object), allowed, shape, size);
    };
    const auto optional = [](const char* name, const py::object& object) {
        return borrow_optional(kList, name, object);
    };
    check_dtype(policy, {DType::kF32, DType::kF64});
    check_dims(policy, "(S,)", 1);
    check_cuda_built(policy);
    const int64_t S = policy.shape[0];
    args.policy = vector(policy);
    args.reference =
        beside(policy, optional("reference", reference), {DType::kF32, DType::kF64}, "(S,)", S);
    args.values = given("values", values, {DType::kF32, DType::kF64}, "(S,)", S);
    const TensorArg bounds = borrow(kList, "groups", groups);
    check_same_device(policy, {&bounds});
    args.groups = segment_bounds(bounds, "S", S);
    const int64_t G = args.groups.size - 1;
    args.index = places(policy, optional("index", index), S);
    args.weight = beside(policy, optional("weight", weight), {DType::kF64}, "(G,)", G);
    args.losses = given("losses", losses, {DType::kF64}, "(G,)", G);
    args.dsums = given("dsums", dsums, {DType::kF64}, "(S,)", S);
    const TensorArg ranking = optional("ranking", ranking_);
    check_dtype(ranking, {DType::kF64});
    check_same_device(policy, {&ranking});
    check_shape(ranking, "(3, G)", {3, G});
    args.ranking = matrix(ranking);
#ifdef PE_WITH_CUDA
    if (policy.is_cuda) {
        args.workspace = list_workspace(policy, optional("workspace", workspace_));
        py::gil_scoped_release release;
        return check_cuda_status(kList, cuda::listwise_loss(args, reinterpret_cast<void*>(stream)));
    }
#endif
    (void)stream;
    if (!workspace_.is_none()) refuse(kList, "workspace must be None on the CPU");
    args.threads = num_threads();
    const auto bytes = static_cast<size_t>(cpu::listwise_loss_bytes(args));
    const auto workspace = std::make_unique_for_overwrite<char[]>(bytes);
    args.workspace = workspace.get();
    py::gil_scoped_release release;
    cpu::listwise_loss(args);
}

}  // namespace

void bind(py::module_& m) {
    const auto none = [](const char* name) { return py::arg(name).none(true); };
    m.def("token_loss", &token, py::arg("policy"), none("old"), none("reference"),
          py::arg("cu_seqlens"), py::arg("advantages"), py::arg("per_token"), none("factor"),
          py::arg("family"), py::arg("level"), py::arg("low"), py::arg("high"), none("dual"),
          py::arg("penalty"), py::arg("beta"), py::arg("losses"), py::arg("dlogps"),
          py::arg("logps"), none("log_ratio"), none("kl"), py::arg("stream") = 0);
    m.def("listwise_loss", &list, py::arg("policy"), none("reference"), py::arg("values"),
          py::arg("groups"), none("index"), none("weight"), py::arg("family"), py::arg("beta"),
          py::arg("temperature"), py::arg("mean"), py::arg("losses"), py::arg("dsums"),
          none("ranking"), py::arg("workspace") = py::none(), py::arg("stream") = 0);
    m.def("listwise_loss_workspace_bytes", &list_workspace_bytes, py::arg("S"));
}

}  // namespace pe::bindings::losses
