// pairwise_loss: losses[c] = sum_i scale_i[c] f_i(x_i[c]), x_i[c] = sum_k coefficient_ik[c] rho_k[c] + shift_i[c],
//              rho_k[c] = policy_k[j] - reference_k[j] with j = index_k[c], or c where there is no index
// shapes       losses (C,); slopes (K, C), row stride free; policy, reference (S,); index, weight (C,); dsums (S,); a
//              coefficient, shift or scale is a number or (C,); 1 <= K <= 8 operands, 1 <= I <= 8 terms
// dtypes       policy, reference, weight, arrays of coefficients f32 or f64; index i64; losses, slopes f32; dsums f64
// aliasing     operands may share their tensors; outputs overlap nothing
// numerics     rho, x and the sums over terms in f64; f_i and its derivative in f32 of x rounded to f32, without overflow;
//              an operand whose coefficient is the number 0 takes no part in a term
// gradient     slopes[k,c] = d losses[c] / d rho_k[c] is assigned (=); where there are indices, dsums[j] is assigned the sum
//              of weight[c] slopes[k,c] over all c, then k, with index_k[c] = j
// determinism  cpu: bitwise for any thread count; a comparison is computed alone; dsums are added in one order; cuda: the bits
//              of instruction sets with FMA, no atomics
// source       arXiv:2305.18290 (logistic), 2310.12036 (square), 2305.10425 (hinge), 2406.08414 (exp_logistic), 2402.00856 (exo)
// proof        tests/reference/pairwise_loss.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

inline constexpr int kPairOperands = 8;
inline constexpr int kPairTerms = 8;

enum class PairFamily : int {
    kLogistic,     // log(1 + e^-x)
    kSquare,       // x^2
    kHinge,        // max(0, x); its slope at 0 is 0
    kSigmoid,      // s(x) = 1 / (1 + e^-x)
    kLinear,       // x
    kExpLogistic,  // s(-x/tau) log(1 + e^-x) + s(x/tau) e^min(-x, 80)
    kExo,          // s(x) (log s(x) - log(1 - eps)) + s(-x) (log s(-x) - log eps)
};

// One number for all comparisons, or one for each.
struct PairCoefficient {
    const void* data = nullptr;  // (C,) f32 or f64; null: value
    DType dtype = DType::kF64;
    double value = 0.0;
};

struct PairOperand {
    VectorView policy;
    VectorView reference;  // or null: 0
    VectorView index;      // or null
};

struct PairTerm {
    PairFamily family = PairFamily::kLogistic;
    double parameter = 0.0;  // tau > 0 or 0 < eps < 1
    PairCoefficient shift;
    PairCoefficient scale;
    PairCoefficient coefficients[kPairOperands];
};

struct PairwiseLossArgs {
    int64_t C = 0;
    int K = 0;
    int I = 0;
    PairOperand operands[kPairOperands];
    PairTerm terms[kPairTerms];
    VectorView losses;
    MatrixView slopes;
    PairCoefficient weight;  // of dsums
    VectorView dsums;        // or null
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(pairwise_loss, PairwiseLossArgs)
}  // namespace cpu

namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t.
int pairwise_loss(const PairwiseLossArgs& args, void* stream);
}  // namespace cuda

}  // namespace pe
