#include "pyengine/runtime/decoder.h"

#include "pyengine/ops/attention.h"
#include "pyengine/ops/kv_cache.h"
#include "pyengine/ops/layer_norm.h"
#include "pyengine/ops/linear.h"
#include "pyengine/ops/rms_norm.h"
#include "pyengine/ops/rope.h"
#include "pyengine/parallel.h"

namespace pe::runtime {
namespace {

constexpr int64_t kRowsPerTask = 8;

template <typename T>
VectorView view_of(std::vector<T>& v, DType dtype, int64_t begin, int64_t count) {
    return {v.data() + begin, dtype, count};
}

// A table's row with the values that `compute` holds: assigned, or added.
void read_row(const MatrixView& table, int64_t row, DType compute, bool add, float* out) {
    dispatch_dtype(table.dtype, [&]<typename T>(T*) {
        const T* p = row_ptr<T>(table, row);
        for (int64_t i = 0; i < table.cols; ++i) {
            float x = to_float(p[i]);
            if (compute == DType::kBF16) x = to_float(to_bf16(x));
            out[i] = add ? out[i] + x : x;
        }
    });
}

void multiply(const LinearWeights& w, const MatrixView& x, LinearEpilogue epilogue,
              std::initializer_list<MatrixView> outputs, const PackedMatrix& then = {}) {
    LinearForwardArgs args;
    args.x = x;
    args.weight = w.matrix;
    args.bias = w.bias;
    args.epilogue = epilogue;
    args.then = then;
    args.outputs = 0;
    for (const MatrixView& y : outputs) args.y[args.outputs++] = y;
    cpu::linear_forward(args);
}

}  // namespace

Decoder::Decoder(const DecoderWeights& w, KvPool pool, int64_t max_rows)
    : weights_(w),
      pool_(pool),
      residual_(max_rows, w.hidden_size, DType::kF32),
      normed_(max_rows, w.hidden_size, w.compute),
      q_(max_rows, w.num_heads * w.head_dim, DType::kF32),
      k_(max_rows, w.num_kv_heads * w.head_dim, DType::kF32),
      v_(max_rows, w.num_kv_heads * w.head_dim, DType::kF32),
      attended_(max_rows, w.num_heads * w.head_dim, w.compute),
      inner_(max_rows, w.intermediate_size, w.compute),
      added_(w.multiplies_residuals() ? max_rows : 0, w.hidden_size, DType::kF32) {}

void Decoder::copy_page(int32_t from, int32_t to) {
    const int64_t bytes = weights_.page_bytes(pool_);
    char* data = static_cast<char*>(pool_.data);
    memcpy(data + to * bytes, data + from * bytes, static_cast<size_t>(bytes));
}

void Decoder::forward(StepBatch& batch) {
    const int64_t T = batch.rows(), R = batch.num_wanted();
    parallel_region(num_threads(), [&] {
        embed(batch);
        for (size_t i = 0; i < weights_.layers.size(); ++i) {
            const LayerWeights& layer = weights_.layers[i];
            const bool is_last = i + 1 == weights_.layers.size();
            norm(layer.attention_norm, residual_.view(T), normed_.view(T));
            attention(batch, static_cast<int64_t>(i));
            if (is_last) keep_wanted(batch);  // of other rows, only keys and values are read
            finish_layer(layer, is_last ? R : T,
                         is_last ? weights_.head : weights_.layers[i + 1].qkv.matrix);
        }
        norm(weights_.final_norm, residual_.view(R), normed_.view(R));
    });
}

void Decoder::embed(const StepBatch& batch) {
    parallel_rows(batch.rows(), kRowsPerTask, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            float* x = row_ptr<float>(residual_.view(t, 1), 0);
            const auto i = static_cast<size_t>(t);
            read_row(weights_.embed, batch.token_ids[i], weights_.compute, false, x);
            if (const float m = weights_.embedding_multiplier; m != 1.0f) {
                for (int64_t d = 0; d < weights_.hidden_size; ++d) x[d] *= m;
            }
            if (weights_.positions) {
                read_row(weights_.positions, batch.positions[i], weights_.compute, true, x);
            }
        }
    });
}

void Decoder::norm(const NormWeights& w, const MatrixView& x, const MatrixView& y) const {
    if (w.bias) {
        cpu::layer_norm_forward({x, w.weight, w.bias, weights_.norm_eps, y, {}, {}});
    } else {
        cpu::rms_norm_forward({x, w.weight, weights_.norm_eps, y, {}});
    }
}

void Decoder::attention(StepBatch& batch, int64_t layer) {
    const DecoderWeights& w = weights_;
    const LayerWeights& of_layer = w.layers[static_cast<size_t>(layer)];
    const int64_t T = batch.rows(), S = batch.sequences();
    multiply(of_layer.qkv, normed_.view(T), LinearEpilogue::kStore,
             {q_.view(T), k_.view(T), v_.view(T)}, of_layer.o.matrix);
    // Two tokens of one pair of bf16 values are written by one task (kv_cache.h).
    const auto cut = [&](int64_t t) {
        const auto i = static_cast<size_t>(t);
        const bool splits =
            t > 0 && t < T && batch.slots[i] % 2 != 0 && batch.slots[i - 1] + 1 == batch.slots[i];
        return splits ? t - 1 : t;
    };
    parallel_rows(T, kRowsPerTask, [&](int64_t begin, int64_t end) {
        begin = cut(begin);
        end = cut(end);
        if (begin < end) write_keys_values(batch, layer, begin, end - begin);
    });
    cpu::attention_forward({.q = q_.view(T),
                            .keys = weights_.pages(pool_, layer, false),
                            .values = weights_.pages(pool_, layer, true),
                            .cu_seqlens = view_of(batch.cu_seqlens, DType::kI32, 0, S + 1),
                            .first_positions = view_of(batch.first_positions, DType::kI32, 0, S),
                            .block_tables = {batch.block_tables.data(), DType::kI32, S,
                                             batch.table_width, batch.table_width},
                            .num_heads = w.num_heads,
                            .scale = w.attention_scale,
                            .window = of_layer.window,
                            .out = attended_.view(T),
                            .lse = {}});
}

void Decoder::write_keys_values(StepBatch& batch, int64_t layer, int64_t begin, int64_t rows) {
    const DecoderWeights& w = weights_;
    const LayerWeights& of_layer = w.layers[static_cast<size_t>(layer)];
    const auto finish_heads = [&](const MatrixView& x, int64_t heads, const NormWeights& weights) {
        if (weights.weight) {
            const MatrixView each{x.data, x.dtype, rows * heads, w.head_dim, w.head_dim};
            norm(weights, each, each);
        }
        if (!of_layer.cos) return;
        cpu::rope({.x = x,
                   .head_dim = w.head_dim,
                   .cos = of_layer.cos,
                   .sin = of_layer.sin,
                   .positions = view_of(batch.positions, DType::kI64, begin, rows),
                   .y = x});
    };
    finish_heads(q_.view(begin, rows), w.num_heads, of_layer.q_norm);
    finish_heads(k_.view(begin, rows), w.num_kv_heads, of_layer.k_norm);
    cpu::kv_cache_write({.k = k_.view(begin, rows),
                         .v = v_.view(begin, rows),
                         .keys = weights_.pages(pool_, layer, false),
                         .values = weights_.pages(pool_, layer, true),
                         .slots = view_of(batch.slots, DType::kI64, begin, rows)});
}

void Decoder::finish_layer(const LayerWeights& layer, int64_t rows, const PackedMatrix& then) {
    add(layer.o, attended_, rows, layer.residual_multiplier, layer.up.matrix);
    norm(layer.mlp_norm, residual_.view(rows), normed_.view(rows));
    const auto activation = layer.gated ? LinearEpilogue::kSiluGate : LinearEpilogue::kGelu;
    multiply(layer.up, normed_.view(rows), activation, {inner_.view(rows)}, layer.down.matrix);
    add(layer.down, inner_, rows, layer.residual_multiplier, then);
}

void Decoder::add(const LinearWeights& w, const Rows& x, int64_t rows, float multiplier,
                  const PackedMatrix& then) {
    if (multiplier == 1.0f) {
        multiply(w, x.view(rows), LinearEpilogue::kAdd, {residual_.view(rows)}, then);
        return;
    }
    multiply(w, x.view(rows), LinearEpilogue::kStore, {added_.view(rows)}, then);
    parallel_rows(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            float* to = row_ptr<float>(residual_.view(t, 1), 0);
            const float* from = row_ptr<float>(added_.view(t, 1), 0);
            for (int64_t d = 0; d < weights_.hidden_size; ++d) to[d] += multiplier * from[d];
        }
    });
}

// Moves wanted rows to the front, in order: by one thread, as a row may take the place of another.
void Decoder::keep_wanted(const StepBatch& batch) {
    const int64_t R = batch.num_wanted();
    if (R == batch.rows()) return;
    parallel_rows(R, batch.rows(), [&](int64_t begin, int64_t end) {
        for (const Rows* rows : {&residual_, &attended_}) {
            for (int64_t i = begin; i < end; ++i) {
                const MatrixView from = rows->view(batch.wanted[static_cast<size_t>(i)], 1);
                memmove(rows->view(i, 1).data, from.data,
                        static_cast<size_t>(from.cols * dtype_bytes(from.dtype)));
            }
        }
    });
}

void Decoder::logits(int64_t begin, int64_t count, float* out) const {
    const int64_t V = weights_.vocab_size;
    multiply({weights_.head, {}}, normed_.view(begin, count), LinearEpilogue::kStore,
             {{out, DType::kF32, count, V, V}});
}

}  // namespace pe::runtime
