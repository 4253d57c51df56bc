// Layout  step: a thread an element, neighbours beside each other.
//         step_8bit: a warp for each block of 256 values that share an absmax; lane i takes values
//         i, i + 32, ..., whose new moments stay in registers until the absmax is known. A maximum
//         is the same in any order.
//         sum_squares: a block for each of the 64 parts. Four warps fetch a slab of rows of 16
//         values, squared, into shared memory, while 16 lanes of the first warp walk the slab
//         before it: the CPU's 16 chains a part, each in its order, folded in the CPU's order.
#include "pyengine/ops/adamw.h"

#include <cfloat>

#include "common/launch.cuh"
#include "common/math.cuh"
#include "pyengine/ops/adamw_codes.h"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;

// One lane of csrc/ops/adamw.cpp's: p, m and v are updated.
__device__ inline void update(const AdamWScalars& s, float grad, float& p, float& m, float& v) {
    const bool from_m = s.one_minus_beta1 < 0.5f;
    const float pull = from_m ? s.one_minus_beta1 : -s.beta1;
    const float g = grad * s.grad_scale;
    m = fmaf(pull, g - m, from_m ? m : g);
    v = fmaf(v, s.beta2, s.one_minus_beta2 * g * g);
    const float denominator = fmaf(sqrtf(v), s.inverse_root, s.eps);
    p = p * s.decay + -s.step_size * m / denominator;
}

__global__ void __launch_bounds__(kThreads) adamw_step_kernel(AdamWArgs a) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= a.param.size) return;
    float p = ptr<float>(a.param)[i], m = ptr<float>(a.exp_avg)[i], v = ptr<float>(a.exp_avg_sq)[i];
    update(a.scalars, ptr<float>(a.grad)[i], p, m, v);
    ptr<float>(a.param)[i] = p;
    ptr<float>(a.exp_avg)[i] = m;
    ptr<float>(a.exp_avg_sq)[i] = v;
}

// 8 bits

// In memory, not in registers or constants: lanes ask for different rows, and the eight of a table
// are one sector of the cache.
__device__ constexpr AdamWCodes kSigned = kSignedCodes, kUnsigned = kUnsignedCodes;
constexpr int kSignedZero = 127;  // code of 0
constexpr int kPerLane = kAdamWBlock / kWarp;
constexpr int kBlocksPerBlock = kThreads / kWarp;  // of 256 values, in a block of threads

// The magnitude in place t - lowest: see adamw_codes.h.
__device__ inline float magnitude(const AdamWCodes& codes, int t) {
    if (t <= codes.lowest) return 0.0f;
    const uint32_t bits = bits_of(static_cast<float>(t));
    const int row = static_cast<int>(bits >> 23) - (127 + codes.lowest);
    const float fraction = float_of((bits & 0x7fffffu) | 0x3f800000u) - 1.0f;
    return codes.first[row] + codes.width[row] * fraction;
}

// Place of the magnitude nearest to x >= 0; the smaller one of two as near. NaN goes to 0.
__device__ inline int nearest(const AdamWCodes& codes, float x) {
    int row = -1;
#pragma unroll
    for (int i = 0; i < kRows; ++i) row += x > codes.edge[i];
    if (row < 0) return 0;
    const float first = codes.first[row], part = codes.part[row], last = codes.last[row];
    const auto in_row = [&](float k) { return max_of(0.0f, last < k ? last : k); };
    // Rounding may take the wrong one of two neighbours.
    const float guess = (x - codes.low[row]) * codes.parts_a_unit[row];
    const float k = static_cast<float>(static_cast<int>(in_row(max_of(guess, 0.0f))));
    const float off = x - (first + part * k);
    const bool above = off > 0.0f;
    const float other = in_row(k + (above ? 1.0f : -1.0f));
    const float other_off = fabsf(x - (first + part * other));
    const bool better = other_off < fabsf(off) || (!above && other_off == fabsf(off));
    return codes.start[row] + static_cast<int>(better ? other : k);
}

__device__ inline float decode_signed(uint8_t code) {
    const int place = static_cast<int>(code) - kSignedZero;
    const float size = magnitude(kSigned, place < 0 ? -place : place);
    return place < 0 ? -size : size;
}

__device__ inline uint8_t encode_signed(float x) {
    const int place = nearest(kSigned, fabsf(x));
    const int lowest = place < kSignedZero ? place : kSignedZero;  // -1 has no code of its own
    return static_cast<uint8_t>(kSignedZero + (bits_of(x) >> 31 ? -lowest : place));
}

// Nearest, except that what is not 0 never becomes 0.
__device__ inline uint8_t encode_unsigned(float x, float v) {
    const int place = nearest(kUnsigned, x);
    return static_cast<uint8_t>(place + (place == 0 && v > 0.0f));
}

// A block's absmax: finite and never a divisor of 0.
__device__ inline float block_absmax(float lane) {
    const float largest = warp_max(lane);
    return largest < FLT_MAX ? largest : FLT_MAX;
}

// Values past the end are 0 and stay 0; they are not written.
__global__ void __launch_bounds__(kThreads) adamw_step_8bit_kernel(AdamW8bitArgs a) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t block = static_cast<int64_t>(blockIdx.x) * kBlocksPerBlock + threadIdx.x / kWarp;
    const int64_t first = block * kAdamWBlock + lane;
    if (block * kAdamWBlock >= a.param.size) return;
    float* param = ptr<float>(a.param);
    uint8_t *m_codes = ptr<uint8_t>(a.exp_avg), *v_codes = ptr<uint8_t>(a.exp_avg_sq);
    const float m_scale = ptr<float>(a.exp_avg_absmax)[block];
    const float v_scale = ptr<float>(a.exp_avg_sq_absmax)[block];
    float p[kPerLane], g[kPerLane], m[kPerLane], v[kPerLane];
    const auto each = [&](const auto& f) {
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) f(j, first + j * kWarp);
    };
    each([&](int j, int64_t i) {
        const bool present = i < a.param.size;
        p[j] = present ? param[i] : 0.0f;
        g[j] = present ? ptr<float>(a.grad)[i] : 0.0f;
        m[j] = decode_signed(present ? m_codes[i] : kSignedZero) * m_scale;
        v[j] = magnitude(kUnsigned, (present ? v_codes[i] : 0) + 1) * v_scale;
    });
    float m_largest = 0.0f, v_largest = 0.0f;
    each([&](int j, int64_t i) {
        update(a.scalars, g[j], p[j], m[j], v[j]);
        if (i < a.param.size) param[i] = p[j];
        m_largest = max_of(fabsf(m[j]), m_largest);
        v_largest = max_of(v[j], v_largest);
    });
    const float m_absmax = block_absmax(m_largest), v_absmax = block_absmax(v_largest);
    const float m_by = m_absmax > 0.0f ? m_absmax : 1.0f, v_by = v_absmax > 0.0f ? v_absmax : 1.0f;
    each([&](int j, int64_t i) {
        if (i >= a.param.size) return;
        m_codes[i] = encode_signed(m[j] / m_by);
        v_codes[i] = encode_unsigned(v[j] / v_by, v[j]);
    });
    if (lane != 0) return;
    ptr<float>(a.exp_avg_absmax)[block] = m_absmax;
    ptr<float>(a.exp_avg_sq_absmax)[block] = v_absmax;
}

// The norm

constexpr int kChains = 16;
constexpr int kFetchers = 128;
constexpr int kSlabRows = 128;
constexpr int kSlab = kSlabRows * kChains;

// Of two buffers the fetchers fill one and the walkers read the other; a barrier swaps them. What is
// past the part's end is 0, which changes no bit of a sum.
__global__ void __launch_bounds__(kWarp + kFetchers)
    adamw_sum_squares_kernel(AdamWSumSquaresArgs a) {
    __shared__ double squares[2][kSlab];
    __shared__ double chains[kChains];
    const float* x = ptr<float>(a.grad);
    const int64_t begin = adamw_squares_begin(a.grad.size, blockIdx.x);
    const int64_t end = adamw_squares_begin(a.grad.size, blockIdx.x + 1);
    const int64_t slabs = (end - begin + kSlab - 1) / kSlab;
    const int thread = static_cast<int>(threadIdx.x), fetcher = thread - kWarp;
    double total = 0.0;
    for (int64_t slab = 0; slab <= slabs; ++slab) {
        if (fetcher >= 0 && slab < slabs) {
#pragma unroll
            for (int i = fetcher; i < kSlab; i += kFetchers) {
                const int64_t at = begin + slab * kSlab + i;
                const double value = at < end ? static_cast<double>(x[at]) : 0.0;
                squares[slab % 2][i] = value * value;
            }
        }
        if (thread < kChains && slab > 0) {
#pragma unroll 16
            for (int row = 0; row < kSlabRows; ++row)
                total += squares[(slab - 1) % 2][row * kChains + thread];
        }
        __syncthreads();
    }
    if (thread < kChains) chains[thread] = total;
    __syncthreads();
    if (thread != 0) return;
    for (int width = kChains / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; ++j) chains[j] += chains[j + width];
    }
    a.partial[blockIdx.x] = chains[0];
}

}  // namespace

int adamw_step(const AdamWArgs& a, void* stream) {
    if (a.param.size == 0) return cudaSuccess;
    return launch(adamw_step_kernel, dim3(ceil_div(a.param.size, kThreads)), kThreads, stream, a);
}

int adamw_step_8bit(const AdamW8bitArgs& a, void* stream) {
    if (a.param.size == 0) return cudaSuccess;
    return launch(adamw_step_8bit_kernel,
                  dim3(ceil_div(a.param.size, kAdamWBlock * kBlocksPerBlock)), kThreads, stream, a);
}

int adamw_sum_squares(const AdamWSumSquaresArgs& a, void* stream) {
    return launch(adamw_sum_squares_kernel, dim3(kAdamWSquaresParts), kWarp + kFetchers, stream, a);
}

}  // namespace pe::cuda
