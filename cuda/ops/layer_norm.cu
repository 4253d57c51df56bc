// Layout  forward, dx: 16 threads a row, lane i takes columns i, i+16, ...: the CPU's 16 lanes,
//         folded in its order, so both devices give the same bits, and a row's value does not
//         depend on the batch.
//         dweight, dbias: a block owns 32 columns. All its threads fetch a slab of rows into shared
//         memory, then one warp walks the slab's rows in order: one chain per element from the old
//         value, no atomics, no workspace.
#include "pyengine/ops/layer_norm.h"

#include "common/launch.cuh"
#include "common/math.cuh"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 16;
constexpr int kRowsPerBlock = kThreads / kLanes;
constexpr int kSlabRows = 64;

__device__ inline int64_t block_row() {
    return static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanes;
}

// Rounds up to whole groups of 16, in which absent columns take part as on the CPU.
__device__ inline int64_t padded(int64_t D) { return (D + kLanes - 1) / kLanes * kLanes; }

template <typename X, typename W, typename B, typename Y>
__global__ void __launch_bounds__(kThreads) layer_norm_forward_kernel(LayerNormForwardArgs a) {
    const int64_t row = block_row(), D = a.x.cols;
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const bool present = row < a.x.rows;  // absent rows stay for the folds
    const X* x = row_ptr<X>(a.x, present ? row : 0);
    const W* weight = ptr<W>(a.weight);
    const B* bias = ptr<B>(a.bias);
    float total = 0.0f;
#pragma unroll 8
    for (int64_t d = lane; d < padded(D); d += kLanes) {
        total = total + (d < D ? to_float(x[d]) : 0.0f);
    }
    const float mean = fold16(total) / static_cast<float>(D);
    float squares = 0.0f;
#pragma unroll 8
    for (int64_t d = lane; d < padded(D); d += kLanes) {
        const float v = (d < D ? to_float(x[d]) : mean) - mean;
        squares = fmaf(v, v, squares);
    }
    const float rstd = 1.0f / sqrtf(fold16(squares) / static_cast<float>(D) + a.eps);
    if (!present) return;
    Y* y = row_ptr<Y>(a.y, row);
#pragma unroll 4
    for (int64_t d = lane; d < D; d += kLanes) {
        const float x_hat = (to_float(x[d]) - mean) * rstd;
        store_float(y + d, fmaf(x_hat, to_float(weight[d]), to_float(bias[d])));
    }
    if (lane != 0) return;
    if (a.mean.data != nullptr) ptr<float>(a.mean)[row] = mean;
    if (a.rstd.data != nullptr) ptr<float>(a.rstd)[row] = rstd;
}

// With g = dy * weight:  dx = rstd * (g - mean(g) - (x - mean) * rstd^2 * mean(g * (x - mean)))
template <typename X, typename W, typename Y>
__global__ void __launch_bounds__(kThreads) layer_norm_dx_kernel(LayerNormBackwardArgs a) {
    const int64_t row = block_row(), D = a.x.cols;
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const bool present = row < a.x.rows;
    const X* x = row_ptr<X>(a.x, present ? row : 0);
    const Y* dy = row_ptr<Y>(a.dy, present ? row : 0);
    const W* weight = ptr<W>(a.weight);
    const float mean = ptr<float>(a.mean)[present ? row : 0];
    const float rstd = ptr<float>(a.rstd)[present ? row : 0];
    float total = 0.0f, dots = 0.0f;
#pragma unroll 4
    for (int64_t d = lane; d < padded(D); d += kLanes) {
        const float g = d < D ? to_float(dy[d]) * to_float(weight[d]) : 0.0f;
        total = total + g;
        dots = fmaf(g, (d < D ? to_float(x[d]) : 0.0f) - mean, dots);
    }
    const float g_mean = fold16(total) / static_cast<float>(D);
    const float pull = -rstd * rstd * (fold16(dots) / static_cast<float>(D));
    if (!present) return;
    X* dx = row_ptr<X>(a.dx, row);
#pragma unroll 4
    for (int64_t d = lane; d < D; d += kLanes) {
        const float g = to_float(dy[d]) * to_float(weight[d]);
        store_float(dx + d, fmaf(to_float(x[d]) - mean, pull, g - g_mean) * rstd);
    }
}

template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads) layer_norm_columns_kernel(LayerNormBackwardArgs a) {
    __shared__ float x_hat[kSlabRows][kWarp];
    __shared__ float dy[kSlabRows][kWarp];
    const int lane = static_cast<int>(threadIdx.x) % kWarp,
              warp = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t d = static_cast<int64_t>(blockIdx.x) * kWarp + lane, N = a.x.rows;
    const bool present = d < a.x.cols;
    const bool sums_weight = present && warp == 0 && a.dweight.data != nullptr;
    const bool sums_bias = present && warp == 0 && a.dbias.data != nullptr;
    float weight_total = sums_weight ? ptr<float>(a.dweight)[d] : 0.0f;
    float bias_total = sums_bias ? ptr<float>(a.dbias)[d] : 0.0f;
    for (int64_t slab = 0; slab < N; slab += kSlabRows) {
        const int rows = static_cast<int>(N - slab < kSlabRows ? N - slab : kSlabRows);
#pragma unroll 8
        for (int i = warp; i < rows; i += kThreads / kWarp) {
            const int64_t row = slab + i;
            const float x = present ? to_float(row_ptr<X>(a.x, row)[d]) : 0.0f;
            x_hat[i][lane] = (x - ptr<float>(a.mean)[row]) * ptr<float>(a.rstd)[row];
            dy[i][lane] = present ? to_float(row_ptr<Y>(a.dy, row)[d]) : 0.0f;
        }
        __syncthreads();
        if (warp == 0) {
#pragma unroll 8
            for (int i = 0; i < rows; ++i) {
                weight_total = fmaf(dy[i][lane], x_hat[i][lane], weight_total);
                bias_total = bias_total + dy[i][lane];
            }
        }
        __syncthreads();
    }
    if (sums_weight) ptr<float>(a.dweight)[d] = weight_total;
    if (sums_bias) ptr<float>(a.dbias)[d] = bias_total;
}

}  // namespace

int layer_norm_forward(const LayerNormForwardArgs& a, void* stream) {
    if (a.x.rows == 0) return cudaSuccess;
    int status = cudaSuccess;
    dispatch_dtype(a.x.dtype, [&]<typename X>(X*) {
        dispatch_dtype(a.weight.dtype, [&]<typename W>(W*) {
            dispatch_dtype(a.bias.dtype, [&]<typename B>(B*) {
                dispatch_dtype(a.y.dtype, [&]<typename Y>(Y*) {
                    status = launch(layer_norm_forward_kernel<X, W, B, Y>,
                                    dim3(ceil_div(a.x.rows, kRowsPerBlock)), kThreads, stream, a);
                });
            });
        });
    });
    return status;
}

int layer_norm_backward(const LayerNormBackwardArgs& a, void* stream) {
    if (a.x.rows == 0) return cudaSuccess;
    int status = cudaSuccess;
    dispatch_dtype(a.x.dtype, [&]<typename X>(X*) {
        dispatch_dtype(a.dy.dtype, [&]<typename Y>(Y*) {
            if (a.dx) {
                dispatch_dtype(a.weight.dtype, [&]<typename W>(W*) {
                    status = launch(layer_norm_dx_kernel<X, W, Y>,
                                    dim3(ceil_div(a.x.rows, kRowsPerBlock)), kThreads, stream, a);
                });
            }
            if ((a.dweight || a.dbias) && status == cudaSuccess) {
                status = launch(layer_norm_columns_kernel<X, Y>, dim3(ceil_div(a.x.cols, kWarp)),
                                kThreads, stream, a);
            }
        });
    });
    return status;
}

}  // namespace pe::cuda
