// Random tiny decoders of every kind that DecoderWeights describes, and sessions over them; all
// memory is of exactly the stated size.
#pragma once

#include <algorithm>
#include <utility>

#include "check.h"
#include "pyengine/ops/linear.h"
#include "pyengine/runtime/session.h"

extern "C" void __tsan_init() __attribute__((weak));

namespace native {

inline bool is_sanitized() { return __asan_init != nullptr || __tsan_init != nullptr; }

struct TinyShape {
    pe::PackedKind kind = pe::PackedKind::kF32;
    bool classic = false;  // layer norm, learned positions, biases, GELU; else RMS norm, rotation,
                           // a gated MLP
    bool qk_norm = true;
    float multiplier = 1.0f;  // of embeddings, and of what a layer adds
    int64_t window = 0;       // of every layer
    bool rotates(size_t layer) const { return !classic && (multiplier == 1.0f || layer > 0); }
    // More than one block of words, and not a multiple of a panel; heads are padded to 16.
    int64_t vocab = 300, hidden = 48, heads = 4, kv_heads = 2, head_dim = 12, inner = 72;
    int64_t layers = 2, positions = 600;

    pe::DType compute() const {
        return kind == pe::PackedKind::kF32 ? pe::DType::kF32 : pe::DType::kBF16;
    }
    std::string text() const {
        const char* kinds[] = {"f32", "bf16", "i8"};
        return std::string(kinds[static_cast<int>(kind)]) + (classic ? " classic" : " gated") +
               (qk_norm ? " with q/k norm" : "") + (multiplier == 1.0f ? "" : " with multipliers") +
               (window == 0 ? "" : " and windows");
    }
};

struct TinyNorm {
    Matrix weight, bias;
    bool present;

    TinyNorm(Rng& rng, int64_t n, bool biased, bool present_ = true)
        : weight(floats(present_ ? n : 0)),
          bias(floats(present_ && biased ? n : 0)),
          present(present_) {
        for (int64_t i = 0; i < weight.cols(); ++i) weight.set(0, i, 1.0f + 0.2f * rng.normal());
        bias.fill_normal(rng, 0.2f);
    }
    pe::runtime::NormWeights view() const {
        if (!present) return {};
        return {weight.vector(), bias.cols() > 0 ? bias.vector() : pe::VectorView{}};
    }
};

struct TinyLinear {
    pe::PackedKind kind;
    Matrix weight, bias;
    Memory data, scale;

    TinyLinear(Rng& rng, const TinyShape& s, int64_t N, int64_t K, float size, bool biased,
               bool gated = false)
        : kind(s.kind),
          weight(pe::DType::kF32, N, K),
          bias(floats(biased ? N : 0)),
          data(panels() * packed().panel_bytes()),
          scale(kind == pe::PackedKind::kI8 ? panels() * pe::kPanel * 4 : 0) {
        weight.fill_normal(rng, size / std::sqrt(static_cast<float>(K)));
        bias.fill_normal(rng, 0.2f);
        for (const Memory* m : {&data, &scale}) memset(m->data(), 0, m->bytes());
        if (!gated) {
            pe::cpu::linear_pack({weight.view(), packed(data, scale), 0, false});
            return;
        }
        pe::cpu::linear_pack({weight.rows(0, N / 2), packed(data, scale), 0, true});
        pe::cpu::linear_pack({weight.rows(N / 2, N / 2), packed(data, scale), 16, true});
    }
    pe::runtime::LinearWeights view() const {
        return {packed(data, scale), bias.cols() > 0 ? bias.vector() : pe::VectorView{}};
    }

  private:
    pe::PackedMatrix packed() const {
        return {nullptr, kind, weight.rows(), weight.cols(), nullptr};
    }
    int64_t panels() const { return packed().panels(); }
    pe::PackedMatrix packed(const Memory& d, const Memory& s) const {
        pe::PackedMatrix p = packed();
        p.data = d.data();
        if (kind == pe::PackedKind::kI8) p.scale = static_cast<float*>(s.data());
        return p;
    }
};

struct TinyLayer {
    TinyNorm attention_norm;
    TinyLinear qkv;
    TinyNorm q_norm, k_norm;
    TinyLinear o;
    TinyNorm mlp_norm;
    TinyLinear up, down;

    TinyLayer(Rng& rng, const TinyShape& s)
        : attention_norm(rng, s.hidden, s.classic),
          qkv(rng, s, (s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden, 1.5f, s.classic),
          q_norm(rng, s.head_dim, s.classic, s.qk_norm),
          k_norm(rng, s.head_dim, s.classic, s.qk_norm),
          o(rng, s, s.hidden, s.heads * s.head_dim, 1.0f, s.classic),
          mlp_norm(rng, s.hidden, s.classic),
          up(rng, s, s.classic ? s.inner : 2 * s.inner, s.hidden, 1.0f, s.classic, !s.classic),
          down(rng, s, s.hidden, s.inner, 1.0f, s.classic) {}
};

class TinyDecoder {
  public:
    TinyDecoder(const TinyShape& shape, uint64_t seed) : TinyDecoder(shape, Rng(seed)) {}

    const TinyShape& shape() const { return s_; }
    const Matrix& embed() const { return embed_; }
    Matrix& embed() { return embed_; }
    const Matrix& positions() const { return positions_; }
    const Matrix& cos() const { return cos_; }
    const Matrix& sin() const { return sin_; }
    const std::vector<TinyLayer>& layers() const { return layers_; }
    const TinyNorm& final_norm() const { return final_norm_; }
    const TinyLinear& head() const { return head_; }

    pe::runtime::DecoderWeights weights() const {
        pe::runtime::DecoderWeights w;
        w.vocab_size = s_.vocab;
        w.hidden_size = s_.hidden;
        w.num_heads = s_.heads;
        w.num_kv_heads = s_.kv_heads;
        w.head_dim = s_.head_dim;
        w.intermediate_size = s_.inner;
        w.norm_eps = 1e-5f;
        w.attention_scale = 1.0f / std::sqrt(static_cast<float>(s_.head_dim));
        w.embedding_multiplier = s_.multiplier;
        w.compute = s_.compute();
        w.embed = embed_.view();
        if (s_.classic) w.positions = positions_.view();
        for (const TinyLayer& l : layers_) {
            const bool rotates = s_.rotates(w.layers.size());
            w.layers.push_back({.attention_norm = l.attention_norm.view(),
                                .qkv = l.qkv.view(),
                                .q_norm = l.q_norm.view(),
                                .k_norm = l.k_norm.view(),
                                .o = l.o.view(),
                                .mlp_norm = l.mlp_norm.view(),
                                .up = l.up.view(),
                                .down = l.down.view(),
                                .gated = !s_.classic,
                                .cos = rotates ? cos_.view() : pe::MatrixView{},
                                .sin = rotates ? sin_.view() : pe::MatrixView{},
                                .window = s_.window,
                                .residual_multiplier = s_.multiplier});
        }
        w.final_norm = final_norm_.view();
        w.head = head_.view().matrix;
        return w;
    }

  private:
    TinyDecoder(const TinyShape& s, Rng rng)
        : s_(s),
          embed_(s.compute(), s.vocab, s.hidden, 3),
          positions_(pe::DType::kF32, s.classic ? s.positions : 0, s.hidden, 5),
          cos_(pe::DType::kF32, s.classic ? 0 : s.positions, s.head_dim / 2),
          sin_(pe::DType::kF32, s.classic ? 0 : s.positions, s.head_dim / 2),
          final_norm_(rng, s.hidden, s.classic),
          head_(rng, s, s.vocab, s.hidden, 2.0f, false) {
        embed_.fill_normal(rng);
        positions_.fill_normal(rng, 0.5f);
        for (int64_t p = 0; p < cos_.rows(); ++p) {
            for (int64_t i = 0; i < s.head_dim / 2; ++i) {
                const double angle =
                    static_cast<double>(p) *
                    std::pow(1e-4, 2.0 * static_cast<double>(i) / static_cast<double>(s.head_dim));
                cos_.set(p, i, static_cast<float>(std::cos(angle)));
                sin_.set(p, i, static_cast<float>(std::sin(angle)));
            }
        }
        for (int64_t i = 0; i < s.layers; ++i) layers_.emplace_back(rng, s);
    }

    TinyShape s_;
    Matrix embed_, positions_, cos_, sin_;
    std::vector<TinyLayer> layers_;
    TinyNorm final_norm_;
    TinyLinear head_;
};

inline std::vector<TinyShape> tiny_shapes() {
    using P = pe::PackedKind;
    return {{.kind = P::kF32},
            {.kind = P::kF32, .classic = true, .qk_norm = false},
            {.kind = P::kBF16, .qk_norm = false},
            {.kind = P::kBF16, .classic = true},
            {.kind = P::kBF16, .multiplier = 0.7f, .window = 9},
            {.kind = P::kI8}};
}

using Models = std::vector<const TinyDecoder*>;

// A session, and the pages of its models: NaN until they are written.
class Rig {
  public:
    Rig(const Models& models, const pe::runtime::SessionSettings& settings)
        : pools_(pools(models, settings)), session_(settings, weights(models), pointers(pools_)) {}

    pe::runtime::Session* operator->() { return &session_; }
    pe::runtime::Session& operator*() { return session_; }

    // Steps until nothing is left to do.
    void finish(const std::string& what) {
        for (int64_t steps = 0;; ++steps) {
            CHECK(steps < 100000, what + ": the session does not end");
            const pe::runtime::StepResult result = session_.step();
            CHECK(result.bad_request < 0, what + ": not finite");
            if (!result.worked) break;
        }
        check_idle(what);
    }
    void check_idle(const std::string& what) const {
        const auto& scheduler = session_.scheduler();
        CHECK(session_.num_open() == 0, what + ": open samples");
        CHECK(scheduler.num_running() + scheduler.num_waiting() == 0, what + ": sequences leaked");
        CHECK(session_.blocks().num_free() == session_.blocks().num_pages(),
              what + ": pages leaked");
        const std::string problem = session_.blocks().check({});
        CHECK(problem.empty(), what + ": " + problem);
    }

  private:
    static std::vector<Memory> pools(const Models& models,
                                     const pe::runtime::SessionSettings& settings) {
        std::vector<Memory> list;
        for (const TinyDecoder* m : models) {
            list.emplace_back(settings.num_pages *
                              m->weights().page_elements(settings.page_tokens) *
                              pe::dtype_bytes(m->shape().compute()));
        }
        return list;
    }
    static std::vector<void*> pointers(const std::vector<Memory>& pools) {
        std::vector<void*> list;
        for (const Memory& m : pools) list.push_back(m.data());
        return list;
    }
    static std::vector<pe::runtime::DecoderWeights> weights(const Models& models) {
        std::vector<pe::runtime::DecoderWeights> list;
        for (const TinyDecoder* m : models) list.push_back(m->weights());
        return list;
    }

    std::vector<Memory> pools_;
    pe::runtime::Session session_;
};

inline std::vector<int32_t> random_tokens(Rng& rng, int64_t n, int64_t vocab = 300) {
    std::vector<int32_t> list;
    for (int64_t i = 0; i < n; ++i) list.push_back(static_cast<int32_t>(rng.below(vocab)));
    return list;
}

// All samples of a request that has a roomy session to itself.
inline std::vector<pe::runtime::SampleOutput> alone(const Models& models,
                                                    const pe::runtime::Request& request,
                                                    std::vector<float> coefficients = {1.0f},
                                                    int64_t max_rows = 128) {
    Rig rig(models, {.num_pages = 64,
                     .page_tokens = 16,
                     .share_prefixes = false,
                     .limits = {max_rows, max_rows},
                     .coefficients = std::move(coefficients)});
    const int64_t handle = rig->submit(request);
    rig.finish("alone");
    return rig->take(handle);
}

template <typename T>
inline bool same_prefix(const std::vector<T>& a, const std::vector<T>& b, size_t n) {
    return a.size() == n && b.size() >= n && same_bytes(a.data(), b.data(), n * sizeof(T));
}

// Every number of `got`, which may have been cut short, against the first ones of `want`.
inline void check_same(const pe::runtime::SampleOutput& got, const pe::runtime::SampleOutput& want,
                       const pe::runtime::Sampling& s, size_t models, const std::string& what) {
    const auto n = static_cast<size_t>(got.size()), k = static_cast<size_t>(s.top_logprobs);
    CHECK(same_prefix(got.token_ids, want.token_ids, n), what + ": tokens");
    CHECK(same_prefix(got.logprobs, want.logprobs, n * models), what + ": log-probs");
    CHECK(same_prefix(got.sampling_logprobs, want.sampling_logprobs, n),
          what + ": sampling log-probs");
    CHECK(same_prefix(got.kept_mass, want.kept_mass, n), what + ": kept mass");
    CHECK(same_prefix(got.entropy, want.entropy, s.entropy ? n : 0), what + ": entropy");
    CHECK(same_prefix(got.top_ids, want.top_ids, n * k), what + ": top ids");
    CHECK(same_prefix(got.top_logprobs, want.top_logprobs, n * k), what + ": top log-probs");
    if (got.finish == pe::runtime::Finish::kAbort) return;
    CHECK(got.finish == want.finish && got.size() == want.size(), what + ": the end");
}

}  // namespace native
