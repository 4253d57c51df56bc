// Layout  dweight, bf16, on tensor cores: tensor_dweight.cuh.
//         f32: gemm_tile.cuh's plain FMAs, a token a step, as on the CPU. dbias: a thread per column.
// Order   one accumulator an element, from dweight's old value; no atomics.
#include "pyengine/ops/linear.h"

#include "common/gemm_tile.cuh"
#include "common/launch.cuh"
#include "common/tensor_dweight.cuh"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;

constexpr int kPlainRows = 64, kPlainColumns = 128;

template <typename S>
__global__ void __launch_bounds__(kTileThreads, 2)
    linear_dweight_plain_kernel(LinearBackwardArgs a) {
    using Product = Tile<kPlainRows, PlainColumns<kPlainColumns>>;
    __shared__ Product::Shared s;
    Product tile{};
    const int64_t N = a.dy.cols, K = a.x.cols;
    const int64_t row = int64_t{blockIdx.x} * kPlainRows,
                  column = int64_t{blockIdx.y} * kPlainColumns;
    for_each_output(tile, row, N, column, K, [&](int64_t n, int64_t k, float& sum) {
        sum = row_ptr<float>(a.dweight, n)[k];
    });
    const Operand<S, false> dy{row_ptr<S>(a.dy, 0), a.dy.row_stride, N};
    const Operand<float, false> x{row_ptr<float>(a.x, 0), a.x.row_stride, K};
    tile.multiply(s, dy, row, x, column, a.x.rows);
    for_each_output(tile, row, N, column, K, [&](int64_t n, int64_t k, float& sum) {
        row_ptr<float>(a.dweight, n)[k] = sum;
    });
}

template <typename S>
__global__ void __launch_bounds__(kThreads) linear_dbias_kernel(LinearBackwardArgs a) {
    const int64_t n = int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
    if (n >= a.dy.cols) return;
    float total = ptr<float>(a.dbias)[n];
#pragma unroll 8
    for (int64_t t = 0; t < a.dy.rows; ++t) total = total + to_float(row_ptr<S>(a.dy, t)[n]);
    ptr<float>(a.dbias)[n] = total;
}

template <typename S>
int launch_dweight(const LinearBackwardArgs& a, void* stream) {
    const int64_t N = a.dy.cols, K = a.x.cols;
    if (a.x.dtype == DType::kF32) {
        const dim3 grid(ceil_div(N, kPlainRows), ceil_div(K, kPlainColumns));
        return launch(linear_dweight_plain_kernel<S>, grid, kTileThreads, stream, a);
    }
    const int64_t places = num_places(a.x.rows, a.groups.size - 1);
    auto* row_at = static_cast<int32_t*>(a.workspace);
    const int status = find_places(a.groups, a.x.rows, row_at, places, stream);
    if (status != cudaSuccess) return status;
    return launch_tensor_dweight<S, false>({a.dy, a.x, a.dweight, row_at, places}, stream);
}

// silu_gate_backward and gelu_tanh_backward of the CPU, one lane of them.
__device__ inline void silu_gate_backward(float dy, float gate, float up, float* dgate,
                                          float* dup) {
    const float s = times_sigmoid(1.0f, max_of(-150.0f, gate));
    *dup = dy * (gate * s);
    *dgate = (dy * up) * (s * fmaf(gate, 1.0f - s, 1.0f));
}

__device__ inline float gelu_tanh_backward(float dy, float x) {
    x = max_of(-15.0f, x < 15.0f ? x : 15.0f);
    const float square = x * x;
    const float z = x * fmaf(square, 0.07135481627f, 1.5957691216f);
    const float s = times_sigmoid(1.0f, max_of(-150.0f, z));
    const float slope = fmaf(square, 0.21406444881f, 1.5957691216f);
    return dy * fmaf(x * s * (1.0f - s), slope, s);
}

template <typename Y, typename V, typename X>
__global__ void __launch_bounds__(kThreads)
    linear_activation_backward_kernel(LinearActivationBackwardArgs a) {
    const int64_t n = int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x),
                  t = int64_t{blockIdx.y}, N = a.dy.cols;
    if (n >= N) return;
    const float dy = to_float(row_ptr<Y>(a.dy, t)[n]);
    const float first = to_float(row_ptr<V>(a.kept[0], t)[n]);
    X* dx = row_ptr<X>(a.dx, t);
    if (!a.kept[1]) {
        if (a.y) store_float(row_ptr<V>(a.y, t) + n, gelu_tanh_f32(first));
        return store_float(dx + n, gelu_tanh_backward(dy, first));
    }
    const float up = to_float(row_ptr<V>(a.kept[1], t)[n]);
    if (a.y) store_float(row_ptr<V>(a.y, t) + n, silu_f32(first) * up);
    float dgate, dup;
    silu_gate_backward(dy, first, up, &dgate, &dup);
    store_float(dx + n, dgate);
    store_float(dx + N + n, dup);
}

}  // namespace

int64_t linear_backward_workspace_bytes(int64_t rows, int64_t, int64_t, int64_t groups, DType x) {
    const int64_t places = num_places(rows, groups);
    return x == DType::kF32 ? 0 : places * static_cast<int64_t>(sizeof(int32_t));
}

int linear_backward(const LinearBackwardArgs& a, void* stream) {
    int status = cudaSuccess;
    if (a.x.rows == 0 || a.dy.cols == 0) return status;
    dispatch_dtype(a.dy.dtype, [&]<typename S>(S*) {
        if (a.dweight) status = launch_dweight<S>(a, stream);
        if (!a.dbias || status != cudaSuccess) return;
        status = launch(linear_dbias_kernel<S>, dim3(ceil_div(a.dy.cols, kThreads)), kThreads,
                        stream, a);
    });
    return status;
}

int linear_activation_backward(const LinearActivationBackwardArgs& a, void* stream) {
    if (a.dy.rows == 0 || a.dy.cols == 0) return cudaSuccess;
    const dim3 grid(ceil_div(a.dy.cols, kThreads), static_cast<unsigned>(a.dy.rows));
    int status = cudaSuccess;
    dispatch_dtype(a.dy.dtype, [&]<typename Y>(Y*) {
        dispatch_dtype(a.kept[0].dtype, [&]<typename V>(V*) {
            dispatch_dtype(a.dx.dtype, [&]<typename X>(X*) {
                status =
                    launch(linear_activation_backward_kernel<Y, V, X>, grid, kThreads, stream, a);
            });
        });
    });
    return status;
}

}  // namespace pe::cuda
