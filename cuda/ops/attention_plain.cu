// Layout  f32 pages: a warp a row and head, whose lanes have keys for the scores and elements for the sums.
// Bits    the CPU's.
#include "common/attention_pages.cuh"
#include "common/launch.cuh"

namespace pe::cuda {
namespace {

constexpr int kPlainWarps = 4;
constexpr int kMostOfLane = static_cast<int>(kMaxHeadDim) / kWarp;  // of a head's elements

__global__ void __launch_bounds__(kPlainWarps* kWarp)
    attention_plain_kernel(AttentionForwardArgs a) {
    __shared__ float weights[kPlainWarps][kBlock];
    const int warp = static_cast<int>(threadIdx.x) / kWarp,
              lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t item = int64_t{blockIdx.x} * kPlainWarps + warp;
    if (item >= a.q.rows * a.num_heads) return;  // the whole warp
    const int64_t t = item / a.num_heads, head = item % a.num_heads;
    const int32_t* cu = ptr<int32_t>(a.cu_seqlens);
    const int64_t sequence =
        last_not_after(a.first_positions.size, t, [&](int64_t s) { return int64_t{cu[s]}; });
    const int64_t last = ptr<int32_t>(a.first_positions)[sequence] + t - cu[sequence];
    const int64_t D = a.keys.head_dim, hd = padded_head_dim(D), P = a.keys.page_tokens;
    const int32_t* table = row_ptr<int32_t>(a.block_tables, sequence);
    const int64_t kv_head = head / (a.num_heads / a.keys.heads);
    const Paged keys{a.keys, table, kv_head}, values{a.values, table, kv_head};
    float largest = -infinity(), total = 0.0f, sum[kMostOfLane] = {};
    for (int64_t begin = start_of(a.window, last); begin <= last; begin += kBlock) {
        float x[2];  // of keys `lane` and 32 + lane
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int64_t key = begin + h * kWarp + lane;
            x[h] = -infinity();
            if (!sees(a.window, last, key)) continue;
            const auto* k = reinterpret_cast<const float*>(keys.page_of(key)) + key % P;
            float dot = 0.0f;
            for (int64_t d = 0; d < D; ++d)
                dot = fmaf(read_value(a.q, t, head * D + d), k[d * P], dot);
            x[h] = dot * a.scale;
        }
        const float most = warp_max(max_of(x[0], x[1]));
        const float next = largest > most ? largest : most;
        const float base = next == -infinity() ? 0.0f : next, factor = exp_f32(largest - base);
        largest = next;
        float folded[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            x[h] = exp_f32(x[h] - base);
            weights[warp][h * kWarp + lane] = x[h];
            folded[h] = x[h] + __shfl_xor_sync(kAllLanes, x[h], 16);
        }
        total = total * factor + (folded[0] + folded[1]);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kMostOfLane; ++i) {
            const int64_t d = i * kWarp + lane;
            if (d >= D) continue;
            sum[i] = sum[i] * factor;
            for (int j = 0; j < kBlock && begin + j <= last; ++j) {
                const int64_t key = begin + j;
                const auto* v = reinterpret_cast<const float*>(values.page_of(key)) + key % P * hd;
                sum[i] = fmaf(weights[warp][j], v[d], sum[i]);
            }
        }
        __syncwarp();  // the next block writes weights
    }
    total = fold16(total);
#pragma unroll
    for (int i = 0; i < kMostOfLane; ++i) {
        const int64_t d = i * kWarp + lane;
        if (d < D) write_value(a.out, t, head * D + d, sum[i] / total);
    }
    if (a.lse && lane == 0) row_ptr<float>(a.lse, t)[head] = largest + log_f32(total);
}

}  // namespace

int attention_plain_forward(const AttentionForwardArgs& a, void* stream) {
    const dim3 grid(ceil_div(a.q.rows * a.num_heads, kPlainWarps));
    return launch(attention_plain_kernel, grid, kPlainWarps * kWarp, stream, a);
}

}  // namespace pe::cuda
