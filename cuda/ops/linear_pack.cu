// Layout  linear_pack: a block turns 32 rows x 32 pairs of K over in shared memory, so that both the matrix and the panel are walked
//         along their lines; in f32 a "pair" is one element. int8: a warp per row, whose scale it finds first.
//         linear_pack_columns: a thread per pair of rows and column. linear_transpose: a thread per word of the result.
// Bits    the CPU's.
#include "pyengine/ops/linear.h"

#include "common/launch.cuh"
#include "common/math.cuh"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kWidth = static_cast<int>(kPanel), kHalf = kWidth / 2;
constexpr float kMaxI8 = 127.0f;

__device__ inline int64_t thread_of_grid() {
    return int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
}

// Output `row` of the weight in the packed matrix.
__device__ inline int64_t place(const LinearPackArgs& a, int64_t row) {
    return a.gated ? row / kHalf * kWidth + a.first + row % kHalf : a.first + row;
}

__device__ inline uint32_t pair_of(float low, float high) {
    return to_bf16(low).bits | uint32_t{to_bf16(high).bits} << 16;
}

__device__ inline uint32_t* words_of(const PackedMatrix& p, int64_t panel) {
    return reinterpret_cast<uint32_t*>(const_cast<char*>(p.panel(panel)));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) linear_pack_kernel(LinearPackArgs a) {
    __shared__ uint32_t word[kWidth][kWidth + 1];
    const bool is_f32 = a.packed.kind == PackedKind::kF32;
    const int warp = static_cast<int>(threadIdx.x) / kWarp,
              lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t row0 = int64_t{blockIdx.y} * kWidth, word0 = int64_t{blockIdx.x} * kWidth;
    const int64_t K = a.packed.K, words = is_f32 ? K : (K + 1) / 2;
#pragma unroll
    for (int i = warp; i < kWidth; i += kWarps) {
        const int64_t row = row0 + i, at = word0 + lane;
        if (row >= a.weight.rows || at >= words) continue;
        const T* w = row_ptr<T>(a.weight, row);
        const int64_t k = 2 * at;
        word[i][lane] = is_f32 ? bits_of(to_float(w[at]))
                               : pair_of(to_float(w[k]), k + 1 < K ? to_float(w[k + 1]) : 0.0f);
    }
    __syncthreads();
#pragma unroll
    for (int i = warp; i < kWidth; i += kWarps) {
        const int64_t row = row0 + lane, at = word0 + i;
        if (row >= a.weight.rows || at >= words) continue;
        const int64_t n = place(a, row);
        words_of(a.packed, n / kWidth)[at * kWidth + n % kWidth] = word[lane][i];
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) linear_pack_int8_kernel(LinearPackArgs a) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t row = thread_of_grid() / kWarp, K = a.packed.K;
    if (row >= a.weight.rows) return;  // the whole warp
    const T* w = row_ptr<T>(a.weight, row);
    float largest = 0.0f;
    for (int64_t k = lane; k < K; k += kWarp) {
        const float size = fabsf(to_float(w[k]));
        largest = size > largest ? size : largest;
    }
    const float scale = warp_max(largest) / kMaxI8, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const int64_t n = place(a, row);
    auto* out = reinterpret_cast<int8_t*>(words_of(a.packed, n / kWidth)) + 2 * (n % kWidth);
    for (int64_t k = lane; k < K; k += kWarp) {
        const float q = rintf(to_float(w[k]) * inverse);
        out[k / 2 * 2 * kWidth + k % 2] = static_cast<int8_t>(fminf(fmaxf(q, -kMaxI8), kMaxI8));
    }
    if (lane == 0) a.packed.scale[n] = scale;
}

// Rows k and k + 1 of the packed matrix's K, of which the weight may hold one.
template <typename T>
__global__ void __launch_bounds__(kThreads) linear_pack_columns_kernel(LinearPackColumnsArgs a) {
    const int64_t n = thread_of_grid(), pair = a.first / 2 + int64_t{blockIdx.y};
    if (n >= a.packed.N) return;
    const int64_t end = a.first + a.weight.rows;
    const bool is_f32 = a.packed.kind == PackedKind::kF32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int64_t k = 2 * pair + i;
        if (k < a.first || k >= end) continue;
        const float v = to_float(row_ptr<T>(a.weight, k - a.first)[n]);
        uint32_t* panel = words_of(a.packed, n / kWidth) + n % kWidth;
        if (is_f32) {
            panel[k * kWidth] = bits_of(v);
        } else {
            reinterpret_cast<bf16*>(panel + pair * kWidth)[i] = to_bf16(v);
        }
    }
}

// Output n of a packed matrix: its lane at k = 0; the next k, or pair of them, is kWidth words on.
__device__ inline const uint32_t* lane_of(const PackedMatrix& p, int64_t n, bool gated) {
    const int64_t half = p.N / 2;
    const int64_t at = !gated     ? n
                       : n < half ? n / kHalf * kWidth + n % kHalf
                                  : (n - half) / kHalf * kWidth + kHalf + (n - half) % kHalf;
    return words_of(p, at / kWidth) + at % kWidth;
}

__device__ inline uint32_t half_of(const LinearTransposeArgs& a, int64_t n, int64_t k) {
    if (n >= a.from.N || k / 2 >= (a.from.K + 1) / 2) return 0;
    return lane_of(a.from, n, a.gated)[k / 2 * kWidth] >> (k % 2 * 16) & 0xffffu;
}

// Word `at` of panel blockIdx.y of `to`: outputs are k of `from`, its K are outputs of `from`.
__global__ void __launch_bounds__(kThreads) linear_transpose_kernel(LinearTransposeArgs a) {
    const bool is_f32 = a.from.kind == PackedKind::kF32;
    const int64_t at = thread_of_grid(), n = at / kWidth * (is_f32 ? 1 : 2);
    const int64_t panel = int64_t{blockIdx.y}, k = panel * kWidth + at % kWidth;
    if (n >= a.from.N) return;
    uint32_t word;
    if (is_f32) {
        word = k < a.from.K ? lane_of(a.from, n, a.gated)[k * kWidth] : 0;
    } else {
        word = half_of(a, n, k) | half_of(a, n + 1, k) << 16;
    }
    words_of(a.to, panel)[at] = word;
}

}  // namespace

int linear_pack(const LinearPackArgs& a, void* stream) {
    if (a.weight.rows == 0) return cudaSuccess;
    int status = cudaSuccess;
    dispatch_dtype(a.weight.dtype, [&]<typename T>(T*) {
        if (a.packed.kind == PackedKind::kI8) {
            const dim3 grid(ceil_div(a.weight.rows, kWarps));
            status = launch(linear_pack_int8_kernel<T>, grid, kThreads, stream, a);
            return;
        }
        const int64_t words = a.packed.kind == PackedKind::kF32 ? a.packed.K : (a.packed.K + 1) / 2;
        const dim3 grid(ceil_div(words, kWidth), ceil_div(a.weight.rows, kWidth));
        status = launch(linear_pack_kernel<T>, grid, kThreads, stream, a);
    });
    return status;
}

int linear_pack_columns(const LinearPackColumnsArgs& a, void* stream) {
    if (a.weight.rows == 0) return cudaSuccess;
    const int64_t pairs = (a.first + a.weight.rows + 1) / 2 - a.first / 2;
    const dim3 grid(ceil_div(a.packed.N, kThreads), static_cast<unsigned>(pairs));
    int status = cudaSuccess;
    dispatch_dtype(a.weight.dtype, [&]<typename T>(T*) {
        status = launch(linear_pack_columns_kernel<T>, grid, kThreads, stream, a);
    });
    return status;
}

int linear_transpose(const LinearTransposeArgs& a, void* stream) {
    if (a.to.N == 0 || a.from.N == 0) return cudaSuccess;
    const int64_t rows = a.from.kind == PackedKind::kF32 ? a.from.N : (a.from.N + 1) / 2;
    const dim3 grid(ceil_div(rows * kWidth, kThreads), static_cast<unsigned>(a.to.panels()));
    return launch(linear_transpose_kernel, grid, kThreads, stream, a);
}

}  // namespace pe::cuda
