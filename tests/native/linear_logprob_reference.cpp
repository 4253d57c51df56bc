#include "linear_logprob_reference.h"

#include <algorithm>
#include <limits>

namespace native {
namespace {

std::vector<double> to_doubles(const Matrix& m) {
    std::vector<double> values;
    values.reserve(static_cast<size_t>(m.rows() * m.cols()));
    for (int64_t i = 0; i < m.rows() * m.cols(); ++i) values.push_back(m.get(i));
    return values;
}

double dot(const double* a, const double* b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

double dot_size(const double* a, const double* b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += std::fabs(a[i] * b[i]);
    return sum;
}

// y += a * x, and its size: |y| += |a * x|.
void add(double* y, double* size, double a, double size_a, const double* x, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        y[i] += a * x[i];
        size[i] += size_a * std::fabs(x[i]);
    }
}

// A chain of n roundings that do not all go one way.
double chain(size_t n) { return (8 + 4 * std::sqrt(static_cast<double>(n))) * kUnit; }

}  // namespace

LogprobReference::LogprobReference(const Matrix& hidden, const Matrix& weight,
                                   const std::vector<int64_t>& targets, const Matrix& dlogprob) {
    const auto T = static_cast<size_t>(hidden.rows()), D = static_cast<size_t>(hidden.cols());
    const auto V = static_cast<size_t>(weight.rows());
    const std::vector<double> h = to_doubles(hidden), w = to_doubles(weight);
    dhidden.resize(T * D), dhidden_bound.resize(T * D), dweight.resize(V * D),
        dweight_bound.resize(V * D);
    std::vector<double> z(V);
    const bool pairs =
        hidden.view().dtype == pe::DType::kBF16 && weight.view().dtype == pe::DType::kBF16;
    const double rounding = pairs ? 0x1.0p-8 : 0.0;  // of p and c to bf16
    for (size_t t = 0; t < T; ++t) {
        double logit_bound = 0, largest = -std::numeric_limits<double>::infinity(), total = 0;
        for (size_t v = 0; v < V; ++v) {
            z[v] = dot(&h[t * D], &w[v * D], D);
            largest = std::max(largest, z[v]);
            if (std::isfinite(z[v])) {
                logit_bound = std::max(logit_bound, chain(D) * dot_size(&h[t * D], &w[v * D], D));
            }
        }
        for (size_t v = 0; v < V; ++v) total += std::exp(z[v] - largest);
        const auto target = static_cast<size_t>(targets[t]);
        lse.push_back(largest + std::log(total));
        logprob.push_back(z[target] - lse[t]);
        const double sum_bound = (24 + static_cast<double>(V) / 256) * kUnit;
        lse_bound.push_back(logit_bound + 4 * kUnit * std::fabs(largest) + sum_bound);
        logprob_bound.push_back(lse_bound[t] + logit_bound + 4 * kUnit * std::fabs(z[target]));
        const double g = dlogprob.get(static_cast<int64_t>(t));
        for (size_t v = 0; v < V; ++v) {
            const double p = std::exp(z[v] - lse[t]), c = g * ((v == target ? 1.0 : 0.0) - p);
            const double shift =
                logit_bound + lse_bound[t] + 4 * kUnit * (std::fabs(z[v]) + std::fabs(lse[t]));
            const double c_bound =
                std::fabs(g) * (p * std::expm1(std::min(shift, 600.0)) + 8 * kUnit * p) +
                2 * kUnit * std::fabs(c) + 0x1.0p-140;
            // The direction is weight[y], and apart from it the sum of p times the head.
            const double apart = std::fabs(g) * (p + (v == target ? 1.0 : 0.0));
            const double rescaled = static_cast<double>(V / 256) * kUnit;
            add(&dhidden[t * D], &dhidden_bound[t * D], c,
                c_bound + (chain(V) + rescaled + rounding) * apart, &w[v * D], D);
            add(&dweight[v * D], &dweight_bound[v * D], c,
                c_bound + (chain(T) + rounding) * std::fabs(c) + rounding * c_bound, &h[t * D], D);
        }
    }
}

}  // namespace native
