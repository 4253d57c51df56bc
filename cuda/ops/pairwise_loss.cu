// Layout  losses, slopes: a thread a comparison, computed alone with the CPU's formulas in its order.
//         dsums: a thread a response, which goes through all comparisons, and their operands within, and adds those that are
//         its own: the CPU's order, one chain from 0, no atomics. A block owns 128 responses; all its threads fetch a tile of
//         comparisons into shared memory, and a tile that has none of the block's responses is not gone through. So the
//         work is at most responses times comparisons: some 70 million steps, small beside a layer, at 4,096 pairs of two
//         responses each, and 100 times that at 40,000 unless the pairs of a response lie near each other, as groups do.
#include "pyengine/ops/pairwise_loss.h"

#include "common/launch.cuh"
#include "common/math.cuh"
#include "pyengine/ops/pairwise_loss_families.h"

namespace pe::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 1024;  // operands of comparisons

// What a launch takes: the logarithms of parameters are made on the host.
struct Call {
    PairwiseLossArgs args;
    PairFunction functions[kPairTerms];
};
static_assert(sizeof(Call) <= 4096, "a kernel's parameters");

struct Scalars {
    using F = float;
    __device__ static float all(float x) { return x; }
    __device__ static float abs(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
    __device__ static float exp(float x) { return exp_f32(x); }
    __device__ static float log(float x) { return log_f32(x); }
    __device__ static float fma(float a, float b, float c) { return fmaf(a, b, c); }
    __device__ static float max(float a, float b) { return max_of(a, b); }
    __device__ static float min(float a, float b) { return a < b ? a : b; }
};

__device__ inline double read(const void* data, DType dtype, int64_t i) {
    return dtype == DType::kF64 ? static_cast<const double*>(data)[i]
                                : static_cast<double>(static_cast<const float*>(data)[i]);
}

__device__ inline double read(const PairCoefficient& coefficient, int64_t c) {
    return coefficient.data == nullptr ? coefficient.value
                                       : read(coefficient.data, coefficient.dtype, c);
}

__device__ inline double rho_of(const PairOperand& o, int64_t c) {
    const int64_t j = o.index.data == nullptr ? c : ptr<int64_t>(o.index)[c];
    const double policy = read(o.policy.data, o.policy.dtype, j);
    if (o.reference.data == nullptr) return policy;
    return policy - read(o.reference.data, o.reference.dtype, j);
}

__global__ void __launch_bounds__(kThreads)
    pairwise_loss_kernel(const __grid_constant__ Call call) {
    const PairwiseLossArgs& a = call.args;
    const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (c >= a.C) return;
    // Loops over operands have a fixed length, so that these are registers.
    double rho[kPairOperands], slope[kPairOperands], loss = 0.0;
#pragma unroll
    for (int k = 0; k < kPairOperands; ++k) {
        rho[k] = k < a.K ? rho_of(a.operands[k], c) : 0.0;
        slope[k] = 0.0;
    }
    for (int i = 0; i < a.I; ++i) {
        const PairTerm& term = a.terms[i];
        double x = 0.0;
#pragma unroll
        for (int k = 0; k < kPairOperands; ++k) {
            if (k < a.K && takes_part(term.coefficients[k]))
                x = x + read(term.coefficients[k], c) * rho[k];
        }
        const auto rounded = static_cast<float>(x + read(term.shift, c));
        float value = 0.0f, derivative = 0.0f;
        PairFamilies<Scalars>::with(call.functions[i], [&](const auto& function) {
            const auto r = function(rounded);
            value = r.value, derivative = r.slope;
        });
        const double scale = read(term.scale, c);
        loss = loss + scale * static_cast<double>(value);
        const double of_x = scale * static_cast<double>(derivative);
#pragma unroll
        for (int k = 0; k < kPairOperands; ++k) {
            if (k < a.K && takes_part(term.coefficients[k]))
                slope[k] = slope[k] + of_x * read(term.coefficients[k], c);
        }
    }
    ptr<float>(a.losses)[c] = static_cast<float>(loss);
#pragma unroll
    for (int k = 0; k < kPairOperands; ++k) {
        if (k < a.K) row_ptr<float>(a.slopes, k)[c] = static_cast<float>(slope[k]);
    }
}

__global__ void __launch_bounds__(kThreads) pair_sums_kernel(const __grid_constant__ Call call) {
    __shared__ double terms[kTile];
    __shared__ int owners[kTile];  // which thread's response; below 0: another block's
    const PairwiseLossArgs& a = call.args;
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads;
    const int per_tile = kTile / a.K;
    double sum = 0.0;
    for (int64_t tile = 0; tile < a.C; tile += per_tile) {
        const int count = static_cast<int>(a.C - tile < per_tile ? a.C - tile : per_tile);
        bool some = false;
        for (int i = thread; i < count; i += kThreads) {
            const double weight = read(a.weight, tile + i);
            for (int k = 0; k < a.K; ++k) {
                const int64_t owner = ptr<int64_t>(a.operands[k].index)[tile + i] - first;
                const bool ours = owner >= 0 && owner < kThreads;
                const double slope = row_ptr<float>(a.slopes, k)[tile + i];
                owners[i * a.K + k] = ours ? static_cast<int>(owner) : -1;
                terms[i * a.K + k] = weight * slope;
                some = some || ours;
            }
        }
        if (__syncthreads_or(some)) {
#pragma unroll 8
            for (int e = 0; e < count * a.K; ++e) {
                if (owners[e] == thread) sum = sum + terms[e];
            }
        }
        __syncthreads();
    }
    if (first + thread < a.dsums.size) ptr<double>(a.dsums)[first + thread] = sum;
}

}  // namespace

int pairwise_loss(const PairwiseLossArgs& args, void* stream) {
    Call call{args, {}};
    for (int i = 0; i < args.I; ++i) call.functions[i] = PairFunction(args.terms[i]);
    int status = cudaSuccess;
    if (args.C > 0)
        status =
            launch(pairwise_loss_kernel, dim3(ceil_div(args.C, kThreads)), kThreads, stream, call);
    if (args.dsums && args.dsums.size > 0 && status == cudaSuccess)
        status = launch(pair_sums_kernel, dim3(ceil_div(args.dsums.size, kThreads)), kThreads,
                        stream, call);
    return status;
}

}  // namespace pe::cuda
