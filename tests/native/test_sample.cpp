// sample on every instruction set against float64: kept sets, tokens, log-probs, ties; memory of exactly the stated size,
// draws alone and together, 1 to 3 threads, calls inside a task.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "pyengine/ops/sample.h"

namespace native {
namespace {

using pe::DType;

constexpr float kInf = INFINITY;
constexpr int64_t kTop = 3;

struct Batch {
    int64_t R, V, M, k;
    std::vector<Matrix> logits;
    std::vector<pe::MatrixView> views;
    std::vector<float> coefficients;
    std::vector<pe::SampleParams> params;
    std::vector<pe::LogitAdjust> adjust;

    // Each setting at several uniforms; `grid` > 0 rounds the logits to its multiples.
    Batch(int64_t V_, int64_t M_, float grid, uint64_t seed)
        : R(3), V(V_), M(M_), k(std::min(kTop, V_)) {
        Rng rng(seed);
        for (int64_t m = 0; m < M; ++m) {
            logits.emplace_back(DType::kF32, R, V, 5);
            for (int64_t i = 0; i < R; ++i) {
                for (int64_t j = 0; j < V; ++j) {
                    const float z = 2.5f * rng.normal();
                    const bool absent = m == 0 && V > 2 && rng.below(50) == 0;
                    logits.back().set(i, j,
                                      absent     ? -kInf
                                      : grid > 0 ? grid * std::round(z / grid)
                                                 : z);
                }
            }
            coefficients.push_back(M == 1 ? 1.0f : m == 0 ? 0.75f : 0.25f);
        }
        for (const Matrix& m : logits) views.push_back(m.view());
        const double kTemperature[] = {1.0, 0.0, 0.5, 2.0};
        const double kTopP[] = {1.0, 0.5, 0.95}, kMinP[] = {0.0, 0.05};
        const int64_t kTopK[] = {0, 1, 7, 300};
        for (int i = 0; i < 96; ++i) {
            pe::SampleParams p;
            p.temperature = kTemperature[i % 4];
            p.top_k = kTopK[(i / 4) % 4];
            p.top_p = kTopP[(i / 16) % 3];
            p.min_p = kMinP[i / 48];
            p.row = rng.below(R);
            for (int repeat = 0; repeat < 3; ++repeat) {  // consecutive draws of one distribution
                p.uniform = repeat == 0 ? 0.0 : repeat == 1 ? 1.0 - 0x1.0p-53 : rng.uniform();
                p.adjust_begin = p.adjust_end = static_cast<int64_t>(adjust.size());
                if (i % 5 == 0) {
                    for (int64_t id = rng.below(V); id < V; id += 1 + rng.below(V)) {
                        const float bias = V > 2 && rng.below(3) == 0 ? -kInf : 0.25f;
                        adjust.push_back({static_cast<int32_t>(id), 1.5f, 0.5f, bias});
                    }
                    p.adjust_end = static_cast<int64_t>(adjust.size());
                }
                params.push_back(p);
            }
        }
    }
    int64_t draws() const { return static_cast<int64_t>(params.size()); }
};

struct Outputs {
    Memory tokens, status, top_ids;
    Matrix logprobs, sampling, kept, entropy, top_logprobs;

    Outputs(const Batch& b, int64_t B)
        : tokens(8 * B),
          status(4 * B),
          top_ids(8 * B * b.k),
          logprobs(DType::kF32, B, b.M, 2),
          sampling(floats(B)),
          kept(floats(B)),
          entropy(floats(B)),
          top_logprobs(DType::kF32, B, b.k) {}
    int64_t token(int64_t i) const { return static_cast<const int64_t*>(tokens.data())[i]; }
    int32_t fine(int64_t i) const { return static_cast<const int32_t*>(status.data())[i] == 0; }
    int64_t top(int64_t i) const { return static_cast<const int64_t*>(top_ids.data())[i]; }
    bool same_bits(const Outputs& o) const {
        const auto same = [](const Memory& x, const Memory& y) {
            return same_bytes(x.data(), y.data(), x.bytes());
        };
        return same(tokens, o.tokens) && same(status, o.status) && same(top_ids, o.top_ids) &&
               logprobs.same_bits(o.logprobs) && sampling.same_bits(o.sampling) &&
               kept.same_bits(o.kept) && entropy.same_bits(o.entropy) &&
               top_logprobs.same_bits(o.top_logprobs);
    }
};

pe::SampleArgs arguments(const Batch& b, const Outputs& out, int64_t begin, int64_t draws,
                         const Memory& workspace, int threads) {
    pe::SampleArgs a;
    a.logits = b.views.data();
    a.coefficients = b.coefficients.data();
    a.models = b.M;
    a.params = b.params.data() + begin;
    a.draws = draws;
    a.adjust = b.adjust.data();
    a.token_ids = {out.tokens.data(), DType::kI64, draws};
    a.logprobs = out.logprobs.view();
    a.sampling_logprobs = out.sampling.vector();
    a.kept_mass = out.kept.vector();
    a.entropy = out.entropy.vector();
    a.top_ids = {out.top_ids.data(), DType::kI64, draws, b.k, b.k};
    a.top_logprobs = out.top_logprobs.view();
    a.status = {out.status.data(), DType::kI32, draws};
    a.workspace = workspace.data();
    a.threads = threads;
    return a;
}

Outputs run(const Batch& b, int threads) {
    Outputs out(b, b.draws());
    const Memory workspace(pe::cpu::sample_workspace_bytes(b.V, threads));
    pe::cpu::sample(arguments(b, out, 0, b.draws(), workspace, threads));
    CHECK(out.logprobs.padding_is_intact(), "sample wrote between the rows of logprobs");
    return out;
}

// The total order of a row.
std::vector<int64_t> ordered(const std::vector<float>& z) {
    std::vector<int64_t> ids(z.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int64_t i, int64_t j) {
        return z[static_cast<size_t>(i)] > z[static_cast<size_t>(j)];
    });
    return ids;
}

double log_sum_exp(const std::vector<float>& z) {
    double largest = -kInf, total = 0;
    for (const float x : z) largest = std::max(largest, static_cast<double>(x));
    for (const float x : z) total += std::exp(x - largest);
    return largest + std::log(total);
}

std::vector<float> changed_row(const Batch& b, const pe::SampleParams& p) {
    std::vector<float> z(static_cast<size_t>(b.V));
    for (int64_t j = 0; j < b.V; ++j) {
        float& x = z[static_cast<size_t>(j)];
        x = b.coefficients[0] * b.logits[0].get(p.row, j);
        for (size_t m = 1; m < b.logits.size(); ++m)
            x = x + b.coefficients[m] * b.logits[m].get(p.row, j);
    }
    for (int64_t i = p.adjust_begin; i < p.adjust_end; ++i) {
        const pe::LogitAdjust& a = b.adjust[static_cast<size_t>(i)];
        float& x = z[static_cast<size_t>(a.id)];
        x = x > 0 ? x / a.repetition : x * a.repetition;
        x = x - a.subtract;
        x = x + a.bias;
    }
    if (p.temperature == 0 || p.temperature == 1) return z;
    const float largest = *std::max_element(z.begin(), z.end());
    for (float& x : z) x = (x - largest) / static_cast<float>(p.temperature);
    return z;
}

// -inf for every word that is not kept, by the definitions.
std::vector<float> kept_row(const std::vector<float>& z, const pe::SampleParams& p) {
    const std::vector<int64_t> ids = ordered(z);
    const float largest = z[static_cast<size_t>(ids[0])];
    size_t n = ids.size();
    if (p.temperature == 0) n = 1;
    if (p.temperature != 0 && p.top_k > 0) n = std::min(n, static_cast<size_t>(p.top_k));
    const auto weight = [&](size_t i) {
        return std::exp(static_cast<double>(z[static_cast<size_t>(ids[i])]) - largest);
    };
    if (p.temperature != 0 && p.top_p < 1) {
        double total = 0, before = 0;
        for (size_t i = 0; i < n; ++i) total += weight(i);
        size_t kept = 0;
        for (; kept < n && before < p.top_p * total; ++kept) before += weight(kept);
        n = kept;
    }
    std::vector<float> kept(z.size(), -kInf);
    for (size_t i = 0; i < n; ++i) {
        const auto id = static_cast<size_t>(ids[i]);
        if (p.temperature == 0 || p.min_p == 0 ||
            z[id] >= largest + static_cast<float>(std::log(p.min_p)))
            kept[id] = z[id];
    }
    return kept;
}

void check_draw(const Batch& b, const Outputs& out, int64_t i, const std::string& what) {
    const pe::SampleParams& p = b.params[static_cast<size_t>(i)];
    const std::vector<float> z = changed_row(b, p), kept = kept_row(z, p);
    const double lse = log_sum_exp(kept), all = log_sum_exp(z);
    if (!std::isfinite(all)) {
        CHECK(!out.fine(i) && out.token(i) == -1, what + " of nothing but -inf");
        return;
    }
    const int64_t token = out.token(i);
    CHECK(out.fine(i) && token >= 0 && token < b.V, what);
    CHECK(kept[static_cast<size_t>(token)] > -kInf, what + ": a token outside the kept set");
    // The first whose cumulative probability exceeds the uniform, within what f32 exponentials miss by.
    double before = 0;
    for (int64_t j = 0; j < token; ++j) before += std::exp(kept[static_cast<size_t>(j)] - lse);
    const double after = before + std::exp(kept[static_cast<size_t>(token)] - lse);
    CHECK(before <= p.uniform + 2e-6 && after > p.uniform - 2e-6, what + ": another token");
    const bool greedy = p.temperature == 0;
    SHARE(out.sampling.get(i), greedy ? 0 : kept[static_cast<size_t>(token)] - lse, 4e-6,
          what + ": sampling_logprobs");
    SHARE(out.kept.get(i), greedy ? 1 : std::exp(lse - all), 4e-6, what + ": kept_mass");
    for (int64_t m = 0; m < b.M; ++m) {
        std::vector<float> raw;
        for (int64_t j = 0; j < b.V; ++j)
            raw.push_back(b.logits[static_cast<size_t>(m)].get(p.row, j));
        const double raw_lse = log_sum_exp(raw);
        SHARE(out.logprobs.get(i, m), raw[static_cast<size_t>(token)] - raw_lse, 6e-6,
              what + ": logprobs");
        if (m > 0) continue;
        double entropy = 0;
        for (const float x : raw) {
            if (x > -kInf) entropy -= std::exp(x - raw_lse) * (x - raw_lse);
        }
        SHARE(out.entropy.get(i), entropy, 1e-5, what + ": entropy");
        const std::vector<int64_t> ids = ordered(raw);
        for (int64_t t = 0; t < b.k; ++t) {
            CHECK(out.top(i * b.k + t) == ids[static_cast<size_t>(t)], what + ": top_ids");
            SHARE(out.top_logprobs.get(i, t),
                  raw[static_cast<size_t>(ids[static_cast<size_t>(t)])] - raw_lse, 6e-6,
                  what + ": top_logprobs");
        }
    }
}

// Draw i alone has the bits that it has in the batch.
void check_alone(const Batch& b, const Outputs& out, int64_t i, const std::string& what) {
    const Outputs one(b, 1);
    const Memory workspace(pe::cpu::sample_workspace_bytes(b.V, 1));
    pe::cpu::sample(arguments(b, one, i, 1, workspace, 1));
    CHECK(one.token(0) == out.token(i) && one.fine(0) == out.fine(i), what);
    const auto same = [](float x, float y) { return memcmp(&x, &y, sizeof x) == 0; };
    CHECK(same(one.sampling.get(0), out.sampling.get(i)), what + ": sampling_logprobs");
    CHECK(same(one.kept.get(0), out.kept.get(i)), what + ": kept_mass");
    CHECK(same(one.logprobs.get(0, 0), out.logprobs.get(i, 0)), what + ": logprobs");
}

void check_batch(const Options& options, int64_t V, int64_t M, float grid) {
    const Batch b(V, M, grid, static_cast<uint64_t>(V * 10 + M));
    std::string text = "sample V " + std::to_string(V) + " M " + std::to_string(M);
    const Outputs* with_fma = nullptr;
    std::vector<Outputs> runs;
    runs.reserve(pe::cpu::kNumIsas);
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        const std::string what = text + " " + pe::cpu::isa_name(isa);
        runs.push_back(run(b, 1));
        const Outputs& out = runs.back();
        for (int64_t i = 0; i < b.draws(); i += V < 1000 ? 1 : V < 10000 ? 7 : 23)
            check_draw(b, out, i, what + " draw " + std::to_string(i));
        for (int64_t i = 0; i < b.draws(); i += 7)
            check_alone(b, out, i, what + " alone " + std::to_string(i));
        CHECK(out.same_bits(run(b, 2)), what + ": 2 threads");
        CHECK(out.same_bits(run(b, 3)), what + ": 3 threads");
        if (has_fma(isa)) {
            CHECK(with_fma == nullptr || out.same_bits(*with_fma), what + ": another set's bits");
            with_fma = &out;
        }
    }
}

// Called inside a task, where it runs on one thread, with a workspace of its own.
void check_nested() {
    const Batch b(700, 1, 0.0f, 1);
    const Outputs plain = run(b, 1);
    std::vector<Outputs> outs;
    std::vector<Memory> workspaces;
    for (int i = 0; i < 4; ++i) {
        outs.emplace_back(b, b.draws());
        workspaces.emplace_back(pe::cpu::sample_workspace_bytes(b.V, 1));
    }
    pe::parallel_tasks(4, 2, [&](int64_t i) {
        const auto at = static_cast<size_t>(i);
        pe::cpu::sample(arguments(b, outs[at], 0, b.draws(), workspaces[at], 1));
    });
    for (const Outputs& out : outs) CHECK(out.same_bits(plain), "sample in a task");
}

}  // namespace

void test_sample(const Options& options) {
    const auto before = pe::cpu::active_isa();
    for (const int64_t V : {1, 2, 31, 255, 256, 257, 513, 4099}) {
        check_batch(options, V, 1, 0.0f);
        check_batch(options, V, 1, 0.5f);
    }
    for (const int64_t M : {2, 3}) check_batch(options, 600, M, 0.0f);
    check_batch(options, 80000, 1, 0.0f);
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        check_nested();
    }
    pe::cpu::set_active_isa(before);
}

}  // namespace native
