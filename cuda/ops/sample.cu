// Layout  a block takes a draw, then the one as many places on as there are blocks. Log-probs: a warp makes a link of 256
//         words (log_softmax.cuh), the first warp joins the links in order: the CPU's bits. top_k and top_p: words are
//         counted or weighed through the whole row, in ever narrower ranges of the total order, until few enough are left
//         to be compared each with each (sample_select.cuh). The draw adds the links' weights, then the words' of one link,
//         each one chain in the CPU's order.
#include "pyengine/ops/sample.h"

#include "common/launch.cuh"
#include "common/sample_truncate.cuh"

namespace pe::cuda {
namespace {

constexpr int64_t kSlots = 160;  // draws at a time: a block for each multiprocessor of a large GPU
constexpr int kSmallThreads = 64, kColumnThreads = 256;
constexpr int64_t kSmallVocabulary = 8192;  // up to it a block is of kSmallThreads

struct Inputs {
    MatrixView logits[kMaxSampledModels];
    float coefficients[kMaxSampledModels];
};

// One block's workspace.
struct Slot {
    float *z, *moments;
    Links raw, changed, kept;
    double* cumulative;
};

__device__ inline bool is_finite(float x) { return x - x == 0.0f; }

__host__ __device__ inline int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

__host__ __device__ inline int64_t slot_bytes(int64_t V) {
    return rounded(V * 4) + 7 * rounded(vocab_blocks(V) * 4) + rounded(vocab_blocks(V) * 8);
}

__device__ inline Slot slot_at(void* workspace, int64_t index, int64_t V) {
    char* at = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(workspace) + 63) / 64 * 64);
    at += index * slot_bytes(V);
    const int64_t floats = rounded(vocab_blocks(V) * 4);
    const auto take = [&](int64_t bytes) {
        auto* piece = reinterpret_cast<float*>(at);
        at += bytes;
        return piece;
    };
    Slot slot;
    slot.z = take(rounded(V * 4));
    slot.moments = take(floats);
    for (Links* links : {&slot.raw, &slot.changed, &slot.kept}) {
        links->largest = take(floats);
        links->total = take(floats);
    }
    slot.cumulative = reinterpret_cast<double*>(at);
    return slot;
}

// What a token is drawn from.
struct Distribution {
    const float* z;
    Links links;
    Boundary boundary;
    int64_t greedy;  // the token, where there is no choice; else -1
    float lse, kept_mass;
    bool finite;

    __device__ float kept(int64_t i) const { return boundary.keeps(z[i], i) ? z[i] : -infinity(); }
    __device__ float logprob(int64_t token) const {
        if (greedy >= 0) return token == greedy ? 0.0f : -infinity();
        return boundary.keeps(z[token], token) ? z[token] - lse : -infinity();
    }
};

// The row after mixture, adjustments and temperature, in slot.z; false where it is logits[0] itself.
__device__ bool change_row(const SampleArgs& a, const Inputs& in, const SampleParams& p,
                           float raw_largest, const Slot& slot, Shared& s) {
    const int64_t V = in.logits[0].cols;
    const bool mixed = a.models > 1 || in.coefficients[0] != 1.0f;
    const bool adjusted = p.adjust_begin < p.adjust_end;
    const bool tempered = p.temperature != 0.0 && p.temperature != 1.0;
    if (!mixed && !adjusted && !tempered) return false;
    const float* first = row_ptr<float>(in.logits[0], p.row);
    for (int64_t i = thread(); i < V; i += threads()) {
        float z = mixed ? in.coefficients[0] * first[i] : first[i];
#pragma unroll
        for (int m = 1; m < kMaxSampledModels; ++m) {
            if (m < a.models) z = z + in.coefficients[m] * row_ptr<float>(in.logits[m], p.row)[i];
        }
        slot.z[i] = z;
    }
    __syncthreads();
    for (int64_t i = p.adjust_begin + thread(); i < p.adjust_end; i += threads()) {
        const LogitAdjust change = a.adjust[i];
        if (change.id >= 0 && change.id < V)
            slot.z[change.id] = adjusted_logit(slot.z[change.id], change);
    }
    __syncthreads();
    if (!tempered) return true;
    float largest = raw_largest;
    if (mixed || adjusted) {
        largest = -infinity();
        for (int64_t i = thread(); i < V; i += threads()) largest = max_of(slot.z[i], largest);
        largest = block_max(largest, s);
    }
    const auto T = static_cast<float>(p.temperature);
    for (int64_t i = thread(); i < V; i += threads()) slot.z[i] = (slot.z[i] - largest) / T;
    __syncthreads();
    return true;
}

// `raw` is logits[0], with its chain.
__device__ Distribution make_distribution(const SampleArgs& a, const Inputs& in,
                                          const SampleParams& p, const Row& raw, Link chain,
                                          const Slot& slot, Shared& s) {
    Row row = raw;
    if (change_row(a, in, p, raw.largest, slot, s)) {
        chain = link_row(slot.z, row.V, slot.changed, s);
        row.z = slot.z, row.links = slot.changed, row.largest = chain.largest;
    }
    Distribution d{row.z, row.links, Boundary{}, -1, log_sum_exp(chain), 1.0f, false};
    d.finite = is_finite(d.lse);
    if (!d.finite) return d;
    if (p.temperature == 0.0) {
        const Range ties = row.words().between(row.largest, row.largest);
        d.greedy = id_of(select_prefix(row.words(), ties, 1.0, UnitWeights{}, s).key);
        return d;
    }
    const int64_t blocks = vocab_blocks(row.V);
    row.total = accumulate(row.links, blocks, row.largest, slot.cumulative, s);
    d.boundary = truncate(row, p, s);
    if (d.boundary.all()) return d;
    d.links = slot.kept;
    chain = link_row(
        row.V, slot.kept, [&](int64_t i) { return d.kept(i); },
        [&](int64_t b) { return !(row.links.largest[b] >= d.boundary.z); }, s);
    d.lse = log_sum_exp(chain);
    const double kept = accumulate(slot.kept, blocks, row.largest, slot.cumulative, s);
    const double share = kept / row.total;
    d.kept_mass = static_cast<float>(share < 1.0 ? share : 1.0);
    return d;
}

// The first word whose cumulative probability exceeds `uniform` of the whole: its link, then the word in it.
__device__ int64_t draw_word(const Distribution& d, int64_t V, const double* cumulative,
                             double uniform, Shared& s) {
    const double target = uniform * cumulative[vocab_blocks(V) - 1];
    int64_t low = 0, high = vocab_blocks(V) - 1;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (cumulative[middle] > target) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    const int64_t first = low * kVocabBlock;
    const int n = static_cast<int>(V - first < kVocabBlock ? V - first : kVocabBlock);
    for (int i = thread(); i < n; i += threads())
        s.likely[i] = exp_f32(d.kept(first + i) - d.links.largest[low]);
    __syncthreads();
    if (thread() == 0) {
        double total = 0.0;
#pragma unroll 8
        for (int i = 0; i < n; ++i) total += static_cast<double>(s.likely[i]);
        const double before = low > 0 ? cumulative[low - 1] : 0.0;
        const double goal = (target - before) / (cumulative[low] - before) * total;
        double running = 0.0;
        int last = 0;
        for (int i = 0; i < n && running <= goal; ++i) {
            running += static_cast<double>(s.likely[i]);
            if (s.likely[i] > 0.0f)
                last = i;  // a sum may waver in its last bit: nothing past a likely word
        }
        s.token = first + last;
    }
    __syncthreads();
    return s.token;
}

// Entropy of softmax(z) from the row's links, as the CPU's.
__device__ float entropy_of(const Row& row, float* moments, Shared& s) {
    const int64_t blocks = vocab_blocks(row.V);
    for (int64_t b = warp(); b < blocks; b += threads() / kWarp) {
        const float largest = row.links.largest[b];
        float x[kLaneWords];
#pragma unroll
        for (int j = 0; j < kLaneWords; ++j) {
            const int64_t i = b * kVocabBlock + link_word(lane(), j);
            const float z = i < row.V ? row.z[i] : -infinity();
            const float below =
                max_of(z - largest, -104.0f);  // e^-104 is 0; -inf must not become NaN
            x[j] = exp_f32(below) * below;
        }
        const float moment = link_sum(x);
        if (lane() == 16) moments[b] = moment;
    }
    __syncthreads();
    const auto unused = [](int64_t, double) {};
    const double total = chain_sum(
        blocks,
        [&](int64_t b) {
            const float largest = row.links.largest[b];
            if (largest == -infinity()) return 0.0;
            return scale_of(row.links, b, row.largest) * static_cast<double>(row.links.total[b]);
        },
        unused, s);
    const double moment = chain_sum(
        blocks,
        [&](int64_t b) {
            const float largest = row.links.largest[b];
            if (largest == -infinity()) return 0.0;
            const double scale = scale_of(row.links, b, row.largest);
            const double apart = static_cast<double>(largest) - static_cast<double>(row.largest);
            const double block = static_cast<double>(row.links.total[b]);
            return scale * (static_cast<double>(moments[b]) + (scale > 0.0 ? apart * block : 0.0));
        },
        unused, s);
    const double entropy = log64(total) - moment / total;
    return static_cast<float>(entropy > 0.0 ? entropy : 0.0);
}

// The k most likely words in order, kFew at a time.
__device__ void report_top(const Row& row, float lse, int64_t k, int64_t* ids, float* logprobs,
                           Shared& s) {
    uint64_t low = order_key(row.largest, 0);
    for (int64_t done = 0; done < k; done += kFew) {
        const uint64_t last = top_k_cut(row, k - done < kFew ? k : done + kFew, s);
        const int n = gather(row.words(), {low, last}, s);
        rank(n, 0.0, UnitWeights{}, s);
        for (int c = thread(); c < n; c += threads()) {
            ids[done + c] = id_of(s.sorted[c].key);
            logprobs[done + c] = logit_of(s.sorted[c].key) - lse;
        }
        low = last + 1;
    }
}

__device__ void draw(const SampleArgs& a, const Inputs& in, int64_t b, const Slot& slot,
                     Shared& s) {
    const SampleParams p = a.params[b];
    const int64_t V = in.logits[0].cols, k = a.top_ids.cols;
    const float nan = float_of(0x7fc00000u);  // the CPU's
    bool finite = p.row >= 0 && p.row < in.logits[0].rows && p.forced < V;
    float lse[kMaxSampledModels] = {};
    Link chain = no_words();
#pragma unroll
    for (int m = kMaxSampledModels - 1; m >= 0; --m) {  // slot.raw ends with the links of logits[0]
        if (m >= a.models || !finite) continue;
        chain = link_row(row_ptr<float>(in.logits[m], p.row), V, slot.raw, s);
        lse[m] = log_sum_exp(chain);
        finite = is_finite(lse[m]);
    }
    const Row raw{row_ptr<float>(in.logits[0], finite ? p.row : 0), V, slot.raw, chain.largest,
                  0.0};
    if (a.entropy.data != nullptr) {
        const float entropy = finite ? entropy_of(raw, slot.moments, s) : nan;
        if (thread() == 0) ptr<float>(a.entropy)[b] = entropy;
    }
    if (a.top_ids.data != nullptr) {
        int64_t* ids = row_ptr<int64_t>(a.top_ids, b);
        float* logprobs = row_ptr<float>(a.top_logprobs, b);
        if (finite) report_top(raw, lse[0], k, ids, logprobs, s);
        for (int64_t i = thread(); !finite && i < k; i += threads()) ids[i] = -1, logprobs[i] = nan;
    }
    Distribution d{};
    if (finite) d = make_distribution(a, in, p, raw, chain, slot, s);
    finite = finite && d.finite;
    int64_t token = -1;
    if (finite && p.forced >= 0) {
        token = p.forced;
    } else if (finite) {
        token = d.greedy >= 0 ? d.greedy : draw_word(d, V, slot.cumulative, p.uniform, s);
    }
    if (thread() != 0) return;
    ptr<int32_t>(a.status)[b] = finite ? 0 : 1;
    ptr<int64_t>(a.token_ids)[b] = token;
    ptr<float>(a.kept_mass)[b] = finite ? d.kept_mass : nan;
    ptr<float>(a.sampling_logprobs)[b] = finite ? d.logprob(token) : nan;
#pragma unroll
    for (int m = 0; m < kMaxSampledModels; ++m) {
        if (m >= a.models) continue;
        row_ptr<float>(a.logprobs, b)[m] =
            finite ? row_ptr<float>(in.logits[m], p.row)[token] - lse[m] : nan;
    }
}

__global__ void __launch_bounds__(kMaxThreads) sample_kernel(SampleArgs a, Inputs in) {
    __shared__ Shared s;
    const Slot slot = slot_at(a.workspace, blockIdx.x, in.logits[0].cols);
    for (int64_t b = blockIdx.x; b < a.draws; b += gridDim.x) {
        __syncthreads();
        draw(a, in, b, slot, s);
    }
}

// Ids and offsets that lie outside what they are of are left out: nothing on the host has looked at them.
__global__ void __launch_bounds__(kColumnThreads) sample_params_kernel(SampleColumns c) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
    const int64_t N = c.adjust_ids.size;
    if (i < c.rows.size) {
        SampleParams p;
        p.temperature = ptr<double>(c.temperature)[i];
        p.top_p = ptr<double>(c.top_p)[i];
        p.min_p = ptr<double>(c.min_p)[i];
        p.top_k = ptr<int64_t>(c.top_k)[i];
        p.uniform = ptr<double>(c.uniform)[i];
        p.row = ptr<int64_t>(c.rows)[i];
        if (c.adjust_offsets.data != nullptr) {
            const int64_t begin = ptr<int64_t>(c.adjust_offsets)[i],
                          end = ptr<int64_t>(c.adjust_offsets)[i + 1];
            if (begin >= 0 && end <= N) p.adjust_begin = begin, p.adjust_end = end;
        }
        c.params[i] = p;
    }
    if (i < N) {
        const int64_t id = ptr<int64_t>(c.adjust_ids)[i];
        c.adjust[i] = {id >= 0 && id <= INT32_MAX ? static_cast<int32_t>(id) : -1,
                       ptr<float>(c.adjust_repetition)[i], ptr<float>(c.adjust_subtract)[i],
                       ptr<float>(c.adjust_bias)[i]};
    }
}

}  // namespace

int64_t sample_workspace_bytes(int64_t V, int64_t draws) {
    return (draws < kSlots ? draws : kSlots) * slot_bytes(V) + 63;
}

int sample(const SampleArgs& a, void* stream) {
    if (a.draws == 0) return cudaSuccess;
    Inputs in{};
    for (int64_t m = 0; m < a.models; ++m)
        in.logits[m] = a.logits[m], in.coefficients[m] = a.coefficients[m];
    const dim3 grid(static_cast<unsigned>(a.draws < kSlots ? a.draws : kSlots));
    const int block = in.logits[0].cols <= kSmallVocabulary ? kSmallThreads : kMaxThreads;
    return launch(sample_kernel, grid, block, stream, a, in);
}

int sample_params(const SampleColumns& c, void* stream) {
    const int64_t B = c.rows.size, N = c.adjust_ids.size, most = B > N ? B : N;
    if (most == 0) return cudaSuccess;
    return launch(sample_params_kernel, dim3(ceil_div(most, kColumnThreads)), kColumnThreads,
                  stream, c);
}

}  // namespace pe::cuda
