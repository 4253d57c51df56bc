// Layout  f32: a warp has one key and kv head for dk and dv, one row and head for dq, whose elements its lanes keep. It walks the
//         rows that see the key, or the keys that the row sees, 32 at a time: a lane makes both dot products of one of them.
// Bits    the CPU's, where no product is a denormal number.
#include "common/attention_trees.cuh"
#include "common/launch.cuh"

namespace pe::cuda {
namespace {

constexpr int kPlainWarps = 4;
constexpr int kMostOfLane = static_cast<int>(kMaxHeadDim) / kWarp;  // of a head's elements

// A chain along head_dim, an element a step.
__device__ inline float dot(const MatrixView& x, int64_t i, int64_t ix, const MatrixView& y,
                            int64_t j, int64_t jy, int64_t head_dim) {
    float sum = 0.0f;
    for (int64_t d = 0; d < head_dim; ++d)
        sum = fmaf(read_value(x, i, ix + d), read_value(y, j, jy + d), sum);
    return sum;
}

// What one row and one key give each other.
struct Pair {
    float p = 0.0f, ds = 0.0f;
};

__device__ inline Pair pair_of(const AttentionBackwardArgs& a, const float* delta, int64_t row,
                               int64_t head, int64_t key) {
    const int64_t D = a.head_dim, kv = head / (a.num_heads / a.num_kv_heads);
    const float score = dot(a.q, row, head * D, a.k, key, kv * D, D);
    const float dp = dot(a.dout, row, head * D, a.v, key, kv * D, D);
    const float p = exp_f32(score * a.scale - row_ptr<float>(a.lse, row)[head]);
    return {p, p * (dp - delta[row * a.num_heads + head])};
}

// sums[i] of element i * 32 + lane: the chain goes on over the lanes' partners, the lowest first. weight(lane's pair), other(its row)
template <typename Row>
__device__ void add_chain(float (&sum)[kMostOfLane], int64_t head_dim, int count, float weight,
                          const MatrixView& m, int64_t column, const Row& row) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int j = 0; j < count; ++j) {
        const float w = __shfl_sync(kAllLanes, weight, j);
#pragma unroll
        for (int i = 0; i < kMostOfLane; ++i) {
            const int64_t d = i * kWarp + lane;
            if (d < head_dim) sum[i] = fmaf(w, read_value(m, row(j), column + d), sum[i]);
        }
    }
}

__device__ inline void write_sums(const MatrixView& m, int64_t row, int64_t column,
                                  int64_t head_dim, const float (&sum)[kMostOfLane], float scale) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kMostOfLane; ++i) {
        const int64_t d = i * kWarp + lane;
        if (d < head_dim) write_value(m, row, column + d, sum[i] * scale);
    }
}

__global__ void __launch_bounds__(kPlainWarps* kWarp)
    attention_plain_dkv_kernel(AttentionBackwardArgs a, const float* delta) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t item = int64_t{blockIdx.x} * kPlainWarps + static_cast<int>(threadIdx.x) / kWarp;
    if (item >= a.q.rows * a.num_kv_heads) return;  // the whole warp
    const int64_t key = item / a.num_kv_heads, kv = item % a.num_kv_heads;
    const int64_t D = a.head_dim, G = a.num_heads / a.num_kv_heads;
    const Trees trees(a);
    const int s = static_cast<int>(
        last_not_after(trees.sequences, key, [&](int64_t i) { return int64_t{trees.cu[i]}; }));
    const TreeRows own = trees.part(s, static_cast<int>(key) - trees.cu[s], 1);
    float dk[kMostOfLane] = {}, dv[kMostOfLane] = {};
    for (int64_t head = kv * G; head < (kv + 1) * G; ++head) {
        float of_k[kMostOfLane] = {}, of_v[kMostOfLane] = {};
        trees.for_each_reader(own, kWarp, [&](const TreeRows& rows) {
            const bool present =
                lane < rows.count && trees.sees(rows.position + lane, own.position);
            const Pair x = present ? pair_of(a, delta, rows.row + lane, head, key) : Pair{};
            const auto row = [&](int j) { return int64_t{rows.row} + j; };
            add_chain(of_v, D, rows.count, x.p, a.dout, head * D, row);
            add_chain(of_k, D, rows.count, x.ds, a.q, head * D, row);
        });
#pragma unroll
        for (int i = 0; i < kMostOfLane; ++i) {
            dk[i] = head == kv * G ? of_k[i] : dk[i] + of_k[i];
            dv[i] = head == kv * G ? of_v[i] : dv[i] + of_v[i];
        }
    }
    write_sums(a.dk, key, kv * D, D, dk, a.scale);
    write_sums(a.dv, key, kv * D, D, dv, 1.0f);
}

__global__ void __launch_bounds__(kPlainWarps* kWarp)
    attention_plain_dq_kernel(AttentionBackwardArgs a, const float* delta) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t item = int64_t{blockIdx.x} * kPlainWarps + static_cast<int>(threadIdx.x) / kWarp;
    if (item >= a.q.rows * a.num_heads) return;  // the whole warp
    const int64_t row = item / a.num_heads, head = item % a.num_heads;
    const int64_t D = a.head_dim, kv = head / (a.num_heads / a.num_kv_heads);
    const Trees trees(a);
    const int s = static_cast<int>(
        last_not_after(trees.sequences, row, [&](int64_t i) { return int64_t{trees.cu[i]}; }));
    const TreeRows own = trees.part(s, static_cast<int>(row) - trees.cu[s], 1);
    float dq[kMostOfLane] = {};
    trees.for_each_seen(own, kWarp, [&](const TreeRows& keys) {
        const bool present = lane < keys.count && trees.sees(own.position, keys.position + lane);
        const Pair x = present ? pair_of(a, delta, row, head, keys.row + lane) : Pair{};
        add_chain(dq, D, keys.count, x.ds, a.k, kv * D,
                  [&](int j) { return int64_t{keys.row} + j; });
    });
    write_sums(a.dq, row, head * D, D, dq, a.scale);
}

}  // namespace

int attention_plain_backward(const AttentionBackwardArgs& a, const float* delta, void* stream) {
    constexpr int kThreads = kPlainWarps * kWarp;
    const dim3 keys(ceil_div(a.q.rows * a.num_kv_heads, kPlainWarps));
    const int status = launch(attention_plain_dkv_kernel, keys, kThreads, stream, a, delta);
    if (status != cudaSuccess) return status;
    const dim3 rows(ceil_div(a.q.rows * a.num_heads, kPlainWarps));
    return launch(attention_plain_dq_kernel, rows, kThreads, stream, a, delta);
}

}  // namespace pe::cuda
