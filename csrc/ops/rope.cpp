#include "pyengine/ops/rope.h"

#include "pyengine/parallel.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kRowsPerTask = 16;

// Sixteen pairs at a time in every head: their cos and sin are read once.
template <typename X, typename Y>
void rotate_row(const RopeArgs& a, int64_t row) {
    const int64_t position = ptr<int64_t>(a.positions)[row], half = a.head_dim / 2;
    const float *cos = row_ptr<float>(a.cos, position), *sin = row_ptr<float>(a.sin, position);
    const vec16 direction = broadcast16(a.inverse ? -1.0f : 1.0f);
    const X* x = row_ptr<X>(a.x, row);
    Y* y = row_ptr<Y>(a.y, row);
    for_each_16(half, [&](int64_t i, int64_t n) {
        const vec16 c = read(cos + i, n), s = read(sin + i, n) * direction;
        for (int64_t head = 0; head < a.x.cols; head += a.head_dim) {
            // Both are read before either is written: y may be x.
            const vec16 left = read(x + head + i, n), right = read(x + head + half + i, n);
            write(y + head + i, rope_left(left, right, c, s), n);
            write(y + head + half + i, rope_right(left, right, c, s), n);
        }
    });
}

}  // namespace

void rope(const RopeArgs& a) {
    dispatch_dtype(a.x.dtype, [&]<typename X>(X*) {
        dispatch_dtype(a.y.dtype, [&]<typename Y>(Y*) {
            parallel_rows(a.x.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
                for (int64_t row = begin; row < end; ++row) rotate_row<X, Y>(a, row);
            });
        });
    });
}

}  // namespace pe::cpu::PE_ISA
