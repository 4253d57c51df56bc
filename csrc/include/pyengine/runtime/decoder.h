// One step of a decoder over paged keys and values: rows of tokens in, hidden states and logits out.
//
// The description is that of DecoderSpec: what differs between model families is data here, not
// code. Every op is called as it is, by all threads of one parallel region; a row's bits depend on
// its tokens and the weights alone.
#pragma once

#include <cstdint>
#include <vector>

#include "pyengine/kv_pages.h"
#include "pyengine/packed.h"
#include "pyengine/runtime/buffer.h"

namespace pe::runtime {

struct NormWeights {
    VectorView weight;
    VectorView bias;  // null: RMS norm
};

struct LinearWeights {
    PackedMatrix matrix;
    VectorView bias;  // null: none
};

struct LayerWeights {
    NormWeights attention_norm;
    LinearWeights qkv;           // q, k and v below each other
    NormWeights q_norm, k_norm;  // of each head; null: none
    LinearWeights o;
    NormWeights mlp_norm;
    LinearWeights up;  // a gated pair for the SiLU gate
    LinearWeights down;
    bool gated = true;                 // silu(gate) * up; else gelu_tanh(up)
    MatrixView cos, sin;               // (positions, head_dim / 2) of the rotation; null: none
    int64_t window = 0;                // keys that a row sees, its own included; 0: all
    float residual_multiplier = 1.0f;  // of what attention and MLP add to the residual stream
};

// The pages of one model: [page][layer][keys, values] as in kv_pages.h.
struct KvPool {
    void* data = nullptr;
    int64_t num_pages = 0;
    int64_t page_tokens = 0;
};

struct DecoderWeights {
    int64_t vocab_size = 0, hidden_size = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0;
    int64_t intermediate_size = 0;
    float norm_eps = 0.0f, attention_scale = 0.0f, embedding_multiplier = 1.0f;
    DType compute = DType::kF32;  // what matrices multiply, and the pages hold
    MatrixView embed;             // (vocab_size, hidden_size), rounded to `compute` when read
    MatrixView positions;         // (max_positions, hidden_size) learned ones; null: none
    std::vector<LayerWeights> layers;
    NormWeights final_norm;
    PackedMatrix head;  // (vocab_size, hidden_size)

    // The longest sequence that every table of positions holds; `tokens` where there is none.
    int64_t most_positions(int64_t tokens) const {
        int64_t most = positions ? positions.rows : -1;
        for (const LayerWeights& l : layers) {
            if (l.cos && (most < 0 || l.cos.rows < most)) most = l.cos.rows;
        }
        return most < 0 ? tokens : most;
    }
    // Of one page: keys and values of every layer.
    int64_t page_elements(int64_t page_tokens) const {
        return static_cast<int64_t>(layers.size()) * 2 *
               kv_elements_per_page(num_kv_heads, head_dim, page_tokens);
    }
    int64_t page_bytes(const KvPool& pool) const {
        return page_elements(pool.page_tokens) * dtype_bytes(compute);
    }
    // The keys, or the values, of one layer in a pool.
    KvPages pages(const KvPool& pool, int64_t layer, bool values) const {
        const int64_t part = kv_elements_per_page(num_kv_heads, head_dim, pool.page_tokens);
        char* data = static_cast<char*>(pool.data) +
                     (2 * layer + (values ? 1 : 0)) * part * dtype_bytes(compute);
        return {data,
                compute,
                page_elements(pool.page_tokens),
                pool.num_pages,
                num_kv_heads,
                head_dim,
                pool.page_tokens};
    }
    bool multiplies_residuals() const {
        for (const LayerWeights& l : layers) {
            if (l.residual_multiplier != 1.0f) return true;
        }
        return false;
    }
};

// The rows of a step: those of a sequence follow each other, at consecutive positions.
struct StepBatch {
    std::vector<int32_t> token_ids;         // (T,)
    std::vector<int64_t> positions, slots;  // (T,)
    std::vector<int32_t> cu_seqlens;        // (S + 1,)
    std::vector<int32_t> first_positions;   // (S,)
    std::vector<int32_t> block_tables;      // (S, table_width)
    int64_t table_width = 0;
    std::vector<int32_t> wanted;  // (R,) rows whose hidden state is asked for, ascending

    int64_t rows() const { return static_cast<int64_t>(token_ids.size()); }
    int64_t sequences() const { return static_cast<int64_t>(first_positions.size()); }
    int64_t num_wanted() const { return static_cast<int64_t>(wanted.size()); }
};

class Decoder {
  public:
    Decoder(const DecoderWeights& weights, KvPool pool, int64_t max_rows);

    const DecoderWeights& weights() const { return weights_; }
    void set_weights(const DecoderWeights& weights) { weights_ = weights; }  // of the same sizes

    void copy_page(int32_t from, int32_t to);
    // Writes the keys and values of the batch's rows, and keeps the hidden states of wanted ones.
    void forward(StepBatch& batch);
    // Logits (count, vocab_size) f32 of wanted rows [begin, begin + count) of the last batch. May be
    // called by all threads of a region.
    void logits(int64_t begin, int64_t count, float* out) const;

  private:
    void embed(const StepBatch& batch);
    void norm(const NormWeights& w, const MatrixView& x, const MatrixView& y) const;
    void attention(StepBatch& batch, int64_t layer);
    void write_keys_values(StepBatch& batch, int64_t layer, int64_t begin, int64_t rows);
    void keep_wanted(const StepBatch& batch);
    // After attention; `then` is the matrix that is multiplied after the layer.
    void finish_layer(const LayerWeights& layer, int64_t rows, const PackedMatrix& then);
    void add(const LinearWeights& w, const Rows& x, int64_t rows, float multiplier,
             const PackedMatrix& then);

    DecoderWeights weights_;
    KvPool pool_;
    Rows residual_, normed_, q_, k_, v_, attended_, inner_;
    Rows added_;  // where a residual multiplier is not 1
};

}  // namespace pe::runtime
