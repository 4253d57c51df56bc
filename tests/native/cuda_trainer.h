// A tiny gated decoder with grouped heads whose log-probs, gradients and updates are made by CUDA's kernels on the host, op by op in
// the order of pyengine/engine/learn/tree_model.py: what a trainer does with the weights that a session samples from.
#pragma once

#include <cuda_runtime.h>

#include "paged_case.h"
#include "pyengine/ops/adamw.h"
#include "pyengine/ops/attention.h"
#include "pyengine/ops/attention_backward.h"
#include "pyengine/ops/kv_cache.h"
#include "pyengine/ops/linear.h"
#include "pyengine/ops/linear_logprob.h"
#include "pyengine/ops/rms_norm.h"
#include "pyengine/ops/rope.h"
#include "pyengine/runtime/device.h"

namespace native {

inline void on_cuda(int status, const char* what) { CHECK(status == cudaSuccess, what); }

struct TrainedShape {
    pe::PackedKind kind = pe::PackedKind::kBF16;
    int64_t vocab = 300, hidden = 64, heads = 4, kv_heads = 2, head_dim = 16, inner = 96;
    int64_t layers = 2, positions = 200, page_tokens = 16;

    pe::DType compute() const {
        return kind == pe::PackedKind::kF32 ? pe::DType::kF32 : pe::DType::kBF16;
    }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
};

// A master, its gradient and moments, and what is multiplied.
class TrainedMatrix {
  public:
    TrainedMatrix(Rng& rng, pe::PackedKind kind, int64_t N, int64_t K, float size,
                  bool gated = false);

    void pack();
    void step(const pe::AdamWScalars& scalars);
    pe::PackedMatrix packed() const { return view(rows_, master.rows(), master.cols()); }
    pe::PackedMatrix columns() const { return view(columns_, master.cols(), master.rows()); }

    Matrix master, grad;

  private:
    pe::PackedMatrix view(const Memory& m, int64_t N, int64_t K) const {
        return {m.data(), kind_, N, K, nullptr};
    }
    static int64_t bytes(pe::PackedKind kind, int64_t N, int64_t K) {
        const pe::PackedMatrix p{nullptr, kind, N, K, nullptr};
        return p.panels() * p.panel_bytes();
    }

    pe::PackedKind kind_;
    bool gated_;
    Memory rows_, columns_;
    Matrix exp_avg_, exp_avg_sq_;
};

struct TrainedLayer {
    TrainedMatrix attention_norm, qkv, o, mlp_norm, up, down;
};

// A prompt and its responses.
struct TrainedTree {
    std::vector<int32_t> prompt;
    std::vector<std::vector<int32_t>> responses;
};

class CudaTrainer {
  public:
    CudaTrainer(const TrainedShape& shape, uint64_t seed);

    pe::runtime::DecoderWeights weights() const;
    // The log-prob of each token of each response, in order.
    std::vector<float> logprobs(const std::vector<TrainedTree>& trees) const;
    // Adds the gradient of sum(dlogprob * log-prob), and gives the log-probs.
    std::vector<float> backward(const std::vector<TrainedTree>& trees,
                                const std::vector<float>& dlogprob);
    void zero_grad();
    void step(int64_t number, float learning_rate);
    std::vector<const Matrix*> gradients() const;

  private:
    struct Batch;
    struct Saved;
    std::vector<TrainedMatrix*> all();
    Matrix forward(Batch& batch, std::vector<Saved>* saved) const;
    // x becomes the residual stream after the layer.
    void layer(const TrainedLayer& l, Batch& batch, Matrix& x, std::vector<Saved>* saved) const;
    void layer_backward(TrainedLayer& l, Batch& batch, const Saved& saved, Matrix& dx);
    std::vector<float> head(const Batch& batch, const Matrix& hidden, Matrix* lse) const;

    TrainedShape s_;
    TrainedMatrix embed_, head_, final_norm_;
    std::vector<TrainedLayer> layers_;
    Matrix cos_, sin_;
};

}  // namespace native
