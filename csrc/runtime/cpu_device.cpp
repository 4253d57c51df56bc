#include <algorithm>

#include "pyengine/parallel.h"
#include "pyengine/runtime/buffer.h"
#include "pyengine/runtime/device.h"

namespace pe::runtime {
namespace {

constexpr int64_t kSlabBytes = 16 << 20;  // of the logits that exist at one time
constexpr int64_t kMinSlabRows = 12, kMaxSlabRows = 96;

int64_t slab_rows_of(int64_t V, int64_t models, int64_t max_rows) {
    const int64_t fit = kSlabBytes / (V * models * static_cast<int64_t>(sizeof(float)));
    return std::min(max_rows,
                    std::clamp(fit / kMinSlabRows * kMinSlabRows, kMinSlabRows, kMaxSlabRows));
}

class CpuDevice : public Device {
  public:
    CpuDevice(const DeviceSettings& s, const std::vector<DecoderWeights>& models,
              const std::vector<void*>& pools)
        : slab_rows_(slab_rows_of(models.at(0).vocab_size, static_cast<int64_t>(models.size()),
                                  s.max_rows)),
          workspace_(cpu::sample_workspace_bytes(models.at(0).vocab_size, pe::num_threads())),
          threads_(pe::num_threads()) {
        for (size_t i = 0; i < models.size(); ++i) {
            decoders_.emplace_back(models[i], KvPool{pools[i], s.num_pages, s.page_tokens},
                                   s.max_rows);
            logits_.emplace_back(slab_rows_ * models[i].vocab_size *
                                 static_cast<int64_t>(sizeof(float)));
        }
    }

    size_t num_models() const override { return decoders_.size(); }
    const DecoderWeights& weights(size_t model) const override {
        return decoders_[model].weights();
    }
    void set_weights(size_t model, const DecoderWeights& w) override {
        decoders_[model].set_weights(w);
    }
    int64_t slab_rows() const override { return slab_rows_; }

    void copy_page(int32_t from, int32_t to) override {
        for (Decoder& decoder : decoders_) decoder.copy_page(from, to);
    }

    void forward(StepBatch& batch) override {
        for (Decoder& decoder : decoders_) decoder.forward(batch);
    }

    void draw(int64_t row, int64_t rows, SampleArgs args) override {
        if (const int threads = pe::num_threads(); threads > threads_) {
            workspace_ = Buffer(cpu::sample_workspace_bytes(weights(0).vocab_size, threads));
            threads_ = threads;
        }
        MatrixView logits[kMaxSampledModels];
        for (size_t m = 0; m < decoders_.size(); ++m) {
            const int64_t V = weights(m).vocab_size;
            logits[m] = {logits_[m].as<float>(), DType::kF32, rows, V, V};
        }
        args.logits = logits;
        args.workspace = workspace_.as<void>();
        args.threads = threads_;
        parallel_region(pe::num_threads(), [&] {
            for (size_t m = 0; m < decoders_.size(); ++m)
                decoders_[m].logits(row, rows, logits_[m].as<float>());
            cpu::sample(args);
        });
    }

  private:
    std::vector<Decoder> decoders_;
    int64_t slab_rows_;
    std::vector<Buffer> logits_;  // (slab_rows, V) of each model
    Buffer workspace_;            // of sample
    int threads_;                 // that it was sized for
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(const DeviceSettings& settings,
                                        const std::vector<DecoderWeights>& models,
                                        const std::vector<void*>& pools) {
    return std::make_unique<CpuDevice>(settings, models, pools);
}

}  // namespace pe::runtime
