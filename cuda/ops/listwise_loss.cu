// Layout  a warp a group; its places lie in the workspace, a lane takes places i, i+32, ... What needs a place alone, or one
//         place against all others (ranks, slopes of pairs), the lanes share. Every sum goes through the places in order, as
//         on the CPU, and all lanes make the same one, so nothing is exchanged between them: both devices give the same bits.
#include "pyengine/ops/listwise_loss.h"

#include "common/launch.cuh"
#include "common/math.cuh"
#include "pyengine/ops/listwise_loss_formulas.h"

namespace pe::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kGroupsPerBlock = kThreads / kWarp;
constexpr int64_t kFields = 7;  // eight bytes of every place each: see Group

__device__ inline double element(const VectorView& v, int64_t j) {
    return v.dtype == DType::kF64 ? ptr<double>(v)[j] : static_cast<double>(ptr<float>(v)[j]);
}

__device__ inline double sum_of(const double* v, int64_t n) {
    double sum = 0.0;
#pragma unroll 8
    for (int64_t k = 0; k < n; ++k) sum = sum + v[k];
    return sum;
}

__device__ inline double most_of(const double* v, int64_t n) {
    double most = v[0];
#pragma unroll 8
    for (int64_t k = 1; k < n; ++k) most = v[k] > most ? v[k] : most;
    return most;
}

__device__ inline int64_t rank_of(const double* v, int64_t k, int64_t n) {
    int64_t rank = 0;
#pragma unroll 4
    for (int64_t i = 0; i < n; ++i) rank += precedes(v, i, k);
    return rank;
}

// A group as its warp sees it; what a, b, c hold is the family's.
struct Group {
    const ListwiseLossArgs& args;
    int64_t g, begin, n;
    int lane;

    __device__ Group(const ListwiseLossArgs& args_, int64_t g_)
        : args(args_),
          g(g_),
          begin(ptr<int64_t>(args_.groups)[g_]),
          n(ptr<int64_t>(args_.groups)[g_ + 1] - begin),
          lane(static_cast<int>(threadIdx.x) % kWarp) {}

    // Of its first place: scores, values, slopes of the scores.
    __device__ double* field(int i) const {
        return static_cast<double*>(args.workspace) + i * args.policy.size + begin;
    }
    __device__ double* s() const { return field(0); }
    __device__ double* x() const { return field(1); }
    __device__ double* d() const { return field(2); }
    __device__ double* a() const { return field(3); }
    __device__ double* b() const { return field(4); }
    __device__ double* c() const { return field(5); }
    __device__ int64_t* order() const { return reinterpret_cast<int64_t*>(field(6)); }

    __device__ int64_t response(int64_t k) const {
        return args.index.data != nullptr ? ptr<int64_t>(args.index)[begin + k] : begin + k;
    }

    // f(k) for the first `count` places, shared among the lanes. What stands in a place is read by others only before and
    // after.
    template <typename F>
    __device__ void each(int64_t count, const F& f) const {
        __syncwarp();
        for (int64_t k = lane; k < count; k += kWarp) f(k);
        __syncwarp();
    }
    template <typename F>
    __device__ void each(const F& f) const {
        each(n, f);
    }

    __device__ void set_loss(double loss) const {
        if (lane == 0) ptr<double>(args.losses)[g] = loss;
    }
    __device__ void set_ranking(int row, double value) const {
        row_ptr<double>(args.ranking, row)[g] = value;
    }
};

__device__ void take(const Group& w) {
    w.each([&](int64_t k) {
        const int64_t j = w.response(k);
        double score = element(w.args.policy, j);
        if (w.args.reference.data != nullptr) score = score - element(w.args.reference, j);
        w.s()[k] = score * w.args.beta;
        w.x()[k] = element(w.args.values, j);
    });
}

__device__ void give(const Group& w) {
    const double weight = w.args.weight.data != nullptr ? ptr<double>(w.args.weight)[w.g] : 1.0;
    const double scale = weight * w.args.beta;
    w.each([&](int64_t k) { ptr<double>(w.args.dsums)[w.response(k)] = scale * w.d()[k]; });
}

// a: pairs of a place and those before it with values that differ, b: those of them in order
__device__ void rank(const Group& w) {
    const double *s = w.s(), *x = w.x();
    w.each([&](int64_t i) {
        const int64_t place = rank_of(x, i, w.n);
        if (place == 0) w.set_ranking(0, s[i]);
        if (place == w.n - 1) w.set_ranking(1, s[i]);
        int64_t differ = 0, agree = 0;
        for (int64_t j = 0; j < i; ++j) {
            const bool up = x[i] > x[j], down = x[j] > x[i];
            differ += up | down;
            agree += (up & (s[i] > s[j])) | (down & (s[j] > s[i]));
        }
        w.a()[i] = static_cast<double>(differ), w.b()[i] = static_cast<double>(agree);
    });
    const double differ = sum_of(w.a(), w.n), agree = sum_of(w.b(), w.n);
    if (w.lane == 0) w.set_ranking(2, agree / (differ > 0.0 ? differ : 1.0));
}

// x becomes each place's share of its group: x / sum(x), 0 where that is not > 0.
__device__ void share_values(const Group& w) {
    const double total = sum_of(w.x(), w.n);
    const bool none = !(total > 0.0) && total == total;
    w.each([&](int64_t k) { w.x()[k] = none ? 0.0 : w.x()[k] / total; });
}

// The same of e^(x / temperature), whose sum is at least 1 once the largest is taken off.
__device__ void share_exponentials(const Group& w) {
    const double temperature = w.args.temperature;
    if (temperature != 1.0) w.each([&](int64_t k) { w.x()[k] = w.x()[k] / temperature; });
    const double most = most_of(w.x(), w.n);
    w.each([&](int64_t k) { w.x()[k] = exp_of(w.x()[k] - most); });
    const double inverse = 1.0 / sum_of(w.x(), w.n);
    w.each([&](int64_t k) { w.x()[k] = w.x()[k] * inverse; });
}

// x: labels, a: e^(s - the most)
__device__ void cross_entropy(const Group& w) {
    const double most = most_of(w.s(), w.n);
    w.each([&](int64_t k) { w.a()[k] = exp_of(w.s()[k] - most); });
    const double z = sum_of(w.a(), w.n), share = sum_of(w.x(), w.n) / z;
    w.each([&](int64_t k) { w.d()[k] = share * w.a()[k] - w.x()[k]; });
    const double lse = most + log_of(z);
    double loss = 0.0;
#pragma unroll 8
    for (int64_t k = 0; k < w.n; ++k) loss = loss + w.x()[k] * (lse - w.s()[k]);
    w.set_loss(loss);
}

// x: labels, a: log(1 + e^-s)
__device__ void nca(const Group& w) {
    const double noise = 1.0 / static_cast<double>(w.n);
    w.each([&](int64_t k) {
        const Softplus<double> f = softplus_minus(w.s()[k]);
        w.a()[k] = f.value;
        w.d()[k] = (1.0 - f.minus_slope) * noise - w.x()[k] * f.minus_slope;
    });
    double loss = 0.0;
#pragma unroll 8
    for (int64_t k = 0; k < w.n; ++k)
        loss = loss + (w.x()[k] * w.a()[k] + (w.a()[k] + w.s()[k]) * noise);
    w.set_loss(loss);
}

// Of the k-th of a group: a its score, b the most of it and of all after it, c e^-|a - b of the next|, x the sum of e^(a -
// b) of it and of all after it, then one over that.
__device__ void plackett_luce(const Group& w) {
    const int64_t n = w.n;
    w.each([&](int64_t k) {
        const int64_t rank = rank_of(w.x(), k, n);
        w.order()[rank] = k, w.a()[rank] = w.s()[k];
    });
    if (w.lane == 0) {
        double most = w.b()[n - 1] = w.a()[n - 1];
        w.c()[n - 1] = 0.0;
        for (int64_t k = n - 2; k >= 0; --k) {
            const double score = w.a()[k];
            const bool leads = score > most;
            w.c()[k] = leads ? most - score : score - most;
            w.b()[k] = most = leads ? score : most;
        }
    }
    w.each([&](int64_t k) { w.c()[k] = exp_of(w.c()[k]); });
    if (w.lane == 0) {
        double z = w.x()[n - 1] = 1.0;
        for (int64_t k = n - 2; k >= 0; --k)
            w.x()[k] = z = w.a()[k] > w.b()[k + 1] ? z * w.c()[k] + 1.0 : z + w.c()[k];
    }
    w.each([&](int64_t k) {
        w.d()[k] = log_of(w.x()[k]);
        w.x()[k] = 1.0 / w.x()[k];
    });
    double loss = 0.0;
#pragma unroll 8
    for (int64_t k = 0; k < n; ++k) loss = loss + (w.b()[k] - w.a()[k] + w.d()[k]);
    w.set_loss(loss);
    __syncwarp();  // the losses' logs are read, and d becomes the slopes
    if (w.lane != 0) return;
    double drawn = 0.0;  // sum over ranks up to k of e^(b[k] - b) / x
    for (int64_t k = 0; k < n; ++k) {
        drawn = drawn + w.x()[k];
        const bool leads = k + 1 == n || w.a()[k] > w.b()[k + 1];
        w.d()[w.order()[k]] = (leads ? drawn : drawn * w.c()[k]) - 1.0;
        if (leads) drawn = drawn * w.c()[k];
    }
}

// Pairs with values that differ; weight(i, j) of each. The loss takes them row by row, a slope takes its own pairs in the
// same order. c: losses of a row, then pairs of a place.
template <typename W>
__device__ void over_pairs(const Group& w, const W& weight) {
    const double *s = w.s(), *x = w.x();
    double loss = 0.0;
    for (int64_t i = 1; i < w.n; ++i) {
        w.each(i, [&](int64_t j) {
            const bool up = x[i] > x[j], counts = up | (x[j] > x[i]);
            const double gap = up ? s[i] - s[j] : s[j] - s[i];
            w.c()[j] = counts ? weight(i, j) * softplus_minus(gap).value : 0.0;
        });
#pragma unroll 8
        for (int64_t j = 0; j < i; ++j) loss = loss + w.c()[j];
    }
    w.each([&](int64_t i) {
        double slope = 0.0;
        int64_t count = 0;
        for (int64_t j = 0; j < w.n; ++j) {
            const bool up = x[i] > x[j];
            if (!(up | (x[j] > x[i]))) continue;
            const double f = softplus_minus(up ? s[i] - s[j] : s[j] - s[i]).minus_slope;
            const double pull = weight(i, j) * f;
            slope = up ? slope - pull : slope + pull;
            ++count;
        }
        w.d()[i] = slope, w.c()[i] = static_cast<double>(count);
    });
    const double pairs = 0.5 * sum_of(w.c(), w.n);
    if (!w.args.mean || !(pairs > 0.0)) return w.set_loss(loss);
    w.set_loss(loss / pairs);
    w.each([&](int64_t k) { w.d()[k] = w.d()[k] / pairs; });
}

// a: gains, b: discounts of the places' ranks
__device__ void lambda_pairs(const Group& w) {
    w.each([&](int64_t k) {
        w.a()[k] = gain_of(w.x()[k]);
        w.b()[k] = discount_of(rank_of(w.s(), k, w.n));
    });
    over_pairs(w, [&](int64_t i, int64_t j) {
        return distance(w.a()[i], w.a()[j]) * distance(w.b()[i], w.b()[j]);
    });
}

template <ListFamily FAMILY>
__global__ void __launch_bounds__(kThreads) listwise_loss_kernel(ListwiseLossArgs args) {
    const int64_t g = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.x / kWarp;
    if (g >= args.losses.size) return;
    const Group w(args, g);
    const bool ranked = args.ranking.data != nullptr;
    if (w.n == 0) {
        w.set_loss(0.0);
        for (int row = 0; ranked && w.lane == 0 && row < 3; ++row) w.set_ranking(row, 0.0);
        return;
    }
    take(w);
    if (ranked) rank(w);
    if constexpr (FAMILY == ListFamily::kPlackettLuce) plackett_luce(w);
    if constexpr (FAMILY == ListFamily::kSoftmax) share_values(w), cross_entropy(w);
    if constexpr (FAMILY == ListFamily::kInfoNca) share_exponentials(w), cross_entropy(w);
    if constexpr (FAMILY == ListFamily::kNca) share_exponentials(w), nca(w);
    if constexpr (FAMILY == ListFamily::kPairs) over_pairs(w, [](int64_t, int64_t) { return 1.0; });
    if constexpr (FAMILY == ListFamily::kLambdaPairs) lambda_pairs(w);
    give(w);
}

}  // namespace

int64_t listwise_loss_bytes(const ListwiseLossArgs& args) { return kFields * args.policy.size * 8; }

int listwise_loss(const ListwiseLossArgs& args, void* stream) {
    if (args.losses.size == 0) return cudaSuccess;
    const auto start = [&](void (*kernel)(ListwiseLossArgs)) {
        const dim3 blocks(ceil_div(args.losses.size, kGroupsPerBlock));
        return launch(kernel, blocks, kThreads, stream, args);
    };
    switch (args.family) {
        case ListFamily::kPlackettLuce:
            return start(listwise_loss_kernel<ListFamily::kPlackettLuce>);
        case ListFamily::kSoftmax: return start(listwise_loss_kernel<ListFamily::kSoftmax>);
        case ListFamily::kInfoNca: return start(listwise_loss_kernel<ListFamily::kInfoNca>);
        case ListFamily::kNca: return start(listwise_loss_kernel<ListFamily::kNca>);
        case ListFamily::kPairs: return start(listwise_loss_kernel<ListFamily::kPairs>);
        case ListFamily::kLambdaPairs: return start(listwise_loss_kernel<ListFamily::kLambdaPairs>);
    }
    return cudaErrorInvalidValue;
}

}  // namespace pe::cuda
