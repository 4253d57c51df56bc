#include "runtime/decoder.cuh"

#include "common/launch.cuh"
#include "pyengine/ops/attention.h"
#include "pyengine/ops/kv_cache.h"
#include "pyengine/ops/layer_norm.h"
#include "pyengine/ops/linear.h"
#include "pyengine/ops/rms_norm.h"
#include "pyengine/ops/rope.h"

namespace pe::cuda {
namespace {

using runtime::DecoderWeights;
using runtime::LayerWeights;
using runtime::LinearWeights;
using runtime::NormWeights;

constexpr int kThreads = 256;

__device__ inline float read_as(const MatrixView& table, int64_t row, int64_t i, bool to_pairs) {
    const float x = table.dtype == DType::kBF16 ? to_float(row_ptr<bf16>(table, row)[i])
                                                : row_ptr<float>(table, row)[i];
    return to_pairs ? to_float(to_bf16(x)) : x;
}

// A thread an element: the values that the compute dtype holds.
__global__ void __launch_bounds__(kThreads)
    embed_kernel(MatrixView embed, MatrixView positions, float multiplier, bool pairs,
                 DeviceBatch batch, MatrixView out) {
    const int64_t item = int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
    const int64_t t = item / out.cols, i = item % out.cols;
    if (t >= batch.rows) return;
    float x = read_as(embed, batch.token_ids[t], i, pairs);
    if (multiplier != 1.0f) x = x * multiplier;
    if (positions) x = x + read_as(positions, batch.positions[t], i, pairs);
    row_ptr<float>(out, t)[i] = x;
}

// Rows at[i] of `from`, 4 or 2 bytes an element.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(MatrixView from, const int32_t* at, int64_t rows, MatrixView to) {
    const int64_t item = int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
    const int64_t t = item / to.cols, i = item % to.cols;
    if (t < rows) row_ptr<T>(to, t)[i] = row_ptr<T>(from, at[t])[i];
}

__global__ void __launch_bounds__(kThreads)
    add_times_kernel(MatrixView to, MatrixView from, float multiplier) {
    const int64_t item = int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
    const int64_t t = item / to.cols, i = item % to.cols;
    if (t >= to.rows) return;
    float* x = row_ptr<float>(to, t) + i;
    *x = *x + multiplier * row_ptr<float>(from, t)[i];
}

dim3 a_thread_each(const MatrixView& m) { return {ceil_div(m.rows * m.cols, kThreads)}; }

}  // namespace

CudaDecoder::CudaDecoder(const DecoderWeights& w, runtime::KvPool pool, int64_t max_rows,
                         cudaStream_t stream)
    : weights_(w),
      pool_(pool),
      stream_(stream),
      residual_(max_rows, w.hidden_size, DType::kF32),
      normed_(max_rows, w.hidden_size, w.compute),
      q_(max_rows, w.num_heads * w.head_dim, DType::kF32),
      k_(max_rows, w.num_kv_heads * w.head_dim, DType::kF32),
      v_(max_rows, w.num_kv_heads * w.head_dim, DType::kF32),
      attended_(max_rows, w.num_heads * w.head_dim, w.compute),
      inner_(max_rows, w.intermediate_size, w.compute),
      wanted_residual_(max_rows, w.hidden_size, DType::kF32),
      wanted_attended_(max_rows, w.num_heads * w.head_dim, w.compute),
      added_(w.multiplies_residuals() ? max_rows : 0, w.hidden_size, DType::kF32) {}

void CudaDecoder::copy_page(int32_t from, int32_t to) const {
    const int64_t bytes = weights_.page_bytes(pool_);
    char* data = static_cast<char*>(pool_.data);
    check_cuda(cudaMemcpyAsync(data + to * bytes, data + from * bytes, static_cast<size_t>(bytes),
                               cudaMemcpyDeviceToDevice, stream_),
               "copying a page");
}

void CudaDecoder::forward(const DeviceBatch& batch) {
    const int64_t T = batch.rows, R = batch.num_wanted;
    embed(batch);
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
        const LayerWeights& layer = weights_.layers[i];
        norm(layer.attention_norm, residual_.view(T), normed_.view(T));
        attention(batch, static_cast<int64_t>(i));
        if (i + 1 < weights_.layers.size()) {
            finish_layer(layer, residual_.view(T), attended_.view(T));
        } else {  // of other rows, only keys and values are read
            keep_wanted(batch);
            finish_layer(layer, wanted_residual_.view(R), wanted_attended_.view(R));
        }
    }
    norm(weights_.final_norm, wanted_residual_.view(R), normed_.view(R));
}

void CudaDecoder::embed(const DeviceBatch& batch) const {
    const MatrixView out = residual_.view(batch.rows);
    check_cuda(launch(embed_kernel, a_thread_each(out), kThreads, stream_, weights_.embed,
                      weights_.positions, weights_.embedding_multiplier,
                      weights_.compute == DType::kBF16, batch, out),
               "embed");
}

void CudaDecoder::norm(const NormWeights& w, const MatrixView& x, const MatrixView& y) const {
    if (w.bias) {
        check_cuda(layer_norm_forward({x, w.weight, w.bias, weights_.norm_eps, y, {}, {}}, stream_),
                   "layer_norm");
    } else {
        check_cuda(rms_norm_forward({x, w.weight, weights_.norm_eps, y, {}}, stream_), "rms_norm");
    }
}

void CudaDecoder::multiply(const LinearWeights& w, const MatrixView& x, LinearEpilogue epilogue,
                           std::initializer_list<MatrixView> outputs) const {
    LinearForwardArgs args;
    args.x = x;
    args.weight = w.matrix;
    args.bias = w.bias;
    args.epilogue = epilogue;
    args.outputs = 0;
    for (const MatrixView& y : outputs) args.y[args.outputs++] = y;
    check_cuda(linear_forward(args, stream_), "linear");
}

void CudaDecoder::finish_heads(const DeviceBatch& batch, const LayerWeights& layer,
                               const MatrixView& x, int64_t heads, const NormWeights& of) const {
    const int64_t hd = weights_.head_dim;
    if (of.weight) {
        const MatrixView each{x.data, x.dtype, batch.rows * heads, hd, hd};
        norm(of, each, each);
    }
    if (!layer.cos) return;
    check_cuda(rope({.x = x,
                     .head_dim = hd,
                     .cos = layer.cos,
                     .sin = layer.sin,
                     .positions = {batch.positions, DType::kI64, batch.rows},
                     .y = x},
                    stream_),
               "rope");
}

void CudaDecoder::attention(const DeviceBatch& batch, int64_t layer) const {
    const DecoderWeights& w = weights_;
    const LayerWeights& of_layer = w.layers[static_cast<size_t>(layer)];
    const int64_t T = batch.rows, S = batch.sequences;
    multiply(of_layer.qkv, normed_.view(T), LinearEpilogue::kStore,
             {q_.view(T), k_.view(T), v_.view(T)});
    finish_heads(batch, of_layer, q_.view(T), w.num_heads, of_layer.q_norm);
    finish_heads(batch, of_layer, k_.view(T), w.num_kv_heads, of_layer.k_norm);
    check_cuda(kv_cache_write({.k = k_.view(T),
                               .v = v_.view(T),
                               .keys = weights_.pages(pool_, layer, false),
                               .values = weights_.pages(pool_, layer, true),
                               .slots = {batch.slots, DType::kI64, T}},
                              stream_),
               "kv_cache");
    check_cuda(attention_forward({.q = q_.view(T),
                                  .keys = weights_.pages(pool_, layer, false),
                                  .values = weights_.pages(pool_, layer, true),
                                  .cu_seqlens = {batch.cu_seqlens, DType::kI32, S + 1},
                                  .first_positions = {batch.first_positions, DType::kI32, S},
                                  .block_tables = {batch.block_tables, DType::kI32, S,
                                                   batch.table_width, batch.table_width},
                                  .num_heads = w.num_heads,
                                  .scale = w.attention_scale,
                                  .window = of_layer.window,
                                  .out = attended_.view(T),
                                  .lse = {}},
                                 stream_),
               "attention");
}

void CudaDecoder::keep_wanted(const DeviceBatch& batch) const {
    const int64_t T = batch.rows, R = batch.num_wanted;
    if (R == 0) return;
    const auto gather = [&](const DeviceRows& from, const DeviceRows& to) {
        dispatch_dtype(to.view(R).dtype, [&]<typename V>(V*) {
            check_cuda(
                launch(gather_kernel<V>, a_thread_each(to.view(R)), kThreads, stream_, from.view(T),
                       static_cast<const int32_t*>(batch.wanted), R, to.view(R)),
                "gathering rows");
        });
    };
    gather(residual_, wanted_residual_);
    gather(attended_, wanted_attended_);
}

void CudaDecoder::finish_layer(const LayerWeights& layer, const MatrixView& residual,
                               const MatrixView& attended) const {
    const int64_t rows = residual.rows;
    add(layer.o, attended, residual, layer.residual_multiplier);
    norm(layer.mlp_norm, residual, normed_.view(rows));
    const auto activation = layer.gated ? LinearEpilogue::kSiluGate : LinearEpilogue::kGelu;
    multiply(layer.up, normed_.view(rows), activation, {inner_.view(rows)});
    add(layer.down, inner_.view(rows), residual, layer.residual_multiplier);
}

void CudaDecoder::add(const LinearWeights& w, const MatrixView& x, const MatrixView& residual,
                      float multiplier) const {
    if (multiplier == 1.0f) return multiply(w, x, LinearEpilogue::kAdd, {residual});
    if (residual.rows == 0) return;
    const MatrixView added = added_.view(residual.rows);
    multiply(w, x, LinearEpilogue::kStore, {added});
    check_cuda(launch(add_times_kernel, a_thread_each(residual), kThreads, stream_, residual, added,
                      multiplier),
               "adding to the residual");
}

void CudaDecoder::logits(int64_t begin, int64_t count, float* out) const {
    const int64_t V = weights_.vocab_size;
    multiply({weights_.head, {}}, normed_.view(begin, count), LinearEpilogue::kStore,
             {{out, DType::kF32, count, V, V}});
}

}  // namespace pe::cuda
