// Gradients of weights on tensor cores: a block makes 64 x 64 of one, walking all places in order, 32 at a time, fetched ahead. A place
// is a row of x and of dy, or none: a group begins at a multiple of 16, so that a step of the tensor core holds rows of one group,
// and steps without a row are left out. Where groups are cut into calls, or places into several launches, then changes no step.
// Operands stand in shared memory as they do in memory, tokens down; ldmatrix turns them over.
//
// One accumulator an element, from dweight's old value; no atomics.
#pragma once

#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/mma.cuh"
#include "pyengine/view.h"

namespace pe::cuda {
namespace {

constexpr int kPlaceThreads = 256;

// Groups stand apart by this much, whatever their sizes, so that no sum over them is needed: group g is at
// round_up(first row, 16) + 16 g.
constexpr int64_t kStep = kMmaDepth;
constexpr int kPlaces = 32;  // of a stage

// In whole stages.
inline int64_t num_places(int64_t rows, int64_t groups) {
    const int64_t used = rows + kStep - 1 + kStep * groups;
    return (used + kPlaces - 1) / kPlaces * kPlaces;
}

__device__ inline int64_t place_of_group(const int64_t* first, int64_t g) {
    return (first[g] + kStep - 1) / kStep * kStep + kStep * g;
}

// Which row stands at each place; -1: none. Groups that are null: one of `rows`.
__global__ void __launch_bounds__(kPlaceThreads)
    places_kernel(VectorView groups, int64_t rows, int32_t* row_at, int64_t places) {
    const int64_t place = int64_t{blockIdx.x} * kPlaceThreads + static_cast<int>(threadIdx.x);
    if (place >= places) return;
    if (!groups) {
        row_at[place] = place < rows ? static_cast<int32_t>(place) : -1;
        return;
    }
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
    // Nobody has looked at the groups: what is no row is none.
    const bool present = row >= first[low] && row < first[low + 1] && row >= 0 && row < rows;
    row_at[place] = present ? static_cast<int32_t>(row) : -1;
}

inline int find_places(const VectorView& groups, int64_t rows, int32_t* row_at, int64_t places,
                       void* stream) {
    return launch(places_kernel, dim3(ceil_div(places, kPlaceThreads)), kPlaceThreads, stream,
                  groups, rows, row_at, places);
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

// row(place): of m; -1: zeros.
template <typename T, typename Row>
__device__ void fetch_slab(Slab& to, const MatrixView& m, int64_t first, const Row& row_of) {
    const bool aligned = sizeof(T) == 2 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0 &&
                         m.row_stride % 8 == 0 && first % 8 == 0;
    for (int i = static_cast<int>(threadIdx.x); i < kPlaces * kChunks; i += kWeightThreads) {
        const int place = i / kChunks, chunk = i % kChunks;
        const int64_t row = row_of(place), column = first + chunk * 8;
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

// dweight (N, K) += dy^T . x over places, in order. `dy` has a row a place, or the rows of x where not BY_PLACE.
struct DweightProduct {
    MatrixView dy, x, dweight;
    const int32_t* row_at = nullptr;  // of x
    int64_t places = 0;               // whole stages
};

template <typename S, bool BY_PLACE>
__global__ void __launch_bounds__(kWeightThreads, 1) tensor_dweight_kernel(DweightProduct a) {
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
    const int64_t steps = a.places / kPlaces;
    const auto fetch_stage = [&](int64_t step) {
        if (step < steps) {
            Stage& to = stages[step % kStages];
            const int64_t from = step * kPlaces;
            const auto of_x = [&](int place) -> int64_t { return a.row_at[from + place]; };
            fetch_slab<S>(to.dy, a.dy, n0, [&](int place) -> int64_t {
                return BY_PLACE && of_x(place) >= 0 ? from + place : of_x(place);
            });
            fetch_slab<bf16>(to.x, a.x, k0, of_x);
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
            if (a.row_at[step * kPlaces + half * kStep] < 0)
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

template <typename S, bool BY_PLACE>
int launch_tensor_dweight(const DweightProduct& a, void* stream) {
    const dim3 grid(ceil_div(a.dweight.rows, kSide), ceil_div(a.dweight.cols, kSide));
    return launch(tensor_dweight_kernel<S, BY_PLACE>, grid, kWeightThreads, stream, a);
}

}  // namespace
}  // namespace pe::cuda
