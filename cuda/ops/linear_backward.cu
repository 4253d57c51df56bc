// Layout  dweight, bf16, on tensor cores: a block makes 64 x 64 of it, walking all places in order, 32 at a time, fetched ahead. A
//         place is a row of x and of dy, or none: a group begins at a multiple of 16, so that a step of the tensor core holds rows
//         of one group, and steps without a row are left out. Where groups are cut into calls then changes no step.
//         Operands stand in shared memory as they do in memory, tokens down; ldmatrix turns them over.
//         f32: gemm_tile.cuh's plain FMAs, a token a step, as on the CPU. dbias: a thread per column.
// Order   one accumulator an element, from dweight's old value; no atomics.
#include "pyengine/ops/linear.h"

#include "common/gemm_tile.cuh"
#include "common/launch.cuh"
#include "common/mma.cuh"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;

// Groups stand apart by this much, whatever their sizes, so that no sum over them is needed: group g is at
// round_up(first row, 16) + 16 g.
constexpr int64_t kStep = kMmaDepth;
constexpr int kPlaces = 32;  // of a stage

// In whole stages.
int64_t num_places(int64_t rows, int64_t groups) {
    const int64_t used = rows + kStep - 1 + kStep * groups;
    return (used + kPlaces - 1) / kPlaces * kPlaces;
}

__device__ inline int64_t place_of_group(const int64_t* first, int64_t g) {
    return (first[g] + kStep - 1) / kStep * kStep + kStep * g;
}

// Which row stands at each place; -1: none.
__global__ void __launch_bounds__(kThreads)
    linear_places_kernel(VectorView groups, int32_t* row_at, int64_t places) {
    const int64_t place = int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
    if (place >= places) return;
    const int64_t* first = ptr<int64_t>(groups);
    int64_t low = 0,
            high = groups.size -
                   1;  // the last group that begins at or before the place is in [low, high)
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (place_of_group(first, middle) <= place) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const int64_t row = first[low] + place - place_of_group(first, low);
    const bool present = row >= first[low] && row < first[low + 1];
    row_at[place] = present ? static_cast<int32_t>(row) : -1;
}

constexpr int kSide = 64;  // of a block's part of dweight
constexpr int kStages = 4;
constexpr int kWeightThreads = 128;  // 2 x 2 warps, 32 x 32 each
constexpr int kChunks = kSide / 8;   // of 16 bytes in a row of a stage

// Columns [first, first + 64) of 32 places of a matrix. Eight rows' chunks would meet in the same banks.
struct Slab {
    alignas(16) bf16 value[kPlaces * kSide];

    __device__ static int at(int place, int chunk) {
        return place * kSide + (chunk ^ place % kChunks) * 8;
    }
};

struct Stage {
    Slab dy, x;
};

template <typename T>
__device__ void fetch(Slab& to, const MatrixView& m, int64_t first, const int32_t* row_at) {
    const bool aligned = sizeof(T) == 2 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0 &&
                         m.row_stride % 8 == 0 && first % 8 == 0;
    for (int i = static_cast<int>(threadIdx.x); i < kPlaces * kChunks; i += kWeightThreads) {
        const int place = i / kChunks, chunk = i % kChunks;
        const int64_t row = row_at[place], column = first + chunk * 8;
        bf16* out = to.value + Slab::at(place, chunk);
        const bool whole = row >= 0 && column + 8 <= m.cols;
        const T* from = row_ptr<T>(m, row >= 0 ? row : 0) + (column < m.cols ? column : 0);
        if (aligned && (whole || row < 0 || column >= m.cols)) {
            copy_async_16(out, from, whole);
            continue;
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const bool present = row >= 0 && column + e < m.cols;
            out[e] = present ? to_bf16(to_float(from[e])) : bf16{0};
        }
    }
}

template <typename S>
__global__ void __launch_bounds__(kWeightThreads, 1)
    linear_dweight_kernel(LinearBackwardArgs a, const int32_t* row_at, int64_t places) {
    __shared__ Stage stages[kStages];
    const int warp = static_cast<int>(threadIdx.x) / kWarp,
              lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t n0 = int64_t{blockIdx.x} * kSide, k0 = int64_t{blockIdx.y} * kSide;
    const int row0 = warp / 2 * 32, column0 = warp % 2 * 32;  // of the warp, within the block
    FragmentC sums[2][4] = {};
    const auto each_sum = [&](const auto& f) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int64_t n = n0 + row0 + i * kMmaRows + mma_row(lane, e);
                    const int64_t k = k0 + column0 + j * kMmaColumns + mma_column(lane, e);
                    if (n < a.dy.cols && k < a.x.cols)
                        f(row_ptr<float>(a.dweight, n)[k], sums[i][j].c[e]);
                }
            }
        }
    };
    each_sum([](const float& old, float& sum) { sum = old; });
    const int64_t steps = places / kPlaces;
    const auto fetch_stage = [&](int64_t step) {
        if (step < steps) {
            Stage& to = stages[step % kStages];
            fetch<S>(to.dy, a.dy, n0, row_at + step * kPlaces);
            fetch<bf16>(to.x, a.x, k0, row_at + step * kPlaces);
        }
        commit_copies();
    };
    for (int i = 0; i < kStages - 1; ++i) fetch_stage(i);
    for (int64_t step = 0; step < steps; ++step) {
        wait_for_copies<kStages - 2>();
        __syncthreads();  // all have read the stage that is fetched next
        fetch_stage(step + kStages - 1);
        const Stage& stage = stages[step % kStages];
#pragma unroll
        for (int half = 0; half < kPlaces / kMmaDepth; ++half) {
            if (row_at[step * kPlaces + half * kStep] < 0)
                continue;  // no row: nothing is added, not even zeros
            // Of four 8 x 8 matrices: dy's go right, then down; x's go down, then right.
            const int down = half * kMmaDepth + lane % 8;
            FragmentA left[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int chunk = (row0 + i * kMmaRows) / 8 + lane / 8 % 2;
                load_matrices_transposed(left[i].a,
                                         stage.dy.value + Slab::at(down + lane / 16 * 8, chunk));
            }
            uint32_t right[2][4];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int chunk = column0 / 8 + j * 2 + lane / 16;
                load_matrices_transposed(right[j],
                                         stage.x.value + Slab::at(down + lane / 8 % 2 * 8, chunk));
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint32_t* b = right[j / 2] + j % 2 * 2;
                    mma_bf16(sums[i][j], left[i], FragmentB{{b[0], b[1]}});
                }
            }
        }
    }
    wait_for_copies<0>();
    each_sum([](float& out, const float& sum) { out = sum; });
}

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
    const int status = launch(linear_places_kernel, dim3(ceil_div(places, kThreads)), kThreads,
                              stream, a.groups, row_at, places);
    if (status != cudaSuccess) return status;
    const dim3 grid(ceil_div(N, kSide), ceil_div(K, kSide));
    const auto* known = static_cast<const int32_t*>(row_at);
    return launch(linear_dweight_kernel<S>, grid, kWeightThreads, stream, a, known, places);
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
