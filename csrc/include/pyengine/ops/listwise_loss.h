// listwise_loss: losses[g] of the K scores s[k] = beta (policy[j] - reference[j]) of a group and their values x[k] = values[j],
//              with j = index[groups[g] + k], or groups[g] + k where there is no index
//              plackett_luce  sum over k of logsumexp(s_(k), ..., s_(K)) - s_(k), (k) by falling x
//              softmax        -sum_k c_k log softmax(s)_k, c = x / sum(x), 0 where that is not > 0
//              infonca        the same with c = softmax(x / temperature)
//              nca            -sum_k c_k log sigmoid(s_k) + log sigmoid(-s_k) / K, c as in infonca
//              pairs          sum over pairs with x_i > x_j of log(1 + e^-(s_i - s_j)), or their mean; 0 without a pair
//              lambda_pairs   the same, times |2^x_i - 2^x_j| |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|, ranks by falling s
//                             from 1, without a slope; exponents are cut at -1000 and 1000
// shapes       policy, reference, values, dsums (S,), reference null: 0; groups (G + 1,), rising from 0 to S; index (S,), each of
//              0 ... S - 1 once, or null; weight (G,) or null: 1; losses (G,); ranking (3, G), row stride free, or null
// dtypes       policy, reference, values f32 or f64; the rest f64; groups, index i64; made in f64
// aliasing     none
// gradient     dsums[j] = weight[g] d losses[g] / d policy[j] is assigned (=)
// metrics      ranking is assigned (=) the scores of the first and of the last by falling x, and which part of the pairs with
//              x_i > x_j has s_i > s_j, 0 without a pair. Ties are in the order of k, NaN is before all. A group of none has 0
// determinism  cpu: bitwise for any thread count; a group is computed alone, its sums in one order; the same bits on every
//              instruction set and on cuda: nothing is fused
// source       Plackett 1975 (plackett_luce), arXiv:2402.01878 (softmax, pairs, lambda_pairs), 2402.05369 (infonca, nca)
// proof        tests/reference/listwise_loss.py
#pragma once

#include "pyengine/isa.h"
#include "pyengine/view.h"

namespace pe {

enum class ListFamily : int { kPlackettLuce, kSoftmax, kInfoNca, kNca, kPairs, kLambdaPairs };

struct ListwiseLossArgs {
    ListFamily family = ListFamily::kPlackettLuce;
    double beta = 1.0;
    double temperature = 1.0;  // > 0
    bool mean = false;         // of pairs
    VectorView policy;
    VectorView reference;  // or null
    VectorView values;
    VectorView groups;
    VectorView index;   // or null
    VectorView weight;  // or null
    VectorView losses;
    VectorView dsums;
    MatrixView ranking;         // or null
    int threads = 1;            // ignored on CUDA
    void* workspace = nullptr;  // listwise_loss_bytes(args) of the device
};

namespace cpu {
PE_CPU_KERNEL_UP_TO_AVX512(listwise_loss, ListwiseLossArgs)
int64_t listwise_loss_bytes(const ListwiseLossArgs& args);
}  // namespace cpu

namespace cuda {
// Returns a cudaError_t; `stream` is a cudaStream_t.
int listwise_loss(const ListwiseLossArgs& args, void* stream);
int64_t listwise_loss_bytes(const ListwiseLossArgs& args);
}  // namespace cuda

}  // namespace pe
