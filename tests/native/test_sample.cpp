// sample on every instruction set and on CUDA's twin against float64: kept sets, tokens, log-probs, ties; memory of exactly
// the stated size, draws alone and together, 1 to 3 threads, calls inside a task.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "cuda_runtime.h"
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
    void keep_every(int64_t n) {
        std::vector<pe::SampleParams> kept;
        for (int64_t i = 0; i < draws(); i += n) kept.push_back(params[static_cast<size_t>(i)]);
        params = kept;
    }
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

template <typename T>
T* from(const Memory& memory, int64_t i) {
    return static_cast<T*>(memory.data()) + i;
}

// Draws from `begin` on; their outputs from place `at` on.
pe::SampleArgs arguments(const Batch& b, const Outputs& out, int64_t begin, int64_t draws,
                         const Memory& workspace, int threads, int64_t at = 0) {
    const auto part = [&](const Matrix& m) {
        return pe::VectorView{static_cast<float*>(m.view().data) + at, DType::kF32, draws};
    };
    pe::SampleArgs a;
    a.logits = b.views.data();
    a.coefficients = b.coefficients.data();
    a.models = b.M;
    a.params = b.params.data() + begin;
    a.draws = draws;
    a.adjust = b.adjust.data();
    a.token_ids = {from<int64_t>(out.tokens, at), DType::kI64, draws};
    a.logprobs = out.logprobs.rows(at, draws);
    a.sampling_logprobs = part(out.sampling);
    a.kept_mass = part(out.kept);
    a.entropy = part(out.entropy);
    a.top_ids = {from<int64_t>(out.top_ids, at * b.k), DType::kI64, draws, b.k, b.k};
    a.top_logprobs = out.top_logprobs.rows(at, draws);
    a.status = {from<int32_t>(out.status, at), DType::kI32, draws};
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

// Draws [begin, end) on CUDA's twin.
void run_cuda(const Batch& b, const Outputs& out, int64_t begin, int64_t end) {
    const Memory workspace(pe::cuda::sample_workspace_bytes(b.V, end - begin));
    const pe::SampleArgs a = arguments(b, out, begin, end - begin, workspace, 1, begin);
    CHECK(pe::cuda::sample(a, nullptr) == cudaSuccess, "launch");
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

// CUDA's twin makes the CPU's bits: at once, and again in parts, with threads and blocks in another order.
void check_cuda(const Options& options, const Batch& b, const std::string& text) {
    const std::string what = "sample V " + std::to_string(b.V) + " M " + std::to_string(b.M) + text;
    const auto cuda = [&](const std::vector<int64_t>& cuts) {
        Outputs out(b, b.draws());
        for (size_t i = 0; i + 1 < cuts.size(); ++i) run_cuda(b, out, cuts[i], cuts[i + 1]);
        CHECK(out.logprobs.padding_is_intact(), what + " wrote between the rows of logprobs");
        return out;
    };
    const Outputs whole = cuda({0, b.draws()});
    for (int64_t i = 0; i < b.draws(); ++i) {
        if (b.params[static_cast<size_t>(i)].forced < 0)
            check_draw(b, whole, i, what + " draw " + std::to_string(i));
    }
    pe::cpu::set_active_isa(pe::cpu::best_isa());
    if (has_fma(pe::cpu::active_isa()))
        CHECK(whole.same_bits(run(b, 1)), what + ": the CPU's bits");
    if (options.small || b.V > 10000) return;
    cuda_on_host::set_reversed(true);
    const bool same = whole.same_bits(cuda({0, 1, b.draws() / 3 + 1, b.draws()}));
    cuda_on_host::set_reversed(false);
    CHECK(same, what + " in parts, threads in another order");
}

void check_cuda(const Options& options, int64_t V, int64_t M, float grid, int64_t every) {
    Batch b(V, M, grid, static_cast<uint64_t>(V * 10 + M));
    b.keep_every(options.small ? 3 * every : every);
    check_cuda(options, b, " cuda, every " + std::to_string(every));
}

// Of equal logits top_k k and top_p k / V keep the first k, exactly.
void check_cuda_ties(const Options& options) {
    Batch b(1024, 1, 0.0f, 1);
    b.logits[0].fill(-1.25f);
    b.params.clear();
    for (const int64_t k : {1, 255, 256, 257, 1000, 1024}) {
        const double share = static_cast<double>(k) / 1024;
        for (const int64_t top_k : {k, int64_t{0}, int64_t{1023}}) {
            pe::SampleParams p;
            p.top_k = top_k;
            p.top_p = top_k == k ? 1.0 : top_k == 0 ? share : share * 1024 / 1023;
            p.uniform = 1.0 - 0x1.0p-53;
            if (p.top_p <= 1.0) b.params.push_back(p);
        }
    }
    check_cuda(options, b, " cuda, equal logits");
}

// top_p a little above and below what the likeliest words hold: closer than f32's exponentials can tell.
void check_cuda_boundaries(const Options& options) {
    Batch b(60, 1, 0.0f, 2);
    b.params.clear();
    std::vector<float> z;
    for (int64_t j = 0; j < b.V; ++j) z.push_back(b.logits[0].get(0, j));
    const double all = log_sum_exp(z);
    double before = 0;
    for (const int64_t id : ordered(z)) {
        for (const double sign : {-1.0, 1.0}) {
            pe::SampleParams p;
            p.top_p = before * (1 + sign * 1e-10);
            p.uniform = 1.0 - 0x1.0p-53;
            if (before > 0 && before < 0.99) b.params.push_back(p);
        }
        before += std::exp(static_cast<double>(z[static_cast<size_t>(id)]) - all);
    }
    CHECK(b.draws() >= 20, "boundaries");
    check_cuda(options, b, " cuda, boundaries of top_p");
}

// Given tokens, kept and not; every word in order; rows that are not finite.
void check_cuda_special(const Options& options) {
    Batch b(700, 2, 0.5f, 3);
    b.k = 700;
    b.keep_every(9);
    for (size_t i = 0; i < b.params.size(); i += 2) b.params[i].forced = static_cast<int64_t>(i);
    check_cuda(options, b, " cuda, given tokens");
    for (const float bad : {NAN, kInf}) {
        b.logits[1].set(1, 650, bad);
        b.logits[0].set(2, 0, bad);
        const Outputs cuda(b, b.draws()), cpu = run(b, 1);
        run_cuda(b, cuda, 0, b.draws());
        CHECK(cuda.same_bits(cpu), "sample cuda, a row with " + std::to_string(bad));
    }
    b.keep_every(b.draws());
    for (const int64_t row : {int64_t{-1}, b.R, INT64_MAX}) {
        b.params[0].row = row;
        const Outputs cuda(b, 1);
        run_cuda(b, cuda, 0, 1);
        CHECK(!cuda.fine(0) && cuda.token(0) == -1, "sample cuda, row " + std::to_string(row));
    }
}

// Parameters that lie on the device as columns.
void check_cuda_columns() {
    const Batch b(300, 1, 0.0f, 5);
    const int64_t B = b.draws(), N = static_cast<int64_t>(b.adjust.size());
    std::vector<double> uniform, temperature, top_p, min_p;
    std::vector<int64_t> rows, top_k, offsets{0}, ids;
    std::vector<float> repetition, subtract, bias;
    for (const pe::SampleParams& p : b.params) {
        uniform.push_back(p.uniform), temperature.push_back(p.temperature);
        top_p.push_back(p.top_p), min_p.push_back(p.min_p);
        rows.push_back(p.row), top_k.push_back(p.top_k), offsets.push_back(p.adjust_end);
    }
    for (const pe::LogitAdjust& a : b.adjust) {
        ids.push_back(a.id), repetition.push_back(a.repetition);
        subtract.push_back(a.subtract), bias.push_back(a.bias);
    }
    const auto column = [](auto& values, DType dtype) {
        return pe::VectorView{values.data(), dtype, static_cast<int64_t>(values.size())};
    };
    const Memory params(B * static_cast<int64_t>(sizeof(pe::SampleParams)));
    const Memory adjust(N * static_cast<int64_t>(sizeof(pe::LogitAdjust)));
    pe::cuda::SampleColumns c{
        .rows = column(rows, DType::kI64),
        .uniform = column(uniform, DType::kF64),
        .temperature = column(temperature, DType::kF64),
        .top_k = column(top_k, DType::kI64),
        .top_p = column(top_p, DType::kF64),
        .min_p = column(min_p, DType::kF64),
        .adjust_offsets = column(offsets, DType::kI64),
        .adjust_ids = column(ids, DType::kI64),
        .adjust_repetition = column(repetition, DType::kF32),
        .adjust_subtract = column(subtract, DType::kF32),
        .adjust_bias = column(bias, DType::kF32),
        .params = from<pe::SampleParams>(params, 0),
        .adjust = from<pe::LogitAdjust>(adjust, 0),
    };
    CHECK(pe::cuda::sample_params(c, nullptr) == cudaSuccess, "launch");
    CHECK(same_bytes(params.data(), b.params.data(), params.bytes()), "sample_params: params");
    CHECK(same_bytes(adjust.data(), b.adjust.data(), adjust.bytes()), "sample_params: adjust");
    ids[0] = int64_t{1} << 32, offsets.back() = N + 1;
    CHECK(pe::cuda::sample_params(c, nullptr) == cudaSuccess, "launch");
    CHECK(c.adjust[0].id == -1, "sample_params: an id of more than 32 bits");
    CHECK(c.params[B - 1].adjust_end == 0, "sample_params: an offset past the end");
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
    if (options.cuda) {
        for (const int64_t V : {1, 2, 257, 700, 4099}) {
            check_cuda(options, V, 1, 0.0f, V < 1000 ? 11 : 23);
            check_cuda(options, V, 1, 0.5f, V < 1000 ? 13 : 29);
        }
        check_cuda(options, 600, 3, 0.0f, 13);
        check_cuda(options, 49152, 1, 0.0f, 101);
        if (!options.small) check_cuda(options, 128256, 1, 0.0f, 149);
        check_cuda_ties(options);
        check_cuda_boundaries(options);
        check_cuda_special(options);
        check_cuda_columns();
    }
    pe::cpu::set_active_isa(before);
}

}  // namespace native
