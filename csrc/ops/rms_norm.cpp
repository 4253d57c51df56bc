#include "pyengine/ops/rms_norm.h"

#include "pyengine/parallel.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kColumnsPerTask = 64;

template <typename X, typename W, typename Y>
void forward_row(const X* x, const W* weight, Y* y, float* rstd_out, float eps, int64_t D) {
    vec16 squares = broadcast16(0.0f);
    for_each_16(D, [&](int64_t d, int64_t n) {
        const vec16 v = read(x + d, n);
        squares = fma(v, v, squares);
    });
    const float rstd = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(D) + eps);
    const vec16 scale = broadcast16(rstd);
    for_each_16(D, [&](int64_t d, int64_t n) {
        write(y + d, (read(x + d, n) * scale) * read(weight + d, n), n);
    });
    if (rstd_out != nullptr) *rstd_out = rstd;
}

// With g = dy * weight:  dx = rstd * (g - x * rstd^2 * mean(g * x))
template <typename X, typename W, typename Y>
void backward_row(const Y* dy, const X* x, const W* weight, float rstd, X* dx, int64_t D) {
    vec16 dots = broadcast16(0.0f);
    for_each_16(D, [&](int64_t d, int64_t n) {
        dots = fma(read(dy + d, n) * read(weight + d, n), read(x + d, n), dots);
    });
    const vec16 pull = broadcast16(-rstd * rstd * (sum(dots) / static_cast<float>(D)));
    const vec16 scale = broadcast16(rstd);
    for_each_16(D, [&](int64_t d, int64_t n) {
        const vec16 g = read(dy + d, n) * read(weight + d, n);
        write(dx + d, fma(read(x + d, n), pull, g) * scale, n);
    });
}

template <typename F>
void dispatch(DType x, DType weight, DType y, const F& f) {
    dispatch_dtype(x, [&](auto* x_type) {
        dispatch_dtype(weight, [&](auto* w_type) {
            dispatch_dtype(y, [&](auto* y_type) { f(x_type, w_type, y_type); });
        });
    });
}

}  // namespace

void rms_norm_forward(const RmsNormForwardArgs& a) {
    dispatch(a.x.dtype, a.weight.dtype, a.y.dtype,
             [&]<typename X, typename W, typename Y>(X*, W*, Y*) {
                 parallel_rows(a.x.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
                     for (int64_t n = begin; n < end; ++n) {
                         forward_row(row_ptr<X>(a.x, n), ptr<W>(a.weight), row_ptr<Y>(a.y, n),
                                     a.rstd ? ptr<float>(a.rstd) + n : nullptr, a.eps, a.x.cols);
                     }
                 });
             });
}

void rms_norm_backward(const RmsNormBackwardArgs& a) {
    const int64_t N = a.x.rows, D = a.x.cols;
    const float* rstd = ptr<float>(a.rstd);
    dispatch(a.x.dtype, a.weight.dtype, a.dy.dtype,
             [&]<typename X, typename W, typename Y>(X*, W*, Y*) {
                 if (a.dx) {
                     parallel_rows(N, kRowsPerTask, [&](int64_t begin, int64_t end) {
                         for (int64_t n = begin; n < end; ++n) {
                             backward_row(row_ptr<Y>(a.dy, n), row_ptr<X>(a.x, n), ptr<W>(a.weight),
                                          rstd[n], row_ptr<X>(a.dx, n), D);
                         }
                     });
                 }
                 if (!a.dweight) return;
                 // A task owns its columns and walks all rows in order: one chain per element, whatever the threads.
                 parallel_rows(D, kColumnsPerTask, [&](int64_t begin, int64_t end) {
                     float* dweight = ptr<float>(a.dweight);
                     for (int64_t d = begin; d < end; d += 16) {
                         const int64_t n = end - d < 16 ? end - d : 16;
                         vec16 total = read(dweight + d, n);
                         for (int64_t row = 0; row < N; ++row) {
                             const vec16 x_hat =
                                 read(row_ptr<X>(a.x, row) + d, n) * broadcast16(rstd[row]);
                             total = fma(read(row_ptr<Y>(a.dy, row) + d, n), x_hat, total);
                         }
                         write(dweight + d, total, n);
                     }
                 });
             });
}

}  // namespace pe::cpu::PE_ISA
