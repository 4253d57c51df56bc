// A session's device on a GPU: a step's arrays go over in one copy, what was drawn comes back in one, and the stream is waited for once
// a slab of logits.
#include <algorithm>

#include "common/device_memory.cuh"
#include "pyengine/runtime/device.h"
#include "runtime/decoder.cuh"

namespace pe::runtime {
namespace {

using cuda::check_cuda;
using cuda::CudaDecoder;
using cuda::DeviceBatch;
using cuda::DeviceMemory;
using cuda::Staging;

constexpr int64_t kSlabBytes = int64_t{256} << 20;  // of the logits that exist at one time
constexpr int64_t kMinSlabRows = 16;

class CudaDevice : public Device {
  public:
    CudaDevice(const DeviceSettings& s, const std::vector<DecoderWeights>& models,
               const std::vector<void*>& pools, cudaStream_t stream)
        : stream_(stream) {
        const int64_t V = models.at(0).vocab_size, M = std::ssize(models);
        const int64_t fit = kSlabBytes / (V * M * static_cast<int64_t>(sizeof(float)));
        slab_rows_ = std::min(s.max_rows, std::max(fit, kMinSlabRows));
        for (size_t i = 0; i < models.size(); ++i) {
            decoders_.emplace_back(models[i], KvPool{pools[i], s.num_pages, s.page_tokens},
                                   s.max_rows, stream);
            logits_.emplace_back(slab_rows_ * V * static_cast<int64_t>(sizeof(float)));
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
        for (const CudaDecoder& decoder : decoders_) decoder.copy_page(from, to);
    }

    void forward(StepBatch& batch) override {
        const DeviceBatch there = upload(batch);
        for (CudaDecoder& decoder : decoders_) decoder.forward(there);
    }

    void draw(int64_t row, int64_t rows, SampleArgs args) override {
        const int64_t B = args.draws, V = weights(0).vocab_size;
        if (B == 0) return;
        MatrixView logits[kMaxSampledModels];
        for (size_t m = 0; m < decoders_.size(); ++m) {
            auto* out = reinterpret_cast<float*>(logits_[m].data());
            logits[m] = {out, DType::kF32, rows, V, V};
            decoders_[m].logits(row, rows, out);
        }
        args.logits = logits;
        const int64_t bytes = cuda::sample_workspace_bytes(V, B);
        if (bytes > workspace_bytes_) {
            check_cuda(cudaStreamSynchronize(stream_), "waiting for the GPU");
            workspace_ = DeviceMemory(bytes);
            workspace_bytes_ = bytes;
        }
        args.workspace = workspace_.data();
        upload(args);
        sample_and_download(args);
    }

  private:
    template <typename T>
    static T* place(Staging& staging, const std::vector<T>& values) {
        const auto at = staging.take<T>(std::ssize(values));
        std::copy(values.begin(), values.end(), at.host);
        return at.device;
    }

    template <typename T>
    static int64_t bytes_of(const std::vector<T>& values) {
        return Staging::round_up(std::ssize(values) * static_cast<int64_t>(sizeof(T)));
    }

    DeviceBatch upload(const StepBatch& b) {
        // The copy before has been read: draw() has waited for the stream since, if anything was drawn.
        if (is_copying_) check_cuda(cudaStreamSynchronize(stream_), "waiting for the GPU");
        is_copying_ = true;
        step_.begin(bytes_of(b.token_ids) + bytes_of(b.positions) + bytes_of(b.slots) +
                    bytes_of(b.cu_seqlens) + bytes_of(b.first_positions) +
                    bytes_of(b.block_tables) + bytes_of(b.wanted));
        DeviceBatch there{b.rows(), b.sequences(), b.table_width, b.num_wanted()};
        there.token_ids = place(step_, b.token_ids);
        there.positions = place(step_, b.positions);
        there.slots = place(step_, b.slots);
        there.cu_seqlens = place(step_, b.cu_seqlens);
        there.first_positions = place(step_, b.first_positions);
        there.block_tables = place(step_, b.block_tables);
        there.wanted = place(step_, b.wanted);
        step_.to_device(stream_);
        return there;
    }

    // Parameters and changes of logits.
    void upload(SampleArgs& args) {
        int64_t changes = 0;
        for (int64_t i = 0; i < args.draws; ++i)
            changes = std::max(changes, args.params[i].adjust_end);
        params_.begin(Staging::round_up(args.draws * static_cast<int64_t>(sizeof(SampleParams))) +
                      Staging::round_up(changes * static_cast<int64_t>(sizeof(LogitAdjust))));
        const auto params = params_.take<SampleParams>(args.draws);
        const auto adjust = params_.take<LogitAdjust>(changes);
        std::copy_n(args.params, args.draws, params.host);
        std::copy_n(args.adjust, changes, adjust.host);
        args.params = params.device;
        args.adjust = adjust.device;
        params_.to_device(stream_);
    }

    // Takes the arrays of `args`, which are the host's, to the GPU and back.
    void sample_and_download(SampleArgs args) {
        struct Array {
            void* host;
            const void* pinned;
            size_t bytes;
        };
        const int64_t B = args.draws, M = args.models, top = args.top_ids.cols;
        drawn_.begin(B * (8 + 4 + 4 + 4 + 4) + B * M * 4 + B * top * (8 + 4) + 8 * 16);
        std::vector<Array> arrays;
        const auto move = [&](void*& data, int64_t count, DType dtype) {
            if (data == nullptr) return;
            const int64_t bytes = count * dtype_bytes(dtype);
            const auto at = drawn_.take<char>(bytes);
            arrays.push_back({data, at.host, static_cast<size_t>(bytes)});
            data = at.device;
        };
        for (VectorView* v : {&args.token_ids, &args.sampling_logprobs, &args.kept_mass,
                              &args.entropy, &args.status})
            move(v->data, B, v->dtype);
        move(args.logprobs.data, B * M, args.logprobs.dtype);
        for (MatrixView* m : {&args.top_ids, &args.top_logprobs}) move(m->data, B * top, m->dtype);
        check_cuda(cuda::sample(args, stream_), "sample");
        drawn_.to_host(stream_);
        check_cuda(cudaStreamSynchronize(stream_), "sampling");
        is_copying_ = false;
        for (const Array& a : arrays) memcpy(a.host, a.pinned, a.bytes);
    }

    std::vector<CudaDecoder> decoders_;
    cudaStream_t stream_;
    int64_t slab_rows_ = 0;
    std::vector<DeviceMemory> logits_;  // (slab_rows, V) of each model
    DeviceMemory workspace_;            // of sample
    int64_t workspace_bytes_ = 0;
    Staging step_, params_, drawn_;
    bool is_copying_ = false;  // step_ may still be read
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(const DeviceSettings& settings,
                                         const std::vector<DecoderWeights>& models,
                                         const std::vector<void*>& pools, void* stream) {
    return std::make_unique<CudaDevice>(settings, models, pools, static_cast<cudaStream_t>(stream));
}

}  // namespace pe::runtime
