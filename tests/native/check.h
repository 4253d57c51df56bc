// What every native test needs: counted checks, memory of exactly the stated size, matrices of
// either dtype, the ISAs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "pyengine/isa.h"
#include "pyengine/parallel.h"
#include "pyengine/view.h"

extern "C" void __asan_init() __attribute__((weak));

namespace native {

inline int64_t checks = 0;
inline constexpr double kUnit = 0x1.0p-24;  // half an ulp of f32, relative

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
    fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
    exit(1);
}

#define CHECK(condition, what)                                                                     \
    do {                                                                                           \
        ++native::checks;                                                                          \
        if (!(condition)) native::fail(__FILE__, __LINE__, std::string(#condition ": ") + (what)); \
    } while (0)

// Of all bytes that `same_bytes` was asked about: what a processor of another kind must arrive at as well.
inline uint64_t digest = 0;

inline bool same_bytes(const void* a, const void* b, size_t n) {
    uint64_t word = 0;
    for (size_t i = 0; i < n; i += sizeof word) {
        memcpy(&word, static_cast<const char*>(a) + i, std::min(sizeof word, n - i));
        digest = (digest ^ word) * 0x9E3779B97F4A7C15u;
        digest ^= digest >> 32;
    }
    return n == 0 || memcmp(a, b, n) == 0;
}

// SplitMix64: test data, the same on every machine.
struct Rng {
    uint64_t state;
    explicit Rng(uint64_t seed) : state(seed) {}
    uint64_t next() {
        uint64_t z = (state += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
    float normal() {  // near enough
        double sum = -6.0;
        for (int i = 0; i < 12; ++i) sum += uniform();
        return static_cast<float>(sum);
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
};

// Exactly `bytes` bytes. ASan guards what lies around them; without it, two canaries do.
class Memory {
  public:
    explicit Memory(int64_t bytes)
        : bytes_(static_cast<size_t>(bytes)), guard_(__asan_init ? 0 : kGuard) {
        base_ = static_cast<unsigned char*>(malloc(bytes_ + 2 * guard_ + (bytes_ + guard_ == 0)));
        memset(base_, kCanary, bytes_ + 2 * guard_);
    }
    Memory(const Memory&) = delete;
    Memory(Memory&& other) noexcept
        : bytes_(other.bytes_), guard_(other.guard_), base_(other.base_) {
        other.base_ = nullptr;
    }
    ~Memory() {
        if (base_ == nullptr) return;
        for (size_t i = 0; i < guard_; ++i) {
            CHECK(base_[i] == kCanary && base_[guard_ + bytes_ + i] == kCanary,
                  "a write outside the memory");
        }
        free(base_);
    }
    void* data() const { return base_ + guard_; }
    size_t bytes() const { return bytes_; }

  private:
    static constexpr size_t kGuard = 4096;
    static constexpr unsigned char kCanary = 0xff;  // NaN as f32, as bf16 and as f64
    size_t bytes_, guard_;
    unsigned char* base_;
};

// (rows, cols) of f32 or bf16, `pad` elements between rows. Starts as NaN; the padding must stay
// so.
class Matrix {
  public:
    Matrix(pe::DType dtype, int64_t rows, int64_t cols, int64_t pad = 0)
        : dtype_(dtype),
          rows_(rows),
          cols_(cols),
          stride_(cols + pad),
          memory_((rows > 0 ? (rows - 1) * stride_ + cols : 0) * pe::dtype_bytes(dtype)) {}

    pe::MatrixView view() const { return {memory_.data(), dtype_, rows_, cols_, stride_}; }
    pe::VectorView vector() const { return {memory_.data(), dtype_, rows_ * cols_}; }
    pe::MatrixView rows(int64_t begin, int64_t n) const {
        pe::MatrixView v = view();
        v.data = static_cast<char*>(v.data) + begin * stride_ * pe::dtype_bytes(dtype_);
        v.rows = n;
        return v;
    }
    float get(int64_t i, int64_t j) const {
        if (dtype_ == pe::DType::kF32)
            return static_cast<const float*>(memory_.data())[i * stride_ + j];
        return pe::to_float(static_cast<const pe::bf16*>(memory_.data())[i * stride_ + j]);
    }
    float get(int64_t i) const { return get(i / cols_, i % cols_); }
    void set(int64_t i, int64_t j, float x) {
        if (dtype_ == pe::DType::kF32) {
            static_cast<float*>(memory_.data())[i * stride_ + j] = x;
        } else {
            static_cast<pe::bf16*>(memory_.data())[i * stride_ + j] = pe::to_bf16(x);
        }
    }
    Matrix& fill_normal(Rng& rng, float scale = 1.0f) {
        for (int64_t i = 0; i < rows_; ++i) {
            for (int64_t j = 0; j < cols_; ++j) set(i, j, scale * rng.normal());
        }
        return *this;
    }
    Matrix& fill(float x) {
        for (int64_t i = 0; i < rows_; ++i) {
            for (int64_t j = 0; j < cols_; ++j) set(i, j, x);
        }
        return *this;
    }
    // Every byte, padding too: nothing between the rows may be written.
    bool same_bits(const Matrix& other) const {
        return memory_.bytes() == other.memory_.bytes() &&
               same_bytes(memory_.data(), other.memory_.data(), memory_.bytes());
    }
    Matrix copy() const {
        Matrix m(dtype_, rows_, cols_, stride_ - cols_);
        memcpy(m.memory_.data(), memory_.data(), memory_.bytes());
        return m;
    }
    bool padding_is_intact() const {
        const auto* p = static_cast<const unsigned char*>(memory_.data());
        const int64_t size = pe::dtype_bytes(dtype_);
        for (int64_t i = 0; i + 1 < rows_; ++i) {
            for (int64_t b = (i * stride_ + cols_) * size; b < (i + 1) * stride_ * size; ++b) {
                if (p[b] != 0xff) return false;
            }
        }
        return true;
    }
    int64_t rows() const { return rows_; }
    int64_t cols() const { return cols_; }
    pe::DType dtype() const { return dtype_; }

  private:
    pe::DType dtype_;
    int64_t rows_, cols_, stride_;
    Memory memory_;
};

// Exactly n elements of eight bytes, f64 or i64. Starts as NaN.
struct Wide {
    Memory memory;
    int64_t n;

    explicit Wide(int64_t size) : memory(8 * size), n(size) {}
    double* f64() const { return static_cast<double*>(memory.data()); }
    int64_t* i64() const { return static_cast<int64_t*>(memory.data()); }
    pe::VectorView doubles() const { return {memory.data(), pe::DType::kF64, n}; }
    pe::VectorView integers() const { return {memory.data(), pe::DType::kI64, n}; }
    bool same(const Wide& other) const {
        return n == other.n && same_bytes(memory.data(), other.memory.data(), memory.bytes());
    }
};

inline Matrix floats(int64_t n) { return Matrix(pe::DType::kF32, 1, n); }

// See SHARE.
template <typename What>
double share(double value, double reference, double bound, const What& what) {
    if (std::isnan(reference) || std::isinf(reference)) {
        CHECK((std::isnan(value) && std::isnan(reference)) || value == reference, what());
        return 0.0;
    }
    const double error = std::fabs(value - reference);
    CHECK(error <= bound, what() + " is " + std::to_string(value) + " but the reference is " +
                              std::to_string(reference) + ", error / bound " +
                              std::to_string(error / bound));
    return bound > 0 ? error / bound : 0.0;
}

// |value - reference| <= bound, or both the same infinity, or both NaN. Gives the share of the bound
// that was used. `what` is put together only where that does not hold: this is asked of every cell.
#define SHARE(value, reference, bound, what) \
    native::share(value, reference, bound, [&] { return std::string(what); })

inline double ulps_apart(float a, float b) {
    return std::fabs(static_cast<double>(a) - b) /
           (std::ldexp(1.0, std::ilogb(b == 0 ? 1.0f : b) - 23));
}

struct Options {
    bool cuda = true;    // run the CUDA kernels on the host
    bool small = false;  // of CUDA, one run of the smaller cases: fibers are slow
    std::string isa;     // this instruction set only; empty: every one
    uint32_t exp_stride = 4093;
    int64_t events = 5000, seeds = 20;  // of the scheduler's simulation: so many events for each
};

inline std::vector<pe::cpu::Isa> isas(const Options& options) {
    std::vector<pe::cpu::Isa> list;
    for (int i = 0; i < pe::cpu::kNumIsas; ++i) {
        const auto isa = static_cast<pe::cpu::Isa>(i);
        if (!options.isa.empty() && options.isa != pe::cpu::isa_name(isa)) continue;
        if (pe::cpu::isa_supported(isa)) list.push_back(isa);
    }
    return list;
}

#if defined(__aarch64__)
inline bool has_fma(pe::cpu::Isa) { return true; }
#else
inline bool has_fma(pe::cpu::Isa isa) { return isa != pe::cpu::Isa::kBaseline; }
#endif

inline constexpr int64_t kSizes[] = {0, 1, 31, 32, 33, 111, 4099};

void test_activations(const Options& options);
void test_adamw(const Options& options);
void test_attention(const Options& options);
void test_attention_backward(const Options& options);
void test_block_manager();
void test_cuda_engine(const Options& options);
void test_exp(const Options& options);
void test_log(const Options& options);
void test_dtype();
void test_kv_cache(const Options& options);
void test_layer_norm(const Options& options);
void test_listwise_loss(const Options& options);
void test_parallel();
void test_packed_tile();
void test_pairwise_loss(const Options& options);
void test_philox_uniform(const Options& options);
void test_rms_norm(const Options& options);
void test_linear(const Options& options);
void test_linear_backward(const Options& options);
void test_linear_kl(const Options& options);
void test_mma(const Options& options);
void test_lion(const Options& options);
void test_rope(const Options& options);
void test_scheduler(const Options& options);
void test_segment_sum(const Options& options);
void test_session(const Options& options);
void test_session_schedules(const Options& options);
void test_session_values(const Options& options);
void test_token_loss(const Options& options);
void test_linear_logprob(const Options& options);
void test_sample(const Options& options);

}  // namespace native
