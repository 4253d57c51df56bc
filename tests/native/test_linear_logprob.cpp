// linear_logprob on every instruction set and on CUDA's twin: float64 values, bits, exact
// workspace, special values.
#include <algorithm>
#include <memory>

#include "check.h"
#include "cuda_runtime.h"
#include "linear_logprob_reference.h"
#include "pyengine/ops/linear.h"
#include "pyengine/ops/linear_logprob.h"
#include "pyengine/ops/linear_logprob_workspace.h"

namespace native {
namespace {

using pe::DType;
using pe::PackedKind;
using pe::PackedMatrix;

struct Case {
    int64_t T = 33, D = 48, V = 300, pad = 0;
    DType hidden = DType::kF32, weight = DType::kF32;
    float scale = 1.0f;

    std::string text() const {
        return "linear_logprob T " + std::to_string(T) + " D " + std::to_string(D) + " V " +
               std::to_string(V) + " pad " + std::to_string(pad) + " dtypes " +
               std::to_string(static_cast<int>(hidden)) + std::to_string(static_cast<int>(weight)) +
               " scale " + std::to_string(scale);
    }
};

struct Inputs {
    Matrix hidden, weight, dlogprob, dweight;
    std::vector<int64_t> targets;

    explicit Inputs(const Case& c)
        : hidden(c.hidden, c.T, c.D, c.pad),
          weight(c.weight, c.V, c.D, c.pad),
          dlogprob(floats(c.T)),
          dweight(DType::kF32, c.V, c.D, c.pad) {
        Rng rng(static_cast<uint64_t>(c.T * 1000003 + c.D * 1009 + c.V));
        hidden.fill_normal(rng, c.scale);
        weight.fill_normal(rng, 0.3f);
        dlogprob.fill_normal(rng);
        dweight.fill_normal(rng);
        for (int64_t t = 0; t < c.T; ++t) targets.push_back(t == 0 ? c.V - 1 : rng.below(c.V));
    }
    pe::VectorView ids(int64_t begin, int64_t n) const {
        return {const_cast<int64_t*>(targets.data()) + begin, DType::kI64, n};
    }
};

struct Results {
    Matrix logprob, lse, direction, dhidden, dweight;

    Results(const Case& c, const Inputs& in)
        : logprob(floats(c.T)),
          lse(floats(c.T)),
          direction(DType::kF32, c.T, c.D, c.pad),
          dhidden(DType::kF32, c.T, c.D, c.pad),
          dweight(in.dweight.copy()) {}
    bool same_bits(const Results& other) const {
        return logprob.same_bits(other.logprob) && lse.same_bits(other.lse) &&
               direction.same_bits(other.direction) && dhidden.same_bits(other.dhidden) &&
               dweight.same_bits(other.dweight);
    }
};

struct Device {
    std::string name;
    bool is_cuda = false;
};

const Device kCpu{"cpu"};
const Device kCuda{"cuda", true};

pe::VectorView part(const Matrix& m, int64_t begin, int64_t n) {
    return {static_cast<float*>(m.view().data) + begin, DType::kF32, n};
}

// A head packed both ways, as `linear` packs it.
struct PackedHead {
    PackedMatrix rows, columns;
    std::unique_ptr<Memory> rows_memory, columns_memory;

    explicit PackedHead(const Matrix& weight, PackedKind kind) {
        rows = {nullptr, kind, weight.rows(), weight.cols(), nullptr};
        columns = {nullptr, kind, weight.cols(), weight.rows(), nullptr};
        rows_memory = zeros(&rows);
        columns_memory = zeros(&columns);
        pe::cpu::linear_pack({.weight = weight.view(), .packed = rows});
        pe::cpu::linear_pack_columns({.weight = weight.view(), .packed = columns});
    }

  private:
    static std::unique_ptr<Memory> zeros(PackedMatrix* p) {
        auto memory = std::make_unique<Memory>(p->panels() * p->panel_bytes());
        memset(memory->data(), 0, memory->bytes());
        p->data = memory->data();
        return memory;
    }
};

// Workspaces of exactly the stated size, freshly filled with NaN, so that a read of what was never
// written shows.
void run_forward(const Device& device, const Inputs& in, const Results& out, int64_t begin,
                 int64_t n, int threads, bool directed = false, const PackedHead* head = nullptr,
                 const pe::LinearLogprobExtra& extra = {}) {
    pe::LinearLogprobForwardArgs a{.hidden = in.hidden.rows(begin, n),
                                   .weight = in.weight.view(),
                                   .targets = in.ids(begin, n),
                                   .logprob = part(out.logprob, begin, n),
                                   .lse = part(out.lse, begin, n),
                                   .threads = threads};
    if (head != nullptr) {
        a.weight = {};
        a.packed = head->rows;
        a.packed_columns = head->columns;
    }
    if (device.is_cuda) {
        const Memory workspace(pe::cuda::linear_logprob_forward_bytes(a));
        a.workspace = workspace.data();
        CHECK(pe::cuda::linear_logprob_forward(a, nullptr) == cudaSuccess, "launch");
        return;
    }
    if (directed) a.direction = out.direction.rows(begin, n);
    a.extra = extra;
    const Memory workspace(pe::cpu::linear_logprob_forward_bytes(a));
    a.workspace = workspace.data();
    pe::cpu::linear_logprob_forward(a);
}

// One group of rows, as every batch of a run on the CPU is.
void run_backward(const Device& device, const Inputs& in, const Results& of_forward,
                  const pe::MatrixView& dhidden, const pe::MatrixView& dweight, int64_t begin,
                  int64_t n, int threads, const std::vector<int64_t>& groups = {},
                  const PackedHead* head = nullptr) {
    pe::LinearLogprobBackwardArgs a{.dlogprob = part(in.dlogprob, begin, n),
                                    .hidden = in.hidden.rows(begin, n),
                                    .weight = in.weight.view(),
                                    .targets = in.ids(begin, n),
                                    .lse = part(of_forward.lse, begin, n),
                                    .dhidden = dhidden,
                                    .dweight = dweight,
                                    .threads = threads};
    if (!groups.empty()) {
        a.groups = {const_cast<int64_t*>(groups.data()), DType::kI64,
                    static_cast<int64_t>(groups.size())};
    }
    if (head != nullptr) {
        a.weight = {};
        a.packed = head->rows;
    }
    if (device.is_cuda) {
        const Memory workspace(pe::cuda::linear_logprob_backward_bytes(a));
        a.workspace = workspace.data();
        CHECK(pe::cuda::linear_logprob_backward(a, nullptr) == cudaSuccess, "launch");
        return;
    }
    a.direction = of_forward.direction.rows(begin, n);
    const Memory workspace(pe::cpu::linear_logprob_backward_bytes(a));
    a.workspace = workspace.data();
    pe::cpu::linear_logprob_backward(a);
}

void run(const Device& device, const Inputs& in, const Results& out, int64_t begin, int64_t n,
         int threads, const std::vector<int64_t>& groups = {}, const PackedHead* head = nullptr) {
    run_forward(device, in, out, begin, n, threads, true, head);
    run_backward(device, in, out, out.dhidden.rows(begin, n), out.dweight.view(), begin, n, threads,
                 groups, head);
}

// What a run in three batches is cut at, and the groups of a run in one.
std::vector<int64_t> cuts_of(int64_t T) { return {0, T / 3, T / 3 + T / 2, T}; }

bool in_pairs(const Case& c) { return c.hidden == DType::kBF16 && c.weight == DType::kBF16; }

double check_values(const Case& c, const Inputs& in, const LogprobReference& reference,
                    const Results& out) {
    const double chain = (8 + 4 * std::sqrt(static_cast<double>(c.T))) * kUnit;
    const std::string dhidden_text = c.text() + " dhidden", dweight_text = c.text() + " dweight";
    double worst = 0;
    for (int64_t t = 0; t < c.T; ++t) {
        const auto i = static_cast<size_t>(t);
        const std::string what = c.text() + " row " + std::to_string(t);
        worst = std::max(
            worst, SHARE(out.lse.get(t), reference.lse[i], reference.lse_bound[i], what + " lse"));
        worst = std::max(worst, SHARE(out.logprob.get(t), reference.logprob[i],
                                      reference.logprob_bound[i], what + " logprob"));
        CHECK(out.logprob.get(t) <= 0.0f, what + ": logprob <= 0");
    }
    for (int64_t i = 0; i < c.T * c.D; ++i) {
        const auto n = static_cast<size_t>(i);
        worst = std::max(worst, SHARE(out.dhidden.get(i), reference.dhidden[n],
                                      reference.dhidden_bound[n], dhidden_text));
    }
    for (int64_t i = 0; i < c.V * c.D; ++i) {
        const auto n = static_cast<size_t>(i);
        const double bound = reference.dweight_bound[n] + chain * std::fabs(in.dweight.get(i));
        worst = std::max(worst, SHARE(out.dweight.get(i), in.dweight.get(i) + reference.dweight[n],
                                      bound, dweight_text));
    }
    return worst;
}

void check_optional(const Device& device, const Case& c, const Inputs& in, const Results& whole) {
    const Results out(c, in);
    run_backward(device, in, whole, {}, {}, 0, c.T, 1);
    run_backward(device, in, whole, out.dhidden.view(), {}, 0, c.T, 1);
    CHECK(out.dhidden.same_bits(whole.dhidden), c.text() + " without dweight");
    run_backward(device, in, whole, {}, out.dweight.view(), 0, c.T, 1, cuts_of(c.T));
    CHECK(out.dweight.same_bits(whole.dweight), c.text() + " without dhidden");
}

// Bits: in other batches (dweight's chain goes on from call to call), with more threads, in another
// order, from a packed head.
void check_bits(const Device& device, const Case& c, const Inputs& in, const Results& whole) {
    const std::vector<int64_t> cuts = cuts_of(c.T);
    const auto same = [&](const Results& out, const char* what) {
        CHECK(out.same_bits(whole), c.text() + " on " + device.name + ": " + what);
    };
    const auto repeat = [&](int threads, const PackedHead* head, const char* what) {
        const Results out(c, in);
        run(device, in, out, 0, c.T, threads, cuts, head);
        same(out, what);
    };
    if (device.is_cuda) {
        cuda_on_host::set_reversed(true);
        repeat(1, nullptr, "threads in another order");
        cuda_on_host::set_reversed(false);
    } else {
        const PackedHead head(in.weight, in_pairs(c) ? PackedKind::kBF16 : PackedKind::kF32);
        for (const int threads : {2, 3}) {
            pe::set_num_threads(threads);
            repeat(threads, nullptr, "more threads");
            repeat(threads, &head, "more threads and a packed head");
        }
        pe::set_num_threads(1);
        repeat(1, &head, "a packed head");
        const Results plain(c, in);
        for (const PackedHead* packed : {static_cast<const PackedHead*>(nullptr), &head}) {
            run_forward(device, in, plain, 0, c.T, 1, false, packed);
            CHECK(plain.logprob.same_bits(whole.logprob) && plain.lse.same_bits(whole.lse),
                  c.text() + " without a direction");
        }
    }
    const Results parts(c, in);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        run(device, in, parts, cuts[i], cuts[i + 1] - cuts[i], 1);
    }
    same(parts, "a second run, in three batches");
}

// CUDA's twin makes the CPU's log-probs, and where tokens do not go in pairs its dweight; its
// dhidden is another sum.
void check_twins(const Case& c, const Inputs& in, const Results& cpu, const Results& cuda) {
    CHECK(cuda.logprob.same_bits(cpu.logprob) && cuda.lse.same_bits(cpu.lse),
          c.text() + " cuda forward");
    const Results again(c, in);  // from the CPU's lse
    run_backward(kCuda, in, cpu, again.dhidden.view(), again.dweight.view(), 0, c.T, 1);
    if (!in_pairs(c)) CHECK(again.dweight.same_bits(cpu.dweight), c.text() + " cuda dweight");
}

// A packed head on CUDA's twin: f32 the CPU's bits, bf16 values; the same bits for rows alone, and for any cut between groups.
double check_packed_on_cuda(const Case& c, const Inputs& in, const LogprobReference& reference,
                            const Results& cpu, bool once) {
    if (c.hidden != c.weight) return 0;
    const PackedHead head(in.weight, in_pairs(c) ? PackedKind::kBF16 : PackedKind::kF32);
    const std::string name = c.text() + " on cuda, packed";
    const std::vector<int64_t> cuts = cuts_of(c.T);
    const Results out(c, in), again(c, in), parts(c, in), alone(c, in);
    run(kCuda, in, out, 0, c.T, 1, cuts, &head);
    CHECK(out.dhidden.padding_is_intact() && out.dweight.padding_is_intact(),
          name + " writes between rows");
    if (!in_pairs(c)) {
        CHECK(out.logprob.same_bits(cpu.logprob) && out.lse.same_bits(cpu.lse), name + ": logprob");
        CHECK(out.dweight.same_bits(cpu.dweight), name + ": dweight");
    }
    if (once) return check_values(c, in, reference, out);
    cuda_on_host::set_reversed(true);
    run(kCuda, in, again, 0, c.T, 1, cuts, &head);
    cuda_on_host::set_reversed(false);
    CHECK(again.same_bits(out), name + ", threads in another order");
    for (size_t i = 0; i + 1 < cuts.size(); ++i)
        run(kCuda, in, parts, cuts[i], cuts[i + 1] - cuts[i], 1, {}, &head);
    CHECK(parts.same_bits(out), name + ", in three batches");
    for (int64_t t = 0; t < std::min<int64_t>(c.T, 3); ++t) {
        run(kCuda, in, alone, t, 1, 1, {}, &head);
        CHECK(alone.logprob.get(t) == out.logprob.get(t) && alone.lse.get(t) == out.lse.get(t),
              name + ", a row alone");
        for (int64_t d = 0; d < c.D; ++d)
            CHECK(alone.dhidden.get(t, d) == out.dhidden.get(t, d), name + ", its dhidden");
    }
    return check_values(c, in, reference, out);
}

// What else the pass tells, against float64; log-probs of ids and of the best are exact copies.
void check_extra(const Device& device, const Case& c, const Inputs& in, const Results& whole) {
    const int64_t K = std::min<int64_t>(c.V, 5);
    const Results out(c, in);
    const Matrix entropy = floats(c.T), squares = floats(c.T), best(DType::kF32, c.T, K, c.pad);
    const Matrix of_ids(DType::kF32, c.T, K, c.pad);
    std::vector<int64_t> ids(static_cast<size_t>(c.T * K));
    pe::LinearLogprobExtra extra{
        .entropy = entropy.vector(),
        .sum_squares = squares.vector(),
        .top_ids = {ids.data(), DType::kI64, c.T, K, K},
        .top_logprobs = best.view(),
    };
    if (c.T == 0) extra = {};
    run_forward(device, in, out, 0, c.T, 1, true, nullptr, extra);
    CHECK(out.direction.same_bits(whole.direction) && out.logprob.same_bits(whole.logprob),
          c.text() + " with extra outputs");
    pe::LinearLogprobExtra by_id{.ids = extra.top_ids, .id_logprobs = of_ids.view()};
    if (c.T == 0) by_id = {};
    run_forward(device, in, out, 0, c.T, 1, false, nullptr, by_id);
    CHECK(of_ids.same_bits(best), c.text() + " log-probs of the best words");
    for (int64_t t = 0; t < c.T; ++t) {
        const double H = entropy.get(t), log_V = std::log(static_cast<double>(c.V));
        CHECK(H >= 0.0 && H <= log_V * (1 + 1e-5) + 1e-6, c.text() + " entropy");
        const double q = squares.get(t);
        CHECK(q <= 1.0 + 1e-5 && q >= (1.0 - 1e-4) / static_cast<double>(c.V),
              c.text() + " sum of squares");
        CHECK(H >= -std::log(q) - 1e-4, c.text() + " entropy is at least Renyi's of order 2");
        for (int64_t k = 1; k < K; ++k) {
            CHECK(best.get(t, k) <= best.get(t, k - 1), c.text() + " the best words fall");
        }
        CHECK(best.get(t, 0) >= out.logprob.get(t), c.text() + " the best word");
    }
}

double check_case(const Case& c, const Options& options) {
    const Inputs in(c);
    const LogprobReference reference(in.hidden, in.weight, in.targets, in.dlogprob);
    const bool large = c.T * c.D * c.V > 1'000'000;  // once on CUDA's twin: fibers are slow
    double worst = 0;
    std::unique_ptr<Results> fma;
    const auto check = [&](const Device& device) {
        auto out = std::make_unique<Results>(c, in);
        run(device, in, *out, 0, c.T, 1, cuts_of(c.T));
        CHECK(out->dhidden.padding_is_intact() && out->dweight.padding_is_intact() &&
                  out->direction.padding_is_intact(),
              c.text() + " writes between rows");
        worst = std::max(worst, check_values(c, in, reference, *out));
        if (device.is_cuda && (large || options.small)) return out;
        check_bits(device, c, in, *out);
        check_optional(device, c, in, *out);
        if (!device.is_cuda) check_extra(device, c, in, *out);
        return out;
    };
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        Device device = kCpu;
        device.name = pe::cpu::isa_name(isa);
        auto out = check(device);
        if (!has_fma(isa)) continue;
        if (fma)
            CHECK(out->same_bits(*fma),
                  c.text() + ": " + device.name + " against the first with FMA");
        if (!fma) fma = std::move(out);
    }
    if (!options.cuda || (large && options.small)) return worst;
    const auto cuda = check(kCuda);
    if (!fma) return worst;
    check_twins(c, in, *fma, *cuda);
    if (large) return worst;
    return std::max(worst, check_packed_on_cuda(c, in, reference, *fma, options.small));
}

// One word towers over the rest, by up to 1e9: log-probs stay <= 0, and the tower's is exactly 0.
void check_towers(const Device& device) {
    const Case c{.T = 31, .D = 3, .V = 513};
    Inputs in(c);
    for (int64_t t = 0; t < c.T; ++t) {
        const int64_t tower = in.targets[static_cast<size_t>(t)];
        in.hidden.set(t, 0, std::ldexp(1.0f, static_cast<int>(t)));
        in.weight.set(tower, 0, 4.0f);
    }
    const Results out(c, in);
    run(device, in, out, 0, c.T, 1);
    for (int64_t t = 0; t < c.T; ++t) {
        CHECK(out.logprob.get(t) <= 0.0f && std::isfinite(out.logprob.get(t)),
              device.name + " logprob <= 0");
        for (int64_t d = 0; d < c.D; ++d)
            CHECK(std::isfinite(out.dhidden.get(t, d)), device.name + " dhidden");
    }
}

// Word 7 has logit -inf for every row: probability 0. Row 3 is NaN, row 4 inf: they spoil no other
// row.
void check_special(const Device& device) {
    const Case c{.T = 33, .D = 31, .V = 300};
    Inputs in(c);
    for (int64_t t = 0; t < c.T; ++t) in.hidden.set(t, 0, 1.0f);
    in.weight.set(7, 0, -INFINITY);
    in.targets[1] = 7;
    const Results clean(c, in);
    run_forward(device, in, clean, 0, c.T, 1);
    const LogprobReference reference(in.hidden, in.weight, in.targets, in.dlogprob);
    for (int64_t t = 0; t < c.T; ++t) {
        const auto i = static_cast<size_t>(t);
        SHARE(clean.logprob.get(t), reference.logprob[i], reference.logprob_bound[i],
              device.name + " with -inf");
    }
    CHECK(clean.logprob.get(1) == -INFINITY,
          device.name + ": the log-prob of a word with logit -inf");
    in.hidden.set(3, 5, NAN);
    in.hidden.set(4, 5, INFINITY);
    const Results spoiled(c, in);
    run_forward(device, in, spoiled, 0, c.T, 1);
    for (int64_t t = 0; t < c.T; ++t) {
        const bool bad = t == 3 || t == 4;
        CHECK(bad ? std::isnan(spoiled.logprob.get(t))
                  : spoiled.logprob.get(t) == clean.logprob.get(t),
              device.name + " row " + std::to_string(t));
    }
}

// The one thing the CPU's binding refuses and CUDA's cannot see: NaN, and no access outside the
// arrays.
void check_unknown_ids() {
    const Case c{.T = 5, .V = 33};
    Inputs in(c);
    in.targets = {-1, 0, 33, 32, int64_t{1} << 40};
    const Results out(c, in);
    run(kCuda, in, out, 0, c.T, 1);
    for (int64_t t = 0; t < c.T; ++t) {
        CHECK(std::isnan(out.logprob.get(t)) == (t != 1 && t != 3),
              "cuda id " + std::to_string(in.targets[static_cast<size_t>(t)]));
    }
}

std::vector<Case> make_cases() {
    std::vector<Case> cases;
    for (const int64_t n : kSizes) {
        cases.push_back({.T = n});
        if (n > 0) cases.push_back({.D = n});
        if (n > 0) cases.push_back({.V = n});
    }
    for (const int64_t v : {255, 256, 257, 512}) cases.push_back({.T = 13, .V = v});
    for (const int64_t pad : {1, 7, 64}) cases.push_back({.T = 65, .pad = pad});
    for (const float scale : {0.0f, 1e-4f, 30.0f, 1e4f}) cases.push_back({.scale = scale});
    for (int mask = 1; mask < 4; ++mask) {
        const auto dtype = [&](int bit) { return mask >> bit & 1 ? DType::kBF16 : DType::kF32; };
        cases.push_back({.T = 111, .pad = 3, .hidden = dtype(0), .weight = dtype(1)});
    }
    const DType b = DType::kBF16;
    cases.push_back({.T = 1, .D = 33, .V = 31, .hidden = b, .weight = b});
    cases.push_back({.T = 70, .D = 80, .V = 1, .pad = 8, .hidden = b, .weight = b});
    cases.push_back({.T = 13, .D = 130, .V = 521, .hidden = b, .weight = b});
    return cases;
}

}  // namespace

void test_linear_logprob(const Options& options) {
    pe::set_num_threads(1);
    const std::vector<Case> cases = make_cases();
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, check_case(c, options));
    const auto special = [](const Device& device) {
        check_towers(device);
        check_special(device);
    };
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        special(kCpu);
    }
    if (options.cuda) {
        special(kCuda);
        check_unknown_ids();
    }
    printf("  linear_logprob %zu cases, largest error / bound %.3f\n", cases.size(), worst);
}

}  // namespace native
