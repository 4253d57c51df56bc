// Known answers of Philox4x32-10 (Random123's kat_vectors), and the op on every instruction set and
// on CUDA's twin.
#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/philox_uniform.h"
#include "pyengine/philox.h"

namespace native {
namespace {

void check_known_answer(uint64_t key, pe::Philox4x32 counter, const uint32_t (&expected)[4]) {
    const pe::Philox4x32 r = pe::philox4x32(key, counter);
    for (int i = 0; i < 4; ++i)
        CHECK(r.word[i] == expected[i], "philox4x32 word " + std::to_string(i));
}

struct Keys {
    std::vector<int64_t> seed, request, sample, position;

    explicit Keys(int64_t n) {
        Rng rng(static_cast<uint64_t>(n) + 7);
        for (int64_t i = 0; i < n; ++i) {
            seed.push_back(static_cast<int64_t>(rng.next()));
            request.push_back(static_cast<int64_t>(rng.next()));
            sample.push_back(static_cast<int64_t>(rng.next() >> 32));
            position.push_back(static_cast<int64_t>(rng.next() >> 32));
        }
    }
    pe::PhiloxUniformArgs args(double* u) {
        const auto view = [](void* p, pe::DType dtype, size_t n) {
            return pe::VectorView{p, dtype, static_cast<int64_t>(n)};
        };
        const size_t n = seed.size();
        return {view(seed.data(), pe::DType::kI64, n), view(request.data(), pe::DType::kI64, n),
                view(sample.data(), pe::DType::kI64, n), view(position.data(), pe::DType::kI64, n),
                view(u, pe::DType::kF64, n)};
    }
};

// u from the words, by a formula written here: 53 bits, the first word on top.
double expected_uniform(const Keys& k, size_t i) {
    const auto request = static_cast<uint64_t>(k.request[i]);
    const pe::Philox4x32 r = pe::philox4x32(
        static_cast<uint64_t>(k.seed[i]),
        {{static_cast<uint32_t>(request), static_cast<uint32_t>(request >> 32),
          static_cast<uint32_t>(k.sample[i]), static_cast<uint32_t>(k.position[i])}});
    return std::ldexp(static_cast<double>(r.word[0]), -32) +
           std::ldexp(static_cast<double>(r.word[1] >> 11), -53);
}

}  // namespace

void test_philox_uniform(const Options& options) {
    check_known_answer(0, {{0, 0, 0, 0}}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    const uint32_t ones = 0xffffffff;
    check_known_answer(~uint64_t{0}, {{ones, ones, ones, ones}},
                       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    check_known_answer(0x299f31d0a4093822u, {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
                       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
    for (const int64_t n : kSizes) {
        Keys keys(n);
        const auto check = [&](const char* name, const auto& run) {
            const Memory u(n * 8);
            run(keys.args(static_cast<double*>(u.data())));
            for (int64_t i = 0; i < n; ++i) {
                const double value = static_cast<const double*>(u.data())[i];
                CHECK(value == expected_uniform(keys, static_cast<size_t>(i)), name);
                CHECK(value >= 0.0 && value < 1.0, name);
            }
        };
        for (const auto isa : isas(options)) {
            pe::cpu::set_active_isa(isa);
            check(pe::cpu::isa_name(isa),
                  [](const pe::PhiloxUniformArgs& a) { pe::cpu::philox_uniform(a); });
        }
        if (!options.cuda) continue;
        check("cuda", [](const pe::PhiloxUniformArgs& a) {
            CHECK(pe::cuda::philox_uniform(a, nullptr) == cudaSuccess, "launch");
        });
    }
}

}  // namespace native
