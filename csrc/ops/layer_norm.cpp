#include "pyengine/ops/layer_norm.h"

#include "pyengine/parallel.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kColumnsPerTask = 64;

struct Moments {
    float mean, rstd;
};

template <typename X>
PE_INLINE Moments moments(const X* x, float eps, int64_t D) {
    vec16 total = broadcast16(0.0f);
    for_each_16(D, [&](int64_t d, int64_t n) { total = total + read(x + d, n); });
    const float mean = sum(total) / static_cast<float>(D);
    const vec16 means = broadcast16(mean);
    vec16 squares = broadcast16(0.0f);
    for_each_16(D, [&](int64_t d, int64_t n) {
        // Lanes past the end of the row hold the mean: they add nothing.
        const vec16 v = read(x + d, n, mean) - means;
        squares = fma(v, v, squares);
    });
    return {mean, 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(D) + eps)};
}

// y = fma((x - mean) * rstd, weight, bias)
template <typename X, typename W, typename B, typename Y>
void forward_row(const LayerNormForwardArgs& a, int64_t row) {
    const X* x = row_ptr<X>(a.x, row);
    const W* weight = ptr<W>(a.weight);
    const B* bias = ptr<B>(a.bias);
    Y* y = row_ptr<Y>(a.y, row);
    const Moments m = moments(x, a.eps, a.x.cols);
    const vec16 means = broadcast16(m.mean), scale = broadcast16(m.rstd);
    for_each_16(a.x.cols, [&](int64_t d, int64_t n) {
        const vec16 x_hat = (read(x + d, n) - means) * scale;
        write(y + d, fma(x_hat, read(weight + d, n), read(bias + d, n)), n);
    });
    if (a.mean) ptr<float>(a.mean)[row] = m.mean;
    if (a.rstd) ptr<float>(a.rstd)[row] = m.rstd;
}

// With g = dy * weight:  dx = rstd * (g - mean(g) - (x - mean) * rstd^2 * mean(g * (x - mean)))
template <typename X, typename W, typename Y>
void backward_row(const LayerNormBackwardArgs& a, int64_t row) {
    const int64_t D = a.x.cols;
    const X* x = row_ptr<X>(a.x, row);
    const Y* dy = row_ptr<Y>(a.dy, row);
    const W* weight = ptr<W>(a.weight);
    X* dx = row_ptr<X>(a.dx, row);
    const float rstd = ptr<float>(a.rstd)[row];
    const vec16 means = broadcast16(ptr<float>(a.mean)[row]);
    vec16 total = broadcast16(0.0f), dots = broadcast16(0.0f);
    for_each_16(D, [&](int64_t d, int64_t n) {
        const vec16 g = read(dy + d, n) * read(weight + d, n);  // 0 past the row's end
        total = total + g;
        dots = fma(g, read(x + d, n) - means, dots);
    });
    const vec16 g_mean = broadcast16(sum(total) / static_cast<float>(D));
    const vec16 pull = broadcast16(-rstd * rstd * (sum(dots) / static_cast<float>(D)));
    const vec16 scale = broadcast16(rstd);
    for_each_16(D, [&](int64_t d, int64_t n) {
        const vec16 g = read(dy + d, n) * read(weight + d, n);
        write(dx + d, fma(read(x + d, n) - means, pull, g - g_mean) * scale, n);
    });
}

// dweight and dbias of `columns` from d, GROUPS * 16 of them or fewer than 16: all rows in order, one chain per element.
template <typename X, typename Y, int GROUPS>
void sum_columns(const LayerNormBackwardArgs& a, int64_t d, int64_t columns) {
    const int64_t n = GROUPS > 1 ? 16 : columns;
    const float *mean = ptr<float>(a.mean), *rstd = ptr<float>(a.rstd);
    float* dweight = a.dweight ? ptr<float>(a.dweight) + d : nullptr;
    float* dbias = a.dbias ? ptr<float>(a.dbias) + d : nullptr;
    vec16 weight_total[GROUPS], bias_total[GROUPS];
    for (int i = 0; i < GROUPS; ++i) {
        weight_total[i] = dweight != nullptr ? read(dweight + 16 * i, n) : broadcast16(0.0f);
        bias_total[i] = dbias != nullptr ? read(dbias + 16 * i, n) : broadcast16(0.0f);
    }
    for (int64_t row = 0; row < a.x.rows; ++row) {
        const X* x = row_ptr<X>(a.x, row) + d;
        const Y* dy = row_ptr<Y>(a.dy, row) + d;
        const vec16 means = broadcast16(mean[row]), scale = broadcast16(rstd[row]);
        for (int i = 0; i < GROUPS; ++i) {
            const vec16 g = read(dy + 16 * i, n);
            weight_total[i] = fma(g, (read(x + 16 * i, n) - means) * scale, weight_total[i]);
            bias_total[i] = bias_total[i] + g;
        }
    }
    for (int i = 0; i < GROUPS; ++i) {
        if (dweight != nullptr) write(dweight + 16 * i, weight_total[i], n);
        if (dbias != nullptr) write(dbias + 16 * i, bias_total[i], n);
    }
}

}  // namespace

void layer_norm_forward(const LayerNormForwardArgs& a) {
    const auto run = [&]<typename X, typename W, typename B, typename Y>(X*, W*, B*, Y*) {
        parallel_rows(a.x.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) forward_row<X, W, B, Y>(a, row);
        });
    };
    dispatch_dtype(a.x.dtype, [&](auto* x) {
        dispatch_dtype(a.weight.dtype, [&](auto* w) {
            dispatch_dtype(a.bias.dtype, [&](auto* b) {
                dispatch_dtype(a.y.dtype, [&](auto* y) { run(x, w, b, y); });
            });
        });
    });
}

void layer_norm_backward(const LayerNormBackwardArgs& a) {
    const auto inputs = [&]<typename X, typename W, typename Y>(X*, W*, Y*) {
        parallel_rows(a.x.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) backward_row<X, W, Y>(a, row);
        });
    };
    // A task owns its columns, so the order of the rows does not depend on the threads.
    const auto parameters = [&]<typename X, typename Y>(X*, Y*) {
        parallel_rows(a.x.cols, kColumnsPerTask, [&](int64_t begin, int64_t end) {
            if (end - begin == kColumnsPerTask) {
                return sum_columns<X, Y, kColumnsPerTask / 16>(a, begin, kColumnsPerTask);
            }
            for_each_16(end - begin,
                        [&](int64_t d, int64_t n) { sum_columns<X, Y, 1>(a, begin + d, n); });
        });
    };
    dispatch_dtype(a.x.dtype, [&](auto* x) {
        dispatch_dtype(a.dy.dtype, [&](auto* y) {
            if (a.dx) dispatch_dtype(a.weight.dtype, [&](auto* w) { inputs(x, w, y); });
            if (a.dweight || a.dbias) parameters(x, y);
        });
    });
}

}  // namespace pe::cpu::PE_ISA
