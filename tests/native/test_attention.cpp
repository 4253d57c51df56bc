// attention on every instruction set and on CUDA's host twin: float64 values, bits, and memory that it must not look at.
#include "cuda_runtime.h"
#include "paged_case.h"
#include "pyengine/ops/attention.h"
#include "pyengine/ops/kv_cache.h"

namespace native {
namespace {

using pe::DType;

struct Case {
    PageShape shape;
    DType q = DType::kF32, out = DType::kF32;
    int64_t G = 3, pad = 5;
    std::vector<int64_t> lengths = {1, 70, 63, 130, 2};
    float scale = 0.2f;
    int64_t window = 0;

    int64_t columns() const { return shape.heads * G * shape.head_dim; }
    int64_t page_pad() const { return pad * 8; }  // CUDA takes pages on 16 bytes
    std::string text() const {
        return "attention of " + std::to_string(lengths.size()) + " sequences G " +
               std::to_string(G) + shape.text() + " dtypes " + std::to_string(static_cast<int>(q)) +
               std::to_string(static_cast<int>(out)) + " scale " + std::to_string(scale) +
               " window " + std::to_string(window);
    }
};

// Rows [begin, end) of sequence s.
struct Part {
    int64_t s, begin, end;
};

struct Inputs {
    const Case& c;
    std::vector<int64_t> start;  // of each sequence's rows in q, k, v; then all
    int64_t width = 0;           // of block_tables
    std::vector<std::vector<int32_t>> tables;
    Matrix q, k, v;
    Pool keys, values;

    explicit Inputs(const Case& case_)
        : c(case_),
          start(starts(case_)),
          q(c.q, start.back(), c.columns()),
          k(DType::kF32, start.back(), c.shape.heads * c.shape.head_dim),
          v(DType::kF32, start.back(), c.shape.heads * c.shape.head_dim),
          keys(c.shape, pages(case_), c.page_pad()),
          values(c.shape, pages(case_), c.page_pad()) {
        Rng rng(static_cast<uint64_t>(start.back() * 1000 + c.shape.head_dim));
        for (Matrix* m : {&q, &k, &v}) m->fill_normal(rng);
        const std::vector<int32_t> order = shuffled_pages(rng, pages(c));
        size_t used = 0;
        for (size_t s = 0; s < c.lengths.size(); ++s) {
            const int64_t P = c.shape.page_tokens, n = (c.lengths[s] + P - 1) / P;
            tables.emplace_back(order.begin() + static_cast<int64_t>(used),
                                order.begin() + static_cast<int64_t>(used) + n);
            used += static_cast<size_t>(n);
            width = std::max(width, n);
            std::vector<int64_t> slots = slots_of(tables[s], 0, c.lengths[s], P);
            pe::cpu::kv_cache_write({.k = k.rows(start[s], c.lengths[s]),
                                     .v = v.rows(start[s], c.lengths[s]),
                                     .keys = keys.view(),
                                     .values = values.view(),
                                     .slots = view_of(slots, DType::kI64)});
        }
    }

    static std::vector<int64_t> starts(const Case& c) {
        std::vector<int64_t> list = {0};
        for (const int64_t n : c.lengths) list.push_back(list.back() + n);
        return list;
    }
    static int64_t pages(const Case& c) {
        int64_t n = 0;
        for (const int64_t length : c.lengths)
            n += (length + c.shape.page_tokens - 1) / c.shape.page_tokens;
        return n;
    }

    // Writes these rows of `out`, which has the layout of q; in the call they follow each other.
    void run(const std::vector<Part>& parts, const Matrix& out, const Matrix* lse = nullptr,
             bool on_cuda = false) const {
        std::vector<int32_t> cu = {0}, first;
        // Entries that must not be read are no pages.
        std::vector<int32_t> table(parts.size() * static_cast<size_t>(width), -1);
        for (size_t i = 0; i < parts.size(); ++i) {
            const Part& p = parts[i];
            cu.push_back(cu.back() + static_cast<int32_t>(p.end - p.begin));
            first.push_back(static_cast<int32_t>(p.begin));
            const auto& from = tables[static_cast<size_t>(p.s)];
            std::copy(from.begin(), from.end(), table.begin() + static_cast<int64_t>(i) * width);
        }
        const Matrix rows(c.q, cu.back(), c.columns(), c.pad);
        const Matrix got(c.out, cu.back(), c.columns(), c.pad);
        move(parts, cu, [&](int64_t whole, int64_t row) { copy_row(q, whole, rows, row); });
        const pe::AttentionForwardArgs args{
            .q = rows.view(),
            .keys = keys.view(),
            .values = values.view(),
            .cu_seqlens = view_of(cu, DType::kI32),
            .first_positions = view_of(first, DType::kI32),
            .block_tables = {table.data(), DType::kI32, static_cast<int64_t>(parts.size()), width,
                             width},
            .num_heads = c.shape.heads * c.G,
            .scale = c.scale,
            .window = c.window,
            .out = got.view(),
            .lse = lse != nullptr ? lse->view() : pe::MatrixView{}};
        if (on_cuda) {
            CHECK(pe::cuda::attention_forward(args, nullptr) == cudaSuccess, c.text());
        } else {
            pe::cpu::attention_forward(args);
        }
        CHECK(got.padding_is_intact(), c.text() + " writes between rows");
        move(parts, cu, [&](int64_t whole, int64_t row) { copy_row(got, row, out, whole); });
    }

    // f(row of the whole, row of the call)
    template <typename F>
    void move(const std::vector<Part>& parts, const std::vector<int32_t>& cu, const F& f) const {
        for (size_t i = 0; i < parts.size(); ++i) {
            const int64_t base = start[static_cast<size_t>(parts[i].s)];
            for (int64_t t = parts[i].begin; t < parts[i].end; ++t)
                f(base + t, cu[i] + t - parts[i].begin);
        }
    }
    static void copy_row(const Matrix& from, int64_t i, const Matrix& to, int64_t j) {
        memcpy(to.rows(j, 1).data, from.rows(i, 1).data,
               static_cast<size_t>(from.cols() * pe::dtype_bytes(from.dtype())));
    }

    std::vector<Part> whole() const {
        std::vector<Part> parts;
        for (size_t s = 0; s < c.lengths.size(); ++s)
            parts.push_back({static_cast<int64_t>(s), 0, c.lengths[s]});
        return parts;
    }
};

double rounded(double x, DType dtype) {
    return dtype == DType::kF32 ? x : pe::to_float(pe::to_bf16(static_cast<float>(x)));
}

// Largest error as a share of its bound, over the rows of sequence s.
double check_values(const Inputs& in, const Matrix& out, const Matrix& lse, size_t s) {
    const Case& c = in.c;
    const int64_t hd = c.shape.head_dim, base = in.start[s];
    const bool bf16 = c.shape.dtype == DType::kBF16;
    double worst = 0;
    std::vector<double> weight;
    for (int64_t t = 0; t < c.lengths[s]; t += 1 + c.lengths[s] / 7) {
        for (int64_t head = 0; head < c.shape.heads * c.G; ++head) {
            const int64_t kv = head / c.G * hd;
            double largest = -INFINITY, score_error = 0, total = 0;
            weight.assign(static_cast<size_t>(t + 1), 0.0);
            const int64_t oldest = c.window > 0 ? std::max<int64_t>(0, t + 1 - c.window) : 0;
            for (int64_t j = oldest; j <= t; ++j) {
                double score = 0, size = 0;
                for (int64_t d = 0; d < hd; ++d) {
                    const double product =
                        rounded(in.q.get(base + t, head * hd + d), c.shape.dtype) *
                        rounded(in.k.get(base + j, kv + d), c.shape.dtype);
                    score += product;
                    size += std::fabs(product);
                }
                weight[static_cast<size_t>(j)] = score * c.scale;
                largest = std::max(largest, score * c.scale);
                score_error = std::max(
                    score_error, static_cast<double>(hd + 4) * kUnit * std::fabs(size * c.scale));
            }
            for (int64_t j = oldest; j <= t; ++j) {
                double& w = weight[static_cast<size_t>(j)];
                total += w = std::exp(w - largest);
            }
            const double exact_lse = largest + std::log(total);
            worst =
                std::max(worst, SHARE(lse.get(base + t, head), exact_lse,
                                      2 * score_error + static_cast<double>(t + 40) * 2 * kUnit +
                                          4 * kUnit * std::fabs(exact_lse),
                                      c.text() + " lse of row " + std::to_string(t)));
            const double relative =
                4 * score_error + (bf16 ? 0x1.0p-8 : 0.0) + static_cast<double>(t + 40) * 2 * kUnit;
            for (int64_t d = 0; d < hd; ++d) {
                double value = 0, size = 0;
                for (int64_t j = oldest; j <= t; ++j) {
                    const double term = weight[static_cast<size_t>(j)] / total *
                                        rounded(in.v.get(base + j, kv + d), c.shape.dtype);
                    value += term;
                    size += std::fabs(term);
                }
                const double rounding = c.out == DType::kBF16 ? 0x1.0p-8 : 0x1.0p-23;
                worst = std::max(worst, SHARE(out.get(base + t, head * hd + d), value,
                                              relative * size + rounding * std::fabs(value),
                                              c.text() + " row " + std::to_string(t)));
            }
        }
    }
    return worst;
}

// Bits: a second run, two threads, three chunks, each sequence's rows one by one, out over q.
void check_bits(const Inputs& in, const Matrix& whole, const std::string& isa) {
    const Case& c = in.c;
    const bool on_cuda = isa == "cuda";
    const auto repeat = [&](const std::vector<std::vector<Part>>& calls, const char* what) {
        const Matrix out(c.out, in.start.back(), c.columns());
        for (const auto& parts : calls) in.run(parts, out, nullptr, on_cuda);
        CHECK(out.same_bits(whole), c.text() + " on " + isa + ": " + what);
    };
    if (on_cuda) {
        cuda_on_host::set_reversed(true);
        repeat({in.whole()}, "threads in another order");
        cuda_on_host::set_reversed(false);
    } else {
        repeat({in.whole()}, "a second run");
        pe::set_num_threads(2);
        repeat({in.whole()}, "two threads");
        pe::set_num_threads(1);
    }
    std::vector<std::vector<Part>> chunks(3), rows;
    for (const Part& p : in.whole()) {
        const int64_t a = p.end / 3, b = a + p.end / 2;
        chunks[0].push_back({p.s, 0, a});
        chunks[1].insert(chunks[1].begin(), {p.s, a, b});
        chunks[2].push_back({p.s, b, p.end});
        for (int64_t t = 0; t < p.end; ++t) rows.push_back({{p.s, t, t + 1}});
    }
    repeat(chunks, "in three chunks");
    // Each of these calls is a grid of its own, which takes the host's twin long.
    if (!on_cuda || in.start.back() < 100) repeat(rows, "row by row");
}

double check_case(const Case& c, const Options& options) {
    const Inputs in(c);
    double worst = 0;
    std::vector<Matrix> fma;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        Matrix out(c.out, in.start.back(), c.columns());
        const Matrix lse(DType::kF32, in.start.back(), c.shape.heads * c.G, c.pad);
        in.run(in.whole(), out, &lse);
        CHECK(lse.padding_is_intact(), c.text() + " writes between rows of lse");
        for (size_t s = 0; s < c.lengths.size(); ++s)
            worst = std::max(worst, check_values(in, out, lse, s));
        check_bits(in, out, pe::cpu::isa_name(isa));
        if (!has_fma(isa)) continue;
        if (!fma.empty()) {
            CHECK(out.same_bits(fma[0]),
                  c.text() + ": " + pe::cpu::isa_name(isa) + " against the first with FMA");
        }
        fma.push_back(std::move(out));
    }
    if (!options.cuda) return worst;
    const Matrix out(c.out, in.start.back(), c.columns());
    const Matrix lse(DType::kF32, in.start.back(), c.shape.heads * c.G, c.pad);
    in.run(in.whole(), out, &lse, true);
    CHECK(lse.padding_is_intact(), c.text() + " writes between rows of lse on CUDA");
    for (size_t s = 0; s < c.lengths.size(); ++s)
        worst = std::max(worst, check_values(in, out, lse, s));
    if (c.shape.dtype == DType::kF32 && !fma.empty())
        CHECK(out.same_bits(fma[0]), c.text() + ": CUDA against the CPU");
    if (!options.small && c.G <= 3) check_bits(in, out, "cuda");
    return worst;
}

}  // namespace

void test_attention(const Options& options) {
    pe::set_num_threads(1);
    std::vector<Case> cases;
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const DType other = dtype == DType::kF32 ? DType::kBF16 : DType::kF32;
        cases.push_back({.shape = {.dtype = dtype}, .q = other, .out = other});
        cases.push_back({.shape = {.dtype = dtype}, .lengths = {}});
        for (const int64_t head_dim : {1, 16, 17, 48, 80}) {
            cases.push_back({.shape = {.dtype = dtype, .heads = 1, .head_dim = head_dim},
                             .lengths = {1, 66},
                             .scale = 1.0f});
        }
        cases.push_back({.shape = {.dtype = dtype, .heads = 1, .head_dim = 256}, .lengths = {17}});
        for (const int64_t window : {1, 20, 64, 100}) {
            cases.push_back({.shape = {.dtype = dtype, .heads = 1, .head_dim = 16},
                             .G = 1,
                             .lengths = {130, 3},
                             .window = window});
        }
        for (const int64_t page_tokens : {32, 64}) {
            cases.push_back({.shape = {.dtype = dtype, .heads = 1, .page_tokens = page_tokens}});
        }
        for (const int64_t G : {1, 8, 13}) {
            cases.push_back({.shape = {.dtype = dtype, .head_dim = 8}, .G = G, .pad = 0});
        }
    }
    double worst = 0;
    for (const Case& c : cases) worst = std::max(worst, check_case(c, options));
    printf("  attention %zu cases, largest error / bound %.3f\n", cases.size(), worst);
}

}  // namespace native
