// Layout  a thread turns one pair; the pairs of a row, head by head, are neighbours, so a warp reads
//         two runs of neighbouring addresses.
#include "pyengine/ops/rope.h"

#include "common/launch.cuh"
#include "common/math.cuh"

namespace pe::cuda {
namespace {

constexpr int kThreads = 256;

template <typename X, typename Y>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeArgs a) {
    const int64_t half = a.head_dim / 2, pairs = a.x.cols / 2;  // pairs of a row
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t row = n / pairs, pair = n % pairs;
    if (row >= a.x.rows) return;
    const int64_t i = pair % half, at = pair / half * a.head_dim + i;
    const int64_t position = ptr<int64_t>(a.positions)[row];
    const bool known = position >= 0 && position < a.cos.rows;
    const float nan = infinity() - infinity();
    const float cos = known ? row_ptr<float>(a.cos, position)[i] : nan;
    const float sin = known ? row_ptr<float>(a.sin, position)[i] * (a.inverse ? -1.0f : 1.0f) : nan;
    const float left = to_float(row_ptr<X>(a.x, row)[at]);
    const float right = to_float(row_ptr<X>(a.x, row)[at + half]);
    store_float(row_ptr<Y>(a.y, row) + at, rope_left(left, right, cos, sin));
    store_float(row_ptr<Y>(a.y, row) + at + half, rope_right(left, right, cos, sin));
}

}  // namespace

int rope(const RopeArgs& a, void* stream) {
    if (a.x.rows == 0 || a.x.cols == 0) return cudaSuccess;
    int status = cudaSuccess;
    dispatch_dtype(a.x.dtype, [&]<typename X>(X*) {
        dispatch_dtype(a.y.dtype, [&]<typename Y>(Y*) {
            status = launch(rope_kernel<X, Y>, dim3(ceil_div(a.x.rows * (a.x.cols / 2), kThreads)),
                            kThreads, stream, a);
        });
    });
    return status;
}

}  // namespace pe::cuda
