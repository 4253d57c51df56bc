// What a session computes with: decoders that take their steps side by side, and draws from their logits. One thread calls it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pyengine/ops/sample.h"
#include "pyengine/runtime/decoder.h"

namespace pe::runtime {

class Device {
  public:
    virtual ~Device() = default;

    virtual size_t num_models() const = 0;
    virtual const DecoderWeights& weights(size_t model) const = 0;
    virtual void set_weights(size_t model, const DecoderWeights& w) = 0;  // of the same sizes
    // Of the logits that exist at one time.
    virtual int64_t slab_rows() const = 0;

    virtual void copy_page(int32_t from, int32_t to) = 0;
    // Writes the keys and values of the batch's rows, and keeps the hidden states of wanted ones.
    virtual void forward(StepBatch& batch) = 0;
    // Draws from the logits of wanted rows [row, row + rows), at most slab_rows, of the last batch. All arrays of `args` are the
    // host's, its rows count from `row`; logits and workspace are the device's to add.
    virtual void draw(int64_t row, int64_t rows, SampleArgs args) = 0;
};

// What devices are made for: one decoder for each coefficient, with pages of their own in equal numbers.
struct DeviceSettings {
    int64_t num_pages = 1, page_tokens = 16, max_rows = 512;
};

std::unique_ptr<Device> make_cpu_device(const DeviceSettings& settings,
                                        const std::vector<DecoderWeights>& models,
                                        const std::vector<void*>& pools);

// Weights and pools are the GPU's memory; `stream` is a cudaStream_t. Throws std::runtime_error where CUDA fails, memory included.
std::unique_ptr<Device> make_cuda_device(const DeviceSettings& settings,
                                         const std::vector<DecoderWeights>& models,
                                         const std::vector<void*>& pools, void* stream);

}  // namespace pe::runtime
