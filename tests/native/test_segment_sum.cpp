// segment_sum on every instruction set and on CUDA's twin: exact products in order, bits, threads, nothing written
// outside.
#include <algorithm>

#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/segment_sum.h"

namespace native {
namespace {

using pe::DType;

struct Case {
    Wide cu_seqlens;
    Matrix values, weights;
    int64_t S, N;

    explicit Case(const std::vector<int64_t>& lengths)
        : cu_seqlens(static_cast<int64_t>(lengths.size()) + 1),
          values(floats(total(lengths))),
          weights(floats(total(lengths))),
          S(static_cast<int64_t>(lengths.size())),
          N(total(lengths)) {
        int64_t end = 0, s = 0;
        cu_seqlens.i64()[0] = 0;
        for (const int64_t n : lengths) cu_seqlens.i64()[++s] = end += n;
        Rng rng(static_cast<uint64_t>(N) + 1);
        values.fill_normal(rng), weights.fill_normal(rng);
    }
    static int64_t total(const std::vector<int64_t>& lengths) {
        int64_t sum = 0;
        for (const int64_t n : lengths) sum += n;
        return sum;
    }
};

// The instruction set that is active, or CUDA on the host.
struct Device {
    void (*forward)(const pe::SegmentSumArgs&);
    void (*backward)(const pe::SegmentSumBackwardArgs&);
};

const Device kCpu{[](const auto& a) { pe::cpu::segment_sum_forward(a); },
                  [](const auto& a) { pe::cpu::segment_sum_backward(a); }};
const Device kCuda{[](const auto& a) {
                       CHECK(pe::cuda::segment_sum_forward(a, nullptr) == cudaSuccess, "launch");
                   },
                   [](const auto& a) {
                       CHECK(pe::cuda::segment_sum_backward(a, nullptr) == cudaSuccess, "launch");
                   }};

struct Result {
    Wide sums;
    Matrix dvalues;

    Result(const Device& device, const Case& c, bool weighted) : sums(c.S), dvalues(floats(c.N)) {
        const pe::VectorView weights = weighted ? c.weights.vector() : pe::VectorView{};
        device.forward({.values = c.values.vector(),
                        .weights = weights,
                        .cu_seqlens = c.cu_seqlens.integers(),
                        .sums = sums.doubles()});
        device.backward({.dsums = sums.doubles(),
                         .weights = weights,
                         .cu_seqlens = c.cu_seqlens.integers(),
                         .dvalues = dvalues.vector()});
    }
    bool same(const Result& other) const {
        return sums.same(other.sums) && dvalues.same_bits(other.dvalues);
    }
};

void check_values(const Case& c, const Result& r, bool weighted) {
    for (int64_t s = 0; s < c.S; ++s) {
        long double exact = 0, size = 0;
        for (int64_t i = c.cu_seqlens.i64()[s]; i < c.cu_seqlens.i64()[s + 1]; ++i) {
            const double w = weighted ? static_cast<double>(c.weights.get(i)) : 1.0;
            const double term = w * static_cast<double>(c.values.get(i));
            exact += term, size += std::fabs(term);
            CHECK(r.dvalues.get(i) == static_cast<float>(r.sums.f64()[s] * w),
                  "segment_sum: dvalues at " + std::to_string(i));
        }
        SHARE(r.sums.f64()[s], static_cast<double>(exact), 1e-14 * static_cast<double>(size),
              "segment_sum " + std::to_string(s));
    }
}

// The sum of segment s where there is no other.
double alone(const Device& device, const Case& c, int64_t s) {
    const int64_t begin = c.cu_seqlens.i64()[s], n = c.cu_seqlens.i64()[s + 1] - begin;
    const auto part = [&](const Matrix& m) {
        return pe::VectorView{static_cast<float*>(m.view().data) + begin, DType::kF32, n};
    };
    const Wide bounds(2), sum(1);
    bounds.i64()[0] = 0, bounds.i64()[1] = n;
    device.forward({.values = part(c.values),
                    .weights = part(c.weights),
                    .cu_seqlens = bounds.integers(),
                    .sums = sum.doubles()});
    return sum.f64()[0];
}

void check_cuda(const Case& c, bool weighted, const Result& cpu, const Options& options) {
    const Result r(kCuda, c, weighted);
    check_values(c, r, weighted);
    CHECK(r.same(cpu), "segment_sum: cuda has the CPU's bits");
    if (options.small) return;
    cuda_on_host::set_reversed(true);
    CHECK(Result(kCuda, c, weighted).same(cpu), "segment_sum: threads in another order");
    cuda_on_host::set_reversed(false);
    for (int64_t s = 0; weighted && s < std::min<int64_t>(c.S, 20); ++s)
        CHECK(alone(kCuda, c, s) == cpu.sums.f64()[s], "segment_sum: without the others");
}

}  // namespace

void test_segment_sum(const Options& options) {
    std::vector<std::vector<int64_t>> cases = {{}, {0}, {0, 0, 0}, {1}, {40000, 0, 5, 30000}};
    cases.push_back({0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 111, 0, 4099, 0});
    std::vector<int64_t> many;
    for (int64_t s = 0; s < 3000; ++s) many.push_back(s % 29);
    cases.push_back(many);
    for (const auto& lengths : cases) {
        const Case c(lengths);
        for (const bool weighted : {false, true}) {
            std::vector<Result> first;
            for (const auto isa : isas(options)) {
                pe::cpu::set_active_isa(isa);
                pe::set_num_threads(1);
                first.emplace_back(kCpu, c, weighted);
                check_values(c, first.back(), weighted);
                CHECK(first.back().same(first[0]), "segment_sum: every instruction set");
                pe::set_num_threads(2);
                CHECK(Result(kCpu, c, weighted).same(first[0]), "segment_sum: two threads");
            }
            pe::set_num_threads(1);
            if (options.cuda && !(options.small && c.S > 100))
                check_cuda(c, weighted, first[0], options);
        }
    }
    printf("  segment_sum %zu cases\n", cases.size());
}

}  // namespace native
