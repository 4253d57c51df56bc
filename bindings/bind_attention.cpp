#include <algorithm>
#include <cmath>
#include <vector>

#include "bind.h"
#include "check.h"
#include "heads.h"
#include "pyengine/ops/attention.h"
#include "pyengine/ops/kv_cache.h"

namespace pe::bindings::attention {
namespace {

constexpr const char* kCache = "kv_cache";
constexpr const char* kAttention = "attention";

void check_page_tokens(const char* op, int64_t page_tokens) {
    if (valid_page_tokens(page_tokens)) return;
    throw py::value_error("[" + std::string(op) + "] page_tokens must be 16, 32 or 64 but is " +
                          std::to_string(page_tokens));
}

int64_t elements_per_page(int64_t num_kv_heads, int64_t head_dim, int64_t page_tokens) {
    check_page_tokens(kCache, page_tokens);
    if (num_kv_heads < 1 || head_dim < 1 || head_dim > kMaxHeadDim) {
        throw py::value_error("[kv_cache] num_kv_heads must be >= 1 and head_dim from 1 to " +
                              std::to_string(kMaxHeadDim) + " but they are " +
                              std::to_string(num_kv_heads) + " and " + std::to_string(head_dim));
    }
    return kv_elements_per_page(num_kv_heads, head_dim, page_tokens);
}

// `keys` or `values`: (P, E), a row for each page of one layer.
KvPages pages(const TensorArg& t, int64_t heads, int64_t head_dim, int64_t page_tokens) {
    check_dtype(t, {DType::kF32, DType::kBF16});
    check_dims(t, "(P, E)", 2);
    const int64_t elements = kv_elements_per_page(heads, head_dim, page_tokens);
    if (t.shape[1] != elements) {
        value_error(t, "must have shape (P, E) with E = " + std::to_string(elements) + " for " +
                           std::to_string(heads) + " heads of " + std::to_string(head_dim) +
                           " and pages of " + std::to_string(page_tokens) + " tokens but got " +
                           t.shape_text());
    }
    const MatrixView m = matrix(t);
    if (m.rows > 1 && m.row_stride < elements) {
        value_error(t, "must have pages that do not overlap but its stride is " +
                           std::to_string(m.row_stride));
    }
    return {.data = t.data,
            .dtype = t.dtype,
            .page_stride = m.row_stride,
            .num_pages = t.shape[0],
            .heads = heads,
            .head_dim = head_dim,
            .page_tokens = page_tokens};
}

// All in range and different, and the tokens of a pair next to each other, as the kernel wants them. On the CPU only:
// elsewhere it would have to wait for the device.
void check_slots(const TensorArg& t, const VectorView& slots, int64_t end) {
    if (t.is_cuda) return;
    const int64_t* slot = ptr<int64_t>(slots);
    for (int64_t i = 0; i < slots.size; ++i) {
        if (slot[i] >= 0 && slot[i] < end) continue;
        value_error(t, "must be in [0, " + std::to_string(end) + ") but slots[" +
                           std::to_string(i) + "] = " + std::to_string(slot[i]));
    }
    std::vector<int64_t> pairs;  // the pair of each row that is not the second of one
    for (int64_t i = 0; i < slots.size; ++i) {
        const bool second = i > 0 && slot[i - 1] % 2 == 0 && slot[i] == slot[i - 1] + 1;
        if (!second) pairs.push_back(slot[i] / 2);
    }
    std::sort(pairs.begin(), pairs.end());
    const auto twice = std::adjacent_find(pairs.begin(), pairs.end());
    if (twice == pairs.end()) return;
    value_error(t,
                "must be different, with slots 2i and 2i + 1 in neighbouring rows in that order, "
                "but slots " +
                    std::to_string(2 * *twice) + " and " + std::to_string(2 * *twice + 1) +
                    " are not");
}

void write(py::object k_, py::object v_, py::object keys_, py::object values_, py::object slots_,
           int64_t page_tokens, uintptr_t stream) {
    const TensorArg k = borrow(kCache, "k", k_), v = borrow(kCache, "v", v_);
    const TensorArg keys = borrow(kCache, "keys", keys_),
                    values = borrow(kCache, "values", values_);
    const TensorArg slots = borrow(kCache, "slots", slots_);
    for (const TensorArg* t : {&k, &v}) check_dtype(*t, {DType::kF32, DType::kBF16});
    check_dtype(slots, {DType::kI64});
    check_dims(k, "(T, K, hd)", 3);
    check_page_tokens(kCache, page_tokens);
    const int64_t T = k.shape[0], heads = k.shape[1], head_dim = k.shape[2];
    check_head_dim(k, head_dim);
    if (heads < 1) value_error(k, "must have K >= 1 but got shape " + k.shape_text());
    check_shape(v, "(T, K, hd)", {T, heads, head_dim});
    check_shape(slots, "(T,)", {T});
    check_same_device(k, {&v, &keys, &values, &slots});
    check_cuda_built(k);
    const KvCacheWriteArgs args{.k = heads_matrix(k),
                                .v = heads_matrix(v),
                                .keys = pages(keys, heads, head_dim, page_tokens),
                                .values = pages(values, heads, head_dim, page_tokens),
                                .slots = vector(slots)};
    check_dtype(values, {keys.dtype});
    check_shape(values, "(P, E)", {keys.shape[0], keys.shape[1]});
    check_slots(slots, args.slots, keys.shape[0] * page_tokens);
    PE_RUN_KERNEL(kCache, kv_cache_write, args, k, stream);
}

std::string at(const char* name, int64_t i) {
    return std::string(name) + "[" + std::to_string(i) + "]";
}

// Every row of q belongs to one sequence, and every page that the kernel will read is one of the pool's. On the CPU only, as above.
void check_sequences(const TensorArg& cu_seqlens, const TensorArg& first_positions,
                     const TensorArg& block_tables, const AttentionForwardArgs& a) {
    const int32_t* cu = ptr<int32_t>(a.cu_seqlens);
    const int32_t* first = ptr<int32_t>(a.first_positions);
    const int64_t S = a.first_positions.size, W = a.block_tables.cols;
    if (cu[0] != 0) value_error(cu_seqlens, "must start with 0 but with " + std::to_string(cu[0]));
    if (cu[S] != a.q.rows) {
        value_error(cu_seqlens, "must end with the rows of q, " + std::to_string(a.q.rows) +
                                    ", but with " + std::to_string(cu[S]));
    }
    for (int64_t s = 0; s < S; ++s) {
        const int64_t rows = int64_t{cu[s + 1]} - cu[s];
        if (rows < 0) {
            value_error(cu_seqlens, "must not decrease but " + at("cu_seqlens", s + 1) + " = " +
                                        std::to_string(cu[s + 1]) + " follows " +
                                        std::to_string(cu[s]));
        }
        if (first[s] < 0) {
            value_error(first_positions, "must be >= 0 but " + at("first_positions", s) + " = " +
                                             std::to_string(first[s]));
        }
        if (rows == 0) continue;
        const int64_t tokens = first[s] + rows;
        const int64_t wanted = (tokens + a.keys.page_tokens - 1) / a.keys.page_tokens;
        if (wanted > W) {
            value_error(block_tables, "must have " + std::to_string(wanted) + " pages for the " +
                                          std::to_string(tokens) + " tokens of sequence " +
                                          std::to_string(s) + " but has shape " +
                                          block_tables.shape_text());
        }
        const int32_t* table = row_ptr<int32_t>(a.block_tables, s);
        for (int64_t i = 0; i < wanted; ++i) {
            if (table[i] >= 0 && table[i] < a.keys.num_pages) continue;
            value_error(block_tables, "must be in [0, " + std::to_string(a.keys.num_pages) +
                                          ") but block_tables[" + std::to_string(s) + ", " +
                                          std::to_string(i) + "] = " + std::to_string(table[i]));
        }
    }
}

void forward(py::object q_, py::object keys_, py::object values_, py::object cu_seqlens_,
             py::object first_positions_, py::object block_tables_, int64_t num_kv_heads,
             int64_t page_tokens, py::object scale_, py::object out_, py::object lse_,
             py::object window_, uintptr_t stream) {
    const TensorArg q = borrow(kAttention, "q", q_), out = borrow(kAttention, "out", out_);
    const TensorArg keys = borrow(kAttention, "keys", keys_),
                    values = borrow(kAttention, "values", values_);
    const TensorArg cu_seqlens = borrow(kAttention, "cu_seqlens", cu_seqlens_),
                    first_positions = borrow(kAttention, "first_positions", first_positions_),
                    block_tables = borrow(kAttention, "block_tables", block_tables_);
    const TensorArg lse = borrow_optional(kAttention, "lse", lse_);
    for (const TensorArg* t : {&q, &out}) check_dtype(*t, {DType::kF32, DType::kBF16});
    for (const TensorArg* t : {&cu_seqlens, &first_positions, &block_tables})
        check_dtype(*t, {DType::kI32});
    check_dtype(lse, {DType::kF32});
    check_dims(q, "(T, H, hd)", 3);
    check_page_tokens(kAttention, page_tokens);
    const int64_t T = q.shape[0], H = q.shape[1], head_dim = q.shape[2];
    check_head_dim(q, head_dim);
    if (num_kv_heads < 1 || H < 1 || H % num_kv_heads != 0) {
        value_error(q, "must have a multiple of num_kv_heads = " + std::to_string(num_kv_heads) +
                           " heads but got shape " + q.shape_text());
    }
    check_shape(out, "(T, H, hd)", {T, H, head_dim});
    check_shape(lse, "(T, H)", {T, H});
    check_dims(first_positions, "(S,)", 1);
    const int64_t S = first_positions.shape[0];
    check_shape(cu_seqlens, "(S + 1,)", {S + 1});
    check_dims(block_tables, "(S, W)", 2);
    check_shape(block_tables, "(S, W)", {S, block_tables.shape[1]});
    const float scale = scale_.is_none()
                            ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))
                            : scale_.cast<float>();
    if (!std::isfinite(scale))
        throw py::value_error("[attention] scale must be finite but is " + std::to_string(scale));
    const int64_t window = window_.is_none() ? 0 : window_.cast<int64_t>();
    if (window < 0 || (window == 0 && !window_.is_none())) {
        throw py::value_error("[attention] window must be >= 1 or None but is " +
                              std::to_string(window));
    }
    check_same_device(q,
                      {&keys, &values, &cu_seqlens, &first_positions, &block_tables, &out, &lse});
    check_cuda_built(q);
    const AttentionForwardArgs args{.q = heads_matrix(q),
                                    .keys = pages(keys, num_kv_heads, head_dim, page_tokens),
                                    .values = pages(values, num_kv_heads, head_dim, page_tokens),
                                    .cu_seqlens = vector(cu_seqlens),
                                    .first_positions = vector(first_positions),
                                    .block_tables = matrix(block_tables),
                                    .num_heads = H,
                                    .scale = scale,
                                    .window = window,
                                    .out = heads_matrix(out),
                                    .lse = matrix(lse)};
    check_dtype(values, {keys.dtype});
    check_shape(values, "(P, E)", {keys.shape[0], keys.shape[1]});
    if (!q.is_cuda) check_sequences(cu_seqlens, first_positions, block_tables, args);
    PE_RUN_KERNEL(kAttention, attention_forward, args, q, stream);
}

}  // namespace

void bind(py::module_& m) {
    m.def("kv_elements_per_page", &elements_per_page, py::arg("num_kv_heads"), py::arg("head_dim"),
          py::arg("page_tokens"));
    m.def("kv_cache_write", &write, py::arg("k"), py::arg("v"), py::arg("keys"), py::arg("values"),
          py::arg("slots"), py::arg("page_tokens"), py::arg("stream") = 0);
    m.def("attention_forward", &forward, py::arg("q"), py::arg("keys"), py::arg("values"),
          py::arg("cu_seqlens"), py::arg("first_positions"), py::arg("block_tables"),
          py::arg("num_kv_heads"), py::arg("page_tokens"), py::arg("scale").none(true),
          py::arg("out"), py::arg("lse") = py::none(), py::arg("window") = py::none(),
          py::arg("stream") = 0);
}

}  // namespace pe::bindings::attention
