#include "pyengine/ops/pairwise_loss.h"

#include "pyengine/ops/pairwise_loss_families.h"
#include "pyengine/parallel.h"
#include "pyengine/simd.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int kBlock = 16;
constexpr int64_t kLeastToShare = 8192;  // below it opening a region costs more than it saves
constexpr int64_t kPerTask = 1024;

typedef double Lanes[kBlock];

// The arithmetic of pairwise_loss_families.h on this instruction set's vectors.
struct Vectors {
    using F = vec;
    PE_INLINE static vec all(float x) { return broadcast(x); }
    PE_INLINE static vec abs(vec x) { return (vec)((uvec)x & 0x7fffffffu); }
    PE_INLINE static vec exp(vec x) { return PE_ISA::exp(x); }
    PE_INLINE static vec log(vec x) { return PE_ISA::log(x); }
    PE_INLINE static vec fma(vec a, vec b, vec c) { return PE_ISA::fma(a, b, c); }
    PE_INLINE static vec max(vec a, vec b) { return PE_ISA::max(a, b); }
    PE_INLINE static vec min(vec a, vec b) { return PE_ISA::min(a, b); }
};

// The block's comparisons [begin, begin + n), n <= 16; lanes past them hold 0 and are not written.
struct Block {
    int64_t begin;
    int n;
};

template <typename T>
PE_INLINE void read(const T* p, Block b, Lanes out) {
    p += b.begin;
    if (b.n == kBlock) {
        for (int j = 0; j < kBlock; ++j) out[j] = p[j];
    } else {
        for (int j = 0; j < kBlock; ++j) out[j] = j < b.n ? static_cast<double>(p[j]) : 0.0;
    }
}

template <typename T>
PE_INLINE void gather(const T* p, const int64_t* index, Block b, Lanes out) {
    if (index == nullptr) return read(p, b, out);
    for (int j = 0; j < kBlock; ++j) {
        out[j] = j < b.n ? static_cast<double>(p[index[b.begin + j]]) : 0.0;
    }
}

PE_INLINE void gather(const VectorView& v, const int64_t* index, Block b, Lanes out) {
    if (v.dtype == DType::kF64) {
        gather(ptr<double>(v), index, b, out);
    } else {
        gather(ptr<float>(v), index, b, out);
    }
}

PE_INLINE void read(const PairCoefficient& c, Block b, Lanes out) {
    if (c.data == nullptr) {
        for (int j = 0; j < kBlock; ++j) out[j] = c.value;
    } else if (c.dtype == DType::kF64) {
        read(static_cast<const double*>(c.data), b, out);
    } else {
        read(static_cast<const float*>(c.data), b, out);
    }
}

PE_INLINE void read_rho(const PairOperand& operand, Block b, Lanes rho) {
    const auto* index = ptr<int64_t>(operand.index);
    gather(operand.policy, index, b, rho);
    if (!operand.reference) return;
    Lanes reference;
    gather(operand.reference, index, b, reference);
    for (int j = 0; j < kBlock; ++j) rho[j] -= reference[j];
}

void evaluate(const PairFunction& f, const float* x, float* value, float* slope) {
    PairFamilies<Vectors>::with(f, [&](const auto& function) {
        for (int i = 0; i < kBlock; i += kLanes) {
            const auto r = function(load(x + i));
            store(value + i, r.value);
            store(slope + i, r.slope);
        }
    });
}

// Adds one term to the block's losses and slopes.
PE_INLINE void add_term(const PairTerm& term, const PairFunction& f, int K, Block b,
                        const Lanes* rho, Lanes loss, Lanes* slope) {
    Lanes x = {}, c, scale;
    for (int k = 0; k < K; ++k) {
        if (!takes_part(term.coefficients[k])) continue;
        read(term.coefficients[k], b, c);
        for (int j = 0; j < kBlock; ++j) x[j] += c[j] * rho[k][j];
    }
    read(term.shift, b, c);
    alignas(64) float rounded[kBlock], value[kBlock], derivative[kBlock];
    for (int j = 0; j < kBlock; ++j) rounded[j] = static_cast<float>(x[j] + c[j]);
    evaluate(f, rounded, value, derivative);
    read(term.scale, b, scale);
    for (int j = 0; j < kBlock; ++j) loss[j] += scale[j] * static_cast<double>(value[j]);
    for (int j = 0; j < kBlock; ++j) scale[j] *= static_cast<double>(derivative[j]);
    for (int k = 0; k < K; ++k) {
        if (!takes_part(term.coefficients[k])) continue;
        read(term.coefficients[k], b, c);
        for (int j = 0; j < kBlock; ++j) slope[k][j] += scale[j] * c[j];
    }
}

PE_INLINE void write(const Lanes x, Block b, float* out) {
    out += b.begin;
    if (b.n == kBlock) {
        for (int j = 0; j < kBlock; ++j) out[j] = static_cast<float>(x[j]);
    } else {
        for (int j = 0; j < b.n; ++j) out[j] = static_cast<float>(x[j]);
    }
}

void compute(const PairwiseLossArgs& a, const PairFunction* functions, Block b) {
    alignas(64) Lanes rho[kPairOperands], slope[kPairOperands], loss = {};
    for (int k = 0; k < a.K; ++k) {
        read_rho(a.operands[k], b, rho[k]);
        for (int j = 0; j < kBlock; ++j) slope[k][j] = 0.0;
    }
    for (int i = 0; i < a.I; ++i) add_term(a.terms[i], functions[i], a.K, b, rho, loss, slope);
    write(loss, b, ptr<float>(a.losses));
    for (int k = 0; k < a.K; ++k) write(slope[k], b, row_ptr<float>(a.slopes, k));
}

// One thread, in order: a response may be in many comparisons.
void add_up(const PairwiseLossArgs& a) {
    auto* dsums = ptr<double>(a.dsums);
    memset(dsums, 0, static_cast<size_t>(a.dsums.size) * sizeof(double));
    Lanes weight;
    for (int64_t begin = 0; begin < a.C; begin += kBlock) {
        const Block b{begin, static_cast<int>(a.C - begin < kBlock ? a.C - begin : kBlock)};
        read(a.weight, b, weight);
        for (int j = 0; j < b.n; ++j) {
            const int64_t c = begin + j;
            for (int k = 0; k < a.K; ++k) {
                const double slope = row_ptr<float>(a.slopes, k)[c];
                dsums[ptr<int64_t>(a.operands[k].index)[c]] += weight[j] * slope;
            }
        }
    }
}

}  // namespace

void pairwise_loss(const PairwiseLossArgs& a) {
    PairFunction functions[kPairTerms];
    for (int i = 0; i < a.I; ++i) functions[i] = PairFunction(a.terms[i]);
    const int threads = a.C < kLeastToShare ? 1 : num_threads();
    parallel_tasks((a.C + kPerTask - 1) / kPerTask, threads, [&](int64_t task) {
        const int64_t first = task * kPerTask,
                      last = first + kPerTask < a.C ? first + kPerTask : a.C;
        for (int64_t c = first; c < last; c += kBlock) {
            compute(a, functions, {c, static_cast<int>(last - c < kBlock ? last - c : kBlock)});
        }
    });
    if (a.dsums) parallel_tasks(1, 1, [&](int64_t) { add_up(a); });
}

}  // namespace pe::cpu::PE_ISA
