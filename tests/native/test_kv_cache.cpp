// kv_cache on every instruction set and on CUDA's twin: every element of the pool, written or not.
#include "cuda_runtime.h"
#include "paged_case.h"
#include "pyengine/ops/kv_cache.h"

namespace native {
namespace {

using pe::DType;

struct Case {
    PageShape shape;
    DType k = DType::kF32, v = DType::kF32;
    int64_t T = 37, first = 7, pad = 3;

    std::string text() const {
        return "kv_cache T " + std::to_string(T) + " from " + std::to_string(first) + shape.text() +
               " rows " + std::to_string(static_cast<int>(k)) + std::to_string(static_cast<int>(v));
    }
};

using Device = void (*)(const pe::KvCacheWriteArgs&);

void on_cpu(const pe::KvCacheWriteArgs& a) { pe::cpu::kv_cache_write(a); }

void on_cuda(const pe::KvCacheWriteArgs& a) {
    CHECK(pe::cuda::kv_cache_write(a, nullptr) == cudaSuccess, "launch");
}

struct Inputs {
    int64_t pages;
    Matrix k, v;
    std::vector<int64_t> slots;

    explicit Inputs(const Case& c)
        : pages((c.first + c.T) / c.shape.page_tokens + 2),
          k(c.k, c.T, c.shape.heads * c.shape.head_dim, c.pad),
          v(c.v, c.T, c.shape.heads * c.shape.head_dim, c.pad) {
        Rng rng(static_cast<uint64_t>(c.T * 1000 + c.shape.head_dim));
        k.fill_normal(rng);
        v.fill_normal(rng);
        slots = slots_of(shuffled_pages(rng, pages), c.first, c.T, c.shape.page_tokens);
    }

    // Rows [begin, begin + n).
    void write(Device device, const Pool& keys, const Pool& values, int64_t begin, int64_t n) {
        pe::VectorView part = view_of(slots, DType::kI64);
        part.data = slots.data() + begin;
        part.size = n;
        device({.k = k.rows(begin, n),
                .v = v.rows(begin, n),
                .keys = keys.view(),
                .values = values.view(),
                .slots = part});
    }
};

void expect(const Case& c, const Inputs& in, Pool& keys, Pool& values) {
    const PageShape& s = c.shape;
    for (int64_t t = 0; t < c.T; ++t) {
        const int64_t slot = in.slots[static_cast<size_t>(t)];
        const int64_t page = slot / s.page_tokens, offset = slot % s.page_tokens;
        for (int64_t h = 0; h < s.heads; ++h) {
            for (int64_t d = 0; d < s.hd(); ++d) {
                const bool real = d < s.head_dim;
                const int64_t from = h * s.head_dim + d;
                keys.memory().set(page, s.key(h, d, offset), real ? in.k.get(t, from) : 0.0f);
                values.memory().set(page, s.value(h, d, offset), real ? in.v.get(t, from) : 0.0f);
                if (s.dtype == DType::kBF16 && offset % 2 == 0) {
                    values.memory().set(page, s.value(h, d, offset + 1), 0.0f);
                }
            }
        }
    }
}

void check_case(const Case& c, const Options& options) {
    Inputs in(c);
    Pool want_keys(c.shape, in.pages, c.pad), want_values(c.shape, in.pages, c.pad);
    expect(c, in, want_keys, want_values);
    Device device = on_cpu;
    const auto check = [&](const std::vector<int64_t>& cuts, const std::string& what) {
        const Pool keys(c.shape, in.pages, c.pad), values(c.shape, in.pages, c.pad);
        for (size_t i = 0; i + 1 < cuts.size(); ++i) {
            in.write(device, keys, values, cuts[i], cuts[i + 1] - cuts[i]);
        }
        CHECK(keys.memory().same_bits(want_keys.memory()), c.text() + " keys " + what);
        CHECK(values.memory().same_bits(want_values.memory()), c.text() + " values " + what);
    };
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        const std::string name = pe::cpu::isa_name(isa);
        check({0, c.T}, name);
        check({0, c.T / 3, c.T / 3 + c.T / 2, c.T}, name + " in three calls");
        pe::set_num_threads(2);
        check({0, c.T}, name + " on two threads");
        pe::set_num_threads(1);
    }
    if (!options.cuda) return;
    device = on_cuda;
    check({0, c.T}, "cuda");
    if (options.small) return;
    check({0, c.T / 3, c.T / 3 + c.T / 2, c.T}, "cuda in three calls");
    cuda_on_host::set_reversed(true);
    check({0, c.T}, "cuda, threads in another order");
    cuda_on_host::set_reversed(false);
}

// What the CPU's binding refuses: on CUDA nobody has looked at the slots.
void check_unknown_slots() {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const Case c{.shape = {.dtype = dtype}, .T = 20};
        Inputs in(c), fewer(c);
        for (const int64_t t : {0, 3, 19}) {
            fewer.slots[static_cast<size_t>(t)] = t == 3 ? -1 : in.pages * c.shape.page_tokens + t;
        }
        const Pool keys(c.shape, in.pages, c.pad), values(c.shape, in.pages, c.pad);
        const Pool want_keys(c.shape, in.pages, c.pad), want_values(c.shape, in.pages, c.pad);
        fewer.write(on_cuda, keys, values, 0, c.T);
        for (int64_t t = 1; t < 19; ++t) {
            const bool pair = t > 3 && t < 18 && in.slots[static_cast<size_t>(t)] % 2 == 0;
            if (t == 3) continue;
            in.write(on_cpu, want_keys, want_values, t, pair ? 2 : 1);
            t += pair;
        }
        CHECK(keys.memory().same_bits(want_keys.memory()), c.text() + " keys of known slots");
        CHECK(values.memory().same_bits(want_values.memory()), c.text() + " values of known slots");
    }
}

}  // namespace

void test_kv_cache(const Options& options) {
    pe::set_num_threads(1);
    std::vector<Case> cases;
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
        for (const int64_t T : {0, 1, 2, 8, 9, 16, 37, 100}) {
            cases.push_back({.shape = {.dtype = dtype}, .T = T, .first = T % 3});
        }
        for (const int64_t head_dim : {1, 15, 16, 17, 64, 256}) {
            cases.push_back({.shape = {.dtype = dtype, .head_dim = head_dim}});
        }
        for (const int64_t page_tokens : {32, 64}) {
            cases.push_back({.shape = {.dtype = dtype, .heads = 1, .page_tokens = page_tokens}});
        }
        cases.push_back({.shape = {.dtype = dtype}, .k = DType::kBF16, .v = DType::kBF16});
        cases.push_back({.shape = {.dtype = dtype}, .v = DType::kBF16, .pad = 0});
    }
    for (const Case& c : cases) check_case(c, options);
    if (options.cuda) check_unknown_slots();
    printf("  kv_cache %zu cases\n", cases.size());
}

}  // namespace native
