#include "pyengine/ops/adamw.h"

#include <cfloat>

#include "pyengine/ops/adamw_codes.h"
#include "pyengine/parallel.h"
#include "pyengine/row16.h"
#include "pyengine/simd64.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kLeastPerTask = 64 * kAdamWBlock;
constexpr int64_t kBlock = kAdamWBlock;
constexpr int32_t kSignedZero =
    127;  // code of 0; below it the negative magnitudes, above it the positive

// Long tasks, which the hardware fetches ahead; an element's result does not depend on its task.
int64_t per_task(int64_t n) {
    const int64_t share = n / (4 * static_cast<int64_t>(num_threads())) / kBlock * kBlock + kBlock;
    return share > kLeastPerTask ? share : kLeastPerTask;
}

PE_INLINE vec sqrt(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_sqrt_ps(kAllLanes, (__m512)x);
#elif defined(__AVX2__)
    return (vec)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

PE_INLINE vec abs(vec x) { return (vec)((uvec)x & 0x7fffffffu); }

// Scalars as vectors. b1 m + (1-b1) g is written as one of two steps from the nearer of m and g, as torch does.
struct Scalars {
    vec grad_scale, decay, pull, beta2, one_minus_beta2, minus_step, inverse_root, eps;
    bool from_m;

    explicit Scalars(const AdamWScalars& s)
        : grad_scale(broadcast(s.grad_scale)),
          decay(broadcast(s.decay)),
          pull(broadcast(s.one_minus_beta1 < 0.5f ? s.one_minus_beta1 : -s.beta1)),
          beta2(broadcast(s.beta2)),
          one_minus_beta2(broadcast(s.one_minus_beta2)),
          minus_step(broadcast(-s.step_size)),
          inverse_root(broadcast(s.inverse_root)),
          eps(broadcast(s.eps)),
          from_m(s.one_minus_beta1 < 0.5f) {}
};

// One register of elements: p, m and v are updated.
PE_INLINE void update(const Scalars& s, vec grad, vec& p, vec& m, vec& v) {
    const vec g = grad * s.grad_scale;
    m = fma(s.pull, g - m, s.from_m ? m : g);
    v = fma(v, s.beta2, s.one_minus_beta2 * g * g);
    const vec denominator = fma(sqrt(v), s.inverse_root, s.eps);
    p = p * s.decay + s.minus_step * m / denominator;
}

PE_INLINE void update16(const Scalars& s, const vec16& g, vec16& p, vec16& m, vec16& v) {
    for (int i = 0; i < vec16::kParts; ++i) {
        update(s, g.part[i], p.part[i], m.part[i], v.part[i]);
    }
}

void step_range(const AdamWArgs& a, const Scalars& s, int64_t begin, int64_t end) {
    float *param = ptr<float>(a.param) + begin, *exp_avg = ptr<float>(a.exp_avg) + begin;
    float* exp_avg_sq = ptr<float>(a.exp_avg_sq) + begin;
    const float* grad = ptr<float>(a.grad) + begin;
    for_each_16(end - begin, [&](int64_t i, int64_t n) {
        vec16 p = read(param + i, n), m = read(exp_avg + i, n), v = read(exp_avg_sq + i, n);
        update16(s, read(grad + i, n), p, m, v);
        write(param + i, p, n);
        write(exp_avg + i, m, n);
        write(exp_avg_sq + i, v, n);
    });
}

// 8 bits

// table[index & 7]
PE_INLINE vec pick(const float* table, ivec index) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_permutexvar_ps(kAllLanes, (__m512i)index, (__m512)load(table));
#elif defined(__AVX2__)
    return (vec)_mm256_permutevar8x32_ps((__m256)load(table), (__m256i)index);
#else
    vec v;
    for (int i = 0; i < kLanes; ++i) v[i] = table[index[i] & 7];
    return v;
#endif
}

PE_INLINE ivec pick(const int32_t* table, ivec index) {
    return (ivec)pick(reinterpret_cast<const float*>(table), index);
}

// The magnitude in place t - lowest: see adamw_codes.h.
PE_INLINE vec magnitude(const AdamWCodes& codes, ivec t) {
    const ivec bits = (ivec) __builtin_convertvector(t, vec);
    const ivec row = (bits >> 23) - (127 + codes.lowest);
    const vec fraction = (vec)((bits & 0x7fffff) | 0x3f800000) - 1.0f;
    const vec value = pick(codes.first, row) + pick(codes.width, row) * fraction;
    return t > codes.lowest ? value : vec{};
}

// Place of the magnitude nearest to x >= 0; the smaller one of two as near. NaN goes to 0.
PE_INLINE ivec nearest(const AdamWCodes& codes, vec x) {
    ivec row = ivec{} - 1;
    for (const float edge : codes.edge) row -= (ivec)(x > edge);  // a true lane is -1
    const vec first = pick(codes.first, row), part = pick(codes.part, row);
    const vec last = pick(codes.last, row), zero = {};
    // Rounding may take the wrong one of two neighbours.
    const vec guess = (x - pick(codes.low, row)) * pick(codes.parts_a_unit, row);
    const vec k =
        __builtin_convertvector(__builtin_convertvector(min(last, max(guess, zero)), ivec), vec);
    const vec off = x - (first + part * k);
    const ivec above = off > zero;
    const vec other = max(zero, min(last, k + (above ? zero + 1.0f : zero - 1.0f)));
    const vec other_off = abs(x - (first + part * other));
    const ivec better = (other_off < abs(off)) | (~above & (other_off == abs(off)));
    const ivec place = pick(codes.start, row) + __builtin_convertvector(better ? other : k, ivec);
    return row < 0 ? ivec{} : place;
}

// Bytes to lanes and back: what compilers make of __builtin_convertvector goes byte by byte.
PE_INLINE ivec load_codes(const uint8_t* p) {
#if defined(__AVX512F__)
    __m128i b;
    memcpy(&b, p, 16);
    return (ivec)_mm512_maskz_cvtepu8_epi32(kAllLanes, b);
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    ivec v;
    for (int i = 0; i < kLanes; ++i) v[i] = p[i];
    return v;
#endif
}

PE_INLINE void store_codes(uint8_t* p, ivec codes) {
#if defined(__AVX512F__)
    const __m128i b = _mm512_maskz_cvtepi32_epi8(kAllLanes, (__m512i)codes);
    memcpy(p, &b, 16);
#elif defined(__AVX2__)
    const __m256i words = _mm256_packus_epi32((__m256i)codes, (__m256i)codes);
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
    memcpy(p, &low, 4);
    memcpy(p + 4, &high, 4);
#else
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(codes[i]);
#endif
}

PE_INLINE vec decode_signed(ivec code) {
    const ivec place = code - kSignedZero;
    const vec size = magnitude(kSignedCodes, place < 0 ? -place : place);
    return place < 0 ? -size : size;
}

PE_INLINE ivec encode_signed(vec x) {
    const ivec place = nearest(kSignedCodes, abs(x));
    const ivec negative = (ivec)x < 0;
    const ivec lowest = ivec{} + kSignedZero;  // -1 has no code of its own
    return kSignedZero + (negative ? -(place < lowest ? place : lowest) : place);
}

// Nearest, except that what is not 0 never becomes 0: an update divides by its root (arXiv:2309.01507, section 4.1).
PE_INLINE ivec encode_unsigned(vec x, vec v) {
    const ivec place = nearest(kUnsignedCodes, x);
    return place - (ivec)((place == 0) & (v > 0.0f));
}

// A block's absmax: finite and never a divisor of 0.
PE_INLINE float block_absmax(const vec16& lanes) {
    const float largest = max(lanes);
    return largest < FLT_MAX ? largest : FLT_MAX;
}

struct Block {
    float* param;
    const float* grad;
    uint8_t *m_codes, *v_codes;
    float *m_absmax, *v_absmax;
};

// All 256 elements of a block: decode, update, encode by the new absmax.
void step_block(const Block& b, const Scalars& s) {
    alignas(64) float m_new[kBlock], v_new[kBlock];
    const vec m_scale = broadcast(*b.m_absmax), v_scale = broadcast(*b.v_absmax);
    vec16 m_largest = broadcast16(0.0f), v_largest = broadcast16(0.0f);
    for (int64_t i = 0; i < kBlock; i += 16) {
        vec16 p = load16(b.param + i), m, v;
        for (int j = 0; j < vec16::kParts; ++j) {
            const int64_t at = i + j * kLanes;
            m.part[j] = decode_signed(load_codes(b.m_codes + at)) * m_scale;
            v.part[j] = magnitude(kUnsignedCodes, load_codes(b.v_codes + at) + 1) * v_scale;
        }
        update16(s, load16(b.grad + i), p, m, v);
        store16(b.param + i, p);
        store16(m_new + i, m);
        store16(v_new + i, v);
        for (int j = 0; j < vec16::kParts; ++j) m.part[j] = abs(m.part[j]);
        m_largest = max(m, m_largest);
        v_largest = max(v, v_largest);
    }
    *b.m_absmax = block_absmax(m_largest);
    *b.v_absmax = block_absmax(v_largest);
    const vec m_by = broadcast(*b.m_absmax > 0.0f ? *b.m_absmax : 1.0f);
    const vec v_by = broadcast(*b.v_absmax > 0.0f ? *b.v_absmax : 1.0f);
    for (int64_t i = 0; i < kBlock; i += kLanes) {
        const vec v = load(v_new + i);
        store_codes(b.m_codes + i, encode_signed(load(m_new + i) / m_by));
        store_codes(b.v_codes + i, encode_unsigned(v / v_by, v));
    }
}

// The last block of n < 256 elements, filled up with zeros that stay zeros.
void step_partial_block(const Block& b, const Scalars& s, int64_t n) {
    alignas(64) float param[kBlock] = {}, grad[kBlock] = {};
    alignas(64) uint8_t m_codes[kBlock], v_codes[kBlock] = {};
    memset(m_codes, kSignedZero, sizeof m_codes);
    const auto count = static_cast<size_t>(n);
    memcpy(param, b.param, count * sizeof(float));
    memcpy(grad, b.grad, count * sizeof(float));
    memcpy(m_codes, b.m_codes, count);
    memcpy(v_codes, b.v_codes, count);
    step_block({param, grad, m_codes, v_codes, b.m_absmax, b.v_absmax}, s);
    memcpy(b.param, param, count * sizeof(float));
    memcpy(b.m_codes, m_codes, count);
    memcpy(b.v_codes, v_codes, count);
}

// Squares of f32 are exact in f64, so that fused or not a sum has the same bits. Sixteen chains, folded in halves.
double sum_squares(const float* x, int64_t n) {
    constexpr int kParts = 16 / kDoubles;
    dvec chain[kParts] = {};
    alignas(64) float buffer[16];
    for_each_16(n, [&](int64_t i, int64_t count) {
        const float* p = x + i;
        if (count < 16) {
            for (int j = 0; j < 16; ++j) buffer[j] = j < count ? p[j] : 0.0f;
            p = buffer;
        }
        for (int j = 0; j < kParts; ++j) {
            half_vec h;
            memcpy(&h, p + j * kDoubles, sizeof h);
            const dvec d = __builtin_convertvector(h, dvec);
            chain[j] += d * d;
        }
    });
    double lanes[16];
    memcpy(lanes, chain, sizeof lanes);
    for (int width = 8; width > 0; width /= 2) {
        for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    }
    return lanes[0];
}

}  // namespace

void adamw_step(const AdamWArgs& a) {
    const Scalars s(a.scalars);
    parallel_rows(a.param.size, per_task(a.param.size),
                  [&](int64_t begin, int64_t end) { step_range(a, s, begin, end); });
}

void adamw_step_8bit(const AdamW8bitArgs& a) {
    const Scalars s(a.scalars);
    parallel_rows(a.param.size, per_task(a.param.size), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += kBlock) {
            const int64_t n = end - i < kBlock ? end - i : kBlock;
            const Block block{ptr<float>(a.param) + i,
                              ptr<float>(a.grad) + i,
                              ptr<uint8_t>(a.exp_avg) + i,
                              ptr<uint8_t>(a.exp_avg_sq) + i,
                              ptr<float>(a.exp_avg_absmax) + i / kBlock,
                              ptr<float>(a.exp_avg_sq_absmax) + i / kBlock};
            if (n == kBlock) {
                step_block(block, s);
            } else {
                step_partial_block(block, s, n);
            }
        }
    });
}

void adamw_sum_squares(const AdamWSumSquaresArgs& a) {
    const int64_t n = a.grad.size;
    const int threads = n < kLeastPerTask ? 1 : num_threads();
    parallel_tasks(kAdamWSquaresParts, threads, [&](int64_t i) {
        const int64_t begin = adamw_squares_begin(n, i), end = adamw_squares_begin(n, i + 1);
        a.partial[i] = sum_squares(ptr<float>(a.grad) + begin, end - begin);
    });
}

}  // namespace pe::cpu::PE_ISA
