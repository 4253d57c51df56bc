#include <cmath>

#include "bind.h"
#include "check.h"
#include "heads.h"
#include "pyengine/ops/attention_backward.h"
#include "pyengine/parallel.h"

namespace pe::bindings::attention_backward {
namespace {

constexpr const char* kOp = "attention_backward";

std::string at(const char* name, int64_t i, int32_t value) {
    return std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(value);
}

// The sequences cover all rows, and each is a prompt or a response of the last prompt before it.
void check_trees(const TensorArg& cu_seqlens, const TensorArg& prefix_begin,
                 const TensorArg& prefix_rows, int64_t T) {
    const auto* cu = static_cast<const int32_t*>(cu_seqlens.data);
    const auto* begin = static_cast<const int32_t*>(prefix_begin.data);
    const auto* rows = static_cast<const int32_t*>(prefix_rows.data);
    const int64_t S = prefix_rows.shape[0];
    if (cu[0] != 0) value_error(cu_seqlens, "must start with 0 but with " + std::to_string(cu[0]));
    if (cu[S] != T) {
        value_error(cu_seqlens, "must end with the rows of q, " + std::to_string(T) +
                                    ", but with " + std::to_string(cu[S]));
    }
    for (int64_t s = 0; s < S; ++s) {
        if (cu[s + 1] >= cu[s]) continue;
        value_error(cu_seqlens, "must not decrease but " + at("cu_seqlens", s + 1, cu[s + 1]) +
                                    " follows " + std::to_string(cu[s]));
    }
    int64_t prompt = -1;
    for (int64_t s = 0; s < S; ++s) {
        if (rows[s] == 0) {
            prompt = s;
            continue;
        }
        if (prompt < 0) {
            value_error(prefix_rows,
                        "must start with 0, for a prompt, but " + at("prefix_rows", 0, rows[0]));
        }
        if (rows[s] != cu[prompt + 1] - cu[prompt]) {
            value_error(prefix_rows, "must be 0 or the " +
                                         std::to_string(cu[prompt + 1] - cu[prompt]) +
                                         " rows of the prompt, sequence " + std::to_string(prompt) +
                                         ", but " + at("prefix_rows", s, rows[s]));
        }
        if (begin[s] != cu[prompt]) {
            value_error(prefix_begin, "must be the first row of the prompt, sequence " +
                                          std::to_string(prompt) + ", " +
                                          std::to_string(cu[prompt]) + ", but " +
                                          at("prefix_begin", s, begin[s]));
        }
    }
}

int64_t workspace_bytes(int64_t T, int64_t S, int64_t H, int64_t K, int64_t head_dim,
                        [[maybe_unused]] bool cuda) {
#ifdef PE_WITH_CUDA
    if (cuda) return cuda::attention_backward_workspace_bytes(T, H);
#endif
    return cpu::attention_backward_workspace_bytes(T, S, H, K, head_dim, num_threads());
}

// The threads that the workspace has room for: set_num_threads may have been called since it was sized. On a GPU: 1.
int threads_that_fit(const TensorArg& workspace, int64_t T, int64_t S, int64_t H, int64_t K,
                     int64_t head_dim) {
    const int64_t have = workspace.shape[0] * dtype_bytes(workspace.dtype);
    const auto need = [&](int threads) {
#ifdef PE_WITH_CUDA
        if (workspace.is_cuda) return cuda::attention_backward_workspace_bytes(T, H);
#endif
        return cpu::attention_backward_workspace_bytes(T, S, H, K, head_dim, threads);
    };
    int threads = workspace.is_cuda ? 1 : num_threads();
    while (threads > 1 && need(threads) > have) --threads;
    if (need(threads) > have) {
        value_error(workspace, "must have " + std::to_string(need(threads)) + " bytes but has " +
                                   std::to_string(have));
    }
    return threads;
}

void backward(py::object dout_, py::object q_, py::object k_, py::object v_, py::object out_,
              py::object lse_, py::object cu_seqlens_, py::object prefix_begin_,
              py::object prefix_rows_, py::object scale_, py::object dq_, py::object dk_,
              py::object dv_, py::object workspace_, py::object window_, uintptr_t stream) {
    const TensorArg dout = borrow(kOp, "dout", dout_), q = borrow(kOp, "q", q_),
                    k = borrow(kOp, "k", k_), v = borrow(kOp, "v", v_),
                    out = borrow(kOp, "out", out_), lse = borrow(kOp, "lse", lse_);
    const TensorArg cu_seqlens = borrow(kOp, "cu_seqlens", cu_seqlens_),
                    prefix_begin = borrow(kOp, "prefix_begin", prefix_begin_),
                    prefix_rows = borrow(kOp, "prefix_rows", prefix_rows_);
    const TensorArg dq = borrow(kOp, "dq", dq_), dk = borrow(kOp, "dk", dk_),
                    dv = borrow(kOp, "dv", dv_), workspace = borrow(kOp, "workspace", workspace_);
    for (const TensorArg* t : {&q, &dout, &dq, &dk, &dv})
        check_dtype(*t, {DType::kF32, DType::kBF16});
    for (const TensorArg* t : {&k, &v, &out}) check_dtype(*t, {q.dtype});
    for (const TensorArg* t : {&lse, &workspace}) check_dtype(*t, {DType::kF32});
    for (const TensorArg* t : {&cu_seqlens, &prefix_begin, &prefix_rows})
        check_dtype(*t, {DType::kI32});
    check_dims(q, "(T, H, hd)", 3);
    check_dims(k, "(T, K, hd)", 3);
    const int64_t T = q.shape[0], H = q.shape[1], K = k.shape[1], head_dim = q.shape[2];
    check_head_dim(q, head_dim);
    if (K < 1 || H < 1 || H % K != 0) {
        value_error(q, "must have a multiple of the " + std::to_string(K) +
                           " heads of k but got shape " + q.shape_text());
    }
    for (const TensorArg* t : {&k, &v, &dk, &dv}) check_shape(*t, "(T, K, hd)", {T, K, head_dim});
    for (const TensorArg* t : {&out, &dout, &dq}) check_shape(*t, "(T, H, hd)", {T, H, head_dim});
    check_shape(lse, "(T, H)", {T, H});
    check_dims(prefix_rows, "(S,)", 1);
    const int64_t S = prefix_rows.shape[0];
    check_shape(prefix_begin, "(S,)", {S});
    check_shape(cu_seqlens, "(S + 1,)", {S + 1});
    const float scale = scale_.is_none()
                            ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))
                            : scale_.cast<float>();
    if (!std::isfinite(scale)) {
        throw py::value_error("[attention_backward] scale must be finite but is " +
                              std::to_string(scale));
    }
    const int64_t window = window_.is_none() ? 0 : window_.cast<int64_t>();
    if (window < 0 || (window == 0 && !window_.is_none())) {
        throw py::value_error("[attention_backward] window must be >= 1 or None but is " +
                              std::to_string(window));
    }
    check_same_device(q, {&dout, &k, &v, &out, &lse, &cu_seqlens, &prefix_begin, &prefix_rows, &dq,
                          &dk, &dv, &workspace});
    check_cuda_built(q);
    check_dims(workspace, "(bytes,)", 1);
    vector(prefix_begin), vector(workspace);  // for the layout alone
    const AttentionBackwardArgs args{.dout = heads_matrix(dout),
                                     .q = heads_matrix(q),
                                     .k = heads_matrix(k),
                                     .v = heads_matrix(v),
                                     .out = heads_matrix(out),
                                     .lse = matrix(lse),
                                     .cu_seqlens = vector(cu_seqlens),
                                     .prefix_rows = vector(prefix_rows),
                                     .num_heads = H,
                                     .num_kv_heads = K,
                                     .head_dim = head_dim,
                                     .scale = scale,
                                     .window = window,
                                     .dq = heads_matrix(dq),
                                     .dk = heads_matrix(dk),
                                     .dv = heads_matrix(dv),
                                     .workspace = workspace.data,
                                     .threads = threads_that_fit(workspace, T, S, H, K, head_dim)};
    // On the CPU only: elsewhere it would have to wait for the device.
    if (!q.is_cuda) check_trees(cu_seqlens, prefix_begin, prefix_rows, T);
    PE_RUN_KERNEL(kOp, attention_backward, args, q, stream);
}

}  // namespace

void bind(py::module_& m) {
    m.def("attention_backward_workspace_bytes", &workspace_bytes, py::arg("T"), py::arg("S"),
          py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"),
          py::arg("cuda") = false);
    m.def("attention_backward", &backward, py::arg("dout"), py::arg("q"), py::arg("k"),
          py::arg("v"), py::arg("out"), py::arg("lse"), py::arg("cu_seqlens"),
          py::arg("prefix_begin"), py::arg("prefix_rows"), py::arg("scale").none(true),
          py::arg("dq"), py::arg("dk"), py::arg("dv"), py::arg("workspace"),
          py::arg("window") = py::none(), py::arg("stream") = 0);
}

}  // namespace pe::bindings::attention_backward
