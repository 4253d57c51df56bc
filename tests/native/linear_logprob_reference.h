// linear_logprob in float64, and how far from it f32 may be: first-order bounds on the rounding of
// the stated algorithm.
#pragma once

#include "check.h"

namespace native {

struct LogprobReference {
    std::vector<double> logprob, lse, dhidden, dweight;
    std::vector<double> logprob_bound, lse_bound, dhidden_bound, dweight_bound;

    LogprobReference(const Matrix& hidden, const Matrix& weight,
                     const std::vector<int64_t>& targets, const Matrix& dlogprob);
};

}  // namespace native
