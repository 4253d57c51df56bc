// One step of a decoder on a GPU: csrc/runtime/decoder.cpp, op by op, with CUDA's kernels.
#pragma once

#include "common/device_memory.cuh"
#include "pyengine/ops/linear.h"
#include "pyengine/runtime/decoder.h"

namespace pe::cuda {

// A StepBatch in the GPU's memory.
struct DeviceBatch {
    int64_t rows = 0, sequences = 0, table_width = 0, num_wanted = 0;
    int32_t *token_ids = nullptr, *cu_seqlens = nullptr, *first_positions = nullptr;
    int32_t *block_tables = nullptr, *wanted = nullptr;
    int64_t *positions = nullptr, *slots = nullptr;
};

class CudaDecoder {
  public:
    CudaDecoder(const runtime::DecoderWeights& weights, runtime::KvPool pool, int64_t max_rows,
                cudaStream_t stream);

    const runtime::DecoderWeights& weights() const { return weights_; }
    void set_weights(const runtime::DecoderWeights& weights) { weights_ = weights; }

    void copy_page(int32_t from, int32_t to) const;
    void forward(const DeviceBatch& batch);
    // Logits (count, vocab_size) f32 of wanted rows [begin, begin + count) of the last batch.
    void logits(int64_t begin, int64_t count, float* out) const;

  private:
    void embed(const DeviceBatch& batch) const;
    void norm(const runtime::NormWeights& w, const MatrixView& x, const MatrixView& y) const;
    void multiply(const runtime::LinearWeights& w, const MatrixView& x, LinearEpilogue epilogue,
                  std::initializer_list<MatrixView> outputs) const;
    void attention(const DeviceBatch& batch, int64_t layer) const;
    void finish_heads(const DeviceBatch& batch, const runtime::LayerWeights& layer,
                      const MatrixView& x, int64_t heads, const runtime::NormWeights& norm) const;
    // The rows that are asked for, in the rooms where the last layer goes on.
    void keep_wanted(const DeviceBatch& batch) const;
    void finish_layer(const runtime::LayerWeights& layer, const MatrixView& residual,
                      const MatrixView& attended) const;
    void add(const runtime::LinearWeights& w, const MatrixView& x, const MatrixView& residual,
             float multiplier) const;

    runtime::DecoderWeights weights_;
    runtime::KvPool pool_;
    cudaStream_t stream_;
    DeviceRows residual_, normed_, q_, k_, v_, attended_, inner_;
    DeviceRows wanted_residual_, wanted_attended_;
    DeviceRows added_;  // where a residual multiplier is not 1
};

}  // namespace pe::cuda
