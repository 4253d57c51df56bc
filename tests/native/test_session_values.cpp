// What a session computes: its log-probs against a decoder written plainly in float64, a drawn
// response against the same tokens given, and decoders in lock step against each of them alone.
#include "pyengine/philox.h"
#include "tiny_decoder.h"

namespace native {
namespace {

using pe::PackedKind;
using namespace pe::runtime;
using Rows = std::vector<std::vector<double>>;

double rounded(double x, pe::DType dtype) {
    return dtype == pe::DType::kF32 ? x : pe::to_float(pe::to_bf16(static_cast<float>(x)));
}

// One forward pass in double. What the decoder stores in `compute` is rounded to that here as well.
class Reference {
  public:
    explicit Reference(const TinyDecoder& d) : d_(d), s_(d.shape()), compute_(s_.compute()) {}

    Rows logprobs(const std::vector<int32_t>& tokens) const {
        Rows x = embedded(tokens);
        for (size_t i = 0; i < d_.layers().size(); ++i) {
            const TinyLayer& layer = d_.layers()[i];
            add(x, multiply(layer.o, attention(layer, x, s_.rotates(i))));
            add(x, multiply(layer.down, inner(layer, normed(layer.mlp_norm, x))));
        }
        Rows z = multiply(d_.head(), normed(d_.final_norm(), x));
        for (std::vector<double>& row : z) {
            const double largest = *std::max_element(row.begin(), row.end());
            double sum = 0;
            for (const double v : row) sum += std::exp(v - largest);
            for (double& v : row) v -= largest + std::log(sum);
        }
        return z;
    }

  private:
    Rows embedded(const std::vector<int32_t>& tokens) const {
        Rows x(tokens.size(), std::vector<double>(static_cast<size_t>(s_.hidden)));
        for (size_t t = 0; t < tokens.size(); ++t) {
            for (int64_t i = 0; i < s_.hidden; ++i) {
                double& v = x[t][static_cast<size_t>(i)];
                v = rounded(d_.embed().get(tokens[t], i), compute_) *
                    static_cast<double>(s_.multiplier);
                if (s_.classic)
                    v += rounded(d_.positions().get(static_cast<int64_t>(t), i), compute_);
            }
        }
        return x;
    }

    // A matrix as its kind holds it.
    static Rows held(const TinyLinear& w) {
        Rows rows(static_cast<size_t>(w.weight.rows()));
        for (int64_t n = 0; n < w.weight.rows(); ++n) {
            float largest = 0;
            for (int64_t k = 0; k < w.weight.cols(); ++k)
                largest = std::max(largest, std::fabs(w.weight.get(n, k)));
            const float scale = largest / 127.0f;
            for (int64_t k = 0; k < w.weight.cols(); ++k) {
                const float v = w.weight.get(n, k);
                double held = v;
                if (w.kind == PackedKind::kBF16) held = rounded(v, pe::DType::kBF16);
                if (w.kind == PackedKind::kI8)
                    held = std::nearbyint(v * (1.0f / scale)) * static_cast<double>(scale);
                rows[static_cast<size_t>(n)].push_back(held);
            }
        }
        return rows;
    }

    static Rows multiply(const TinyLinear& w, const Rows& x) {
        const Rows weight = held(w);
        Rows y(x.size(), std::vector<double>(weight.size()));
        for (size_t t = 0; t < x.size(); ++t) {
            for (size_t n = 0; n < weight.size(); ++n) {
                double sum = w.bias.cols() > 0 ? w.bias.get(static_cast<int64_t>(n)) : 0.0;
                for (size_t k = 0; k < weight[n].size(); ++k) sum += weight[n][k] * x[t][k];
                y[t][n] = sum;
            }
        }
        return y;
    }

    void add(Rows& x, const Rows& y) const {
        for (size_t t = 0; t < x.size(); ++t) {
            for (size_t i = 0; i < x[t].size(); ++i) {
                x[t][i] += static_cast<double>(s_.multiplier) * y[t][i];
            }
        }
    }

    static void norm(const TinyNorm& w, double* x, int64_t n) {
        const auto size = static_cast<double>(n);
        double mean = 0, square = 0;
        if (w.bias.cols() > 0) {
            for (int64_t i = 0; i < n; ++i) mean += x[i] / size;
        }
        for (int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean) / size;
        const double rstd = 1.0 / std::sqrt(square + static_cast<double>(1e-5f));
        for (int64_t i = 0; i < n; ++i) {
            x[i] = (x[i] - mean) * rstd * w.weight.get(i);
            if (w.bias.cols() > 0) x[i] += w.bias.get(i);
        }
    }

    Rows normed(const TinyNorm& w, Rows x) const {
        for (std::vector<double>& row : x) {
            norm(w, row.data(), s_.hidden);
            for (double& v : row) v = rounded(v, compute_);
        }
        return x;
    }

    // q/k norm and rotation of one head.
    void finish_head(const TinyNorm& w, double* x, int64_t position, bool rotates) const {
        if (w.present) norm(w, x, s_.head_dim);
        if (!rotates) return;
        const int64_t half = s_.head_dim / 2;
        for (int64_t i = 0; i < half; ++i) {
            const double left = x[i], right = x[i + half];
            const double cos = d_.cos().get(position, i), sin = d_.sin().get(position, i);
            x[i] = left * cos - right * sin;
            x[i + half] = right * cos + left * sin;
        }
    }

    Rows attention(const TinyLayer& layer, const Rows& x, bool rotates) const {
        Rows qkv = multiply(layer.qkv, normed(layer.attention_norm, x));
        const int64_t hd = s_.head_dim, heads = s_.heads + s_.kv_heads;
        for (size_t t = 0; t < qkv.size(); ++t) {
            for (int64_t h = 0; h < heads; ++h) {
                finish_head(h < s_.heads ? layer.q_norm : layer.k_norm, &qkv[t][at(h * hd)],
                            static_cast<int64_t>(t), rotates);
            }
            for (double& v : qkv[t]) v = rounded(v, compute_);
        }
        Rows out(x.size(), std::vector<double>(at(s_.heads * hd)));
        for (size_t t = 0; t < x.size(); ++t) {
            for (int64_t h = 0; h < s_.heads; ++h) attend(qkv, t, h, &out[t][at(h * hd)]);
        }
        return out;
    }

    void attend(const Rows& qkv, size_t t, int64_t h, double* out) const {
        const int64_t hd = s_.head_dim, kv_head = h / (s_.heads / s_.kv_heads);
        const double scale = 1.0f / std::sqrt(static_cast<float>(hd));
        double total = 0;
        const size_t seen = s_.window == 0 ? t + 1 : std::min(at(s_.window), t + 1);
        for (size_t j = t + 1 - seen; j <= t; ++j) {
            double score = 0;
            for (int64_t i = 0; i < hd; ++i)
                score += qkv[t][at(h * hd + i)] * qkv[j][at((s_.heads + kv_head) * hd + i)];
            const double weight = std::exp(score * scale);
            total += weight;
            for (int64_t i = 0; i < hd; ++i)
                out[i] += weight * qkv[j][at((s_.heads + s_.kv_heads + kv_head) * hd + i)];
        }
        for (int64_t i = 0; i < hd; ++i) out[i] = rounded(out[i] / total, compute_);
    }

    Rows inner(const TinyLayer& layer, const Rows& x) const {
        Rows y = multiply(layer.up, x);
        const size_t I = at(s_.inner);
        for (std::vector<double>& row : y) {
            for (size_t i = 0; i < I; ++i) {
                const double v = row[i];
                const double gelu =
                    0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
                row[i] = rounded(s_.classic ? gelu : v / (1 + std::exp(-v)) * row[i + I], compute_);
            }
            row.resize(I);
        }
        return y;
    }

    static size_t at(int64_t i) { return static_cast<size_t>(i); }

    const TinyDecoder& d_;
    const TinyShape& s_;
    const pe::DType compute_;
};

// Log-probs of all words at the last token of the prompt and after, as one model scores them.
Rows all_logprobs(const TinyDecoder& model, const std::vector<int32_t>& prompt,
                  const std::vector<int32_t>& response) {
    const int64_t V = model.shape().vocab;
    const auto outputs = alone(
        {&model},
        {.prompt = prompt, .sampling = {.top_logprobs = V}, .num_samples = 1, .given = {response}});
    const SampleOutput& o = outputs.at(0);
    CHECK(o.top_ids.size() == response.size() * static_cast<size_t>(V), "top ids");
    Rows rows(response.size(), std::vector<double>(static_cast<size_t>(V), NAN));
    for (size_t i = 0; i < o.top_ids.size(); ++i) {
        rows[i / static_cast<size_t>(V)][static_cast<size_t>(o.top_ids[i])] = o.top_logprobs[i];
    }
    for (size_t t = 0; t < response.size(); ++t) {
        CHECK(rows[t][static_cast<size_t>(response[t])] == o.logprobs[t], "the token's log-prob");
    }
    return rows;
}

// In bf16 a value that rounds the other way than in the reference is 2^-8 off; some hundreds of
// them end in one logit.
double bound(const TinyShape& shape) {
    return shape.kind == PackedKind::kF32 ? 200 * kUnit : 30 * 0x1.0p-9;
}

double check_values(const TinyShape& shape, uint64_t seed) {
    const TinyDecoder model(shape, seed);
    Rng rng(seed + 7);
    double worst = 0;
    for (const int64_t length : {1, 37}) {
        std::vector<int32_t> tokens = random_tokens(rng, length);
        const std::vector<int32_t> prompt = tokens, response = random_tokens(rng, 40);
        tokens.insert(tokens.end(), response.begin(), response.end());
        const Rows want = Reference(model).logprobs(tokens);
        const Rows got = all_logprobs(model, prompt, response);
        for (size_t t = 0; t < response.size(); ++t) {
            const size_t row = t + prompt.size() - 1;
            for (size_t n = 0; n < got[t].size(); ++n) {
                const double limit = bound(shape) * (1 + 0.1 * std::fabs(want[row][n]));
                worst = std::max(worst,
                                 SHARE(got[t][n], want[row][n], limit,
                                       shape.text() + ": log-prob of row " + std::to_string(row)));
            }
        }
    }
    return worst;
}

// Tokens that were drawn, then the same ones given: the same bits of everything, whatever the steps.
std::vector<SampleOutput> check_drawn_and_given(const TinyDecoder& model, const std::string& isa) {
    Rng rng(5);
    Request request{.prompt = random_tokens(rng, 70),
                    .sampling = {.temperature = 0.9,
                                 .top_p = 0.95,
                                 .repetition_penalty = 1.2f,
                                 .presence_penalty = 0.2f,
                                 .frequency_penalty = 0.3f,
                                 .logit_bias = {{3, 1.5f}, {280, -2.0f}},
                                 .stop_ids = {3},
                                 .max_tokens = 60,
                                 .min_tokens = 60,
                                 .seed = 11,
                                 .request_id = 12,
                                 .top_logprobs = 4,
                                 .entropy = true},
                    .num_samples = 3,
                    .given = {}};
    const std::vector<SampleOutput> drawn = alone({&model}, request);
    for (const SampleOutput& o : drawn) request.given.push_back(o.token_ids);
    for (const int64_t max_rows : {7, 64, 300}) {
        const std::vector<SampleOutput> given = alone({&model}, request, {1.0f}, max_rows);
        for (size_t i = 0; i < drawn.size(); ++i) {
            check_same(given[i], drawn[i], request.sampling, 1,
                       model.shape().text() + " on " + isa + ": drawn and given in steps of " +
                           std::to_string(max_rows));
        }
    }
    return drawn;
}

// The log-probs of each model are its own; the token is drawn from the combination.
double check_lock_step(const Models& models, const std::vector<float>& coefficients) {
    Rng rng(models.size());
    const size_t M = models.size();
    const double T = 1.3;
    const Request request{
        .prompt = random_tokens(rng, 21),
        .sampling = {.temperature = T, .max_tokens = 30, .seed = 3, .request_id = 4},
        .num_samples = 2,
        .given = {}};
    const std::vector<SampleOutput> outputs = alone(models, request, coefficients);
    double worst = 0;
    for (size_t i = 0; i < outputs.size(); ++i) {
        const SampleOutput& o = outputs[i];
        const auto R = static_cast<size_t>(o.size());
        CHECK(R == 30 && o.logprobs.size() == R * M, "lock step: sizes");
        Rows sum(R, std::vector<double>(300));
        for (size_t m = 0; m < M; ++m) {
            const Rows own = all_logprobs(*models[m], request.prompt, o.token_ids);
            for (size_t t = 0; t < R; ++t) {
                CHECK(o.logprobs[t * M + m] == own[t][static_cast<size_t>(o.token_ids[t])],
                      "lock step: a model's own log-prob");
                for (size_t n = 0; n < own[t].size(); ++n)
                    sum[t][n] += coefficients[m] * own[t][n] / T;
            }
        }
        for (size_t t = 0; t < R; ++t) {
            const auto token = static_cast<size_t>(o.token_ids[t]);
            double total = 0, before = 0;
            for (size_t n = 0; n < sum[t].size(); ++n) {
                total += std::exp(sum[t][n]);
                if (n < token) before += std::exp(sum[t][n]);
            }
            worst = std::max(worst, SHARE(o.sampling_logprobs[t], sum[t][token] - std::log(total),
                                          200 * kUnit, "lock step: sampling log-prob"));
            const double u =
                pe::sampling_uniform(3, 4, static_cast<uint32_t>(i), static_cast<uint32_t>(t));
            const double p = std::exp(sum[t][token]) / total;
            CHECK(u > before / total - 1e-5 && u < before / total + p + 1e-5,
                  "lock step: another token than the uniform number's");
        }
    }
    return worst;
}

}  // namespace

void test_session_values(const Options& options) {
    pe::set_num_threads(1);
    const std::vector<TinyShape> shapes = tiny_shapes();
    double worst[3] = {0, 0, 0}, lock = 0;
    std::vector<std::vector<SampleOutput>> fma(shapes.size());
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        for (size_t i = 0; i < shapes.size(); ++i) {
            double& of_kind = worst[static_cast<int>(shapes[i].kind)];
            of_kind = std::max(of_kind, check_values(shapes[i], 100 + i));
            const TinyDecoder model(shapes[i], 1);
            auto drawn = check_drawn_and_given(model, pe::cpu::isa_name(isa));
            if (!has_fma(isa)) continue;
            for (size_t k = 0; k < drawn.size() && !fma[i].empty(); ++k) {
                check_same(drawn[k], fma[i][k], {.top_logprobs = 4, .entropy = true}, 1,
                           std::string(pe::cpu::isa_name(isa)) + " against the first with FMA");
            }
            fma[i] = std::move(drawn);
        }
        const TinyDecoder a(shapes[0], 1), b(shapes[3], 2), c(shapes[4], 3);
        lock = std::max(lock, check_lock_step({&a, &b}, {1.5f, -0.5f}));
        lock = std::max(lock, check_lock_step({&b, &c, &a}, {1.0f, 0.5f, -0.25f}));
    }
    printf("  session, largest error / bound: f32 %.3f, bf16 %.3f, i8 %.3f, combined %.3f\n",
           worst[0], worst[1], worst[2], lock);
}

}  // namespace native
