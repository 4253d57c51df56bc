#include "pyengine/ops/linear.h"
#include "pyengine/ops/linear_backward_workspace.h"
#include "pyengine/pack_columns.h"
#include "pyengine/parallel.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kColumnsPerTask = 64;
constexpr int64_t kRowsPerTask = 8;
constexpr int64_t kStrip = 64;  // places of rows that a task transposes

// Which row stands at each place along the chain; -1: none, a pair's other half.
int64_t lay_out(const VectorView& groups, int32_t* row_at) {
    const int64_t* first = ptr<int64_t>(groups);
    int64_t place = 0;
    for (int64_t g = 0; g + 1 < groups.size; ++g) {
        for (int64_t row = first[g]; row < first[g + 1]; ++row) {
            row_at[place++] = static_cast<int32_t>(row);
        }
        if (place % 2 != 0) row_at[place++] = -1;
    }
    return place;
}

// to (N, places) = from^T
template <typename S, typename D>
void transpose(const MatrixView& from, const int32_t* row_at, int64_t places, D* to,
               int64_t stride) {
    parallel_rows(places, kStrip, [&](int64_t begin, int64_t end) {
        for (int64_t n = 0; n < from.cols; n += 16) {
            alignas(64) D block[16][kStrip];
            const int64_t cols = from.cols - n < 16 ? from.cols - n : 16;
            for (int64_t place = begin; place < end; ++place) {
                alignas(64) D values[16] = {};
                if (row_at[place] >= 0) {
                    store16(values, read(row_ptr<S>(from, row_at[place]) + n, cols));
                }
                for (int64_t i = 0; i < 16; ++i) block[i][place - begin] = values[i];
            }
            for (int64_t i = 0; i < cols; ++i) {
                memcpy(to + (n + i) * stride + begin, block[i],
                       static_cast<size_t>(end - begin) * sizeof(D));
            }
        }
    });
}

// dweight goes on as `linear` of dy^T by x^T: outputs are columns of x, and the chain walks tokens.
template <typename X>
void backward_weight(const LinearBackwardArgs& a) {
    const LinearBackwardWorkspace size(a.x.rows, a.dy.cols, a.x.cols, a.groups.size - 1, a.x.dtype);
    auto* base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(a.workspace) + 63) / 64 * 64);
    auto* dy_t = reinterpret_cast<X*>(base + size.packed_bytes());
    auto* row_at = reinterpret_cast<int32_t*>(base + size.packed_bytes() + size.dy_bytes());
    const int64_t places = lay_out(a.groups, row_at), stride = size.stride();
    const PackedMatrix x_t{base, size.kind(), a.x.cols, places, nullptr};
    parallel_rows(places / 2, kRowsPerTask, [&](int64_t begin, int64_t end) {
        pack_pairs_of_rows<X>(
            x_t, 2 * begin, 2 * (end - begin),
            [&](int64_t place) -> const X* {
                return row_at[place] < 0 ? nullptr : row_ptr<X>(a.x, row_at[place]);
            },
            true);
    });
    dispatch_dtype(a.dy.dtype,
                   [&]<typename S>(S*) { transpose<S>(a.dy, row_at, places, dy_t, stride); });
    LinearForwardArgs product;
    product.x = {dy_t, a.x.dtype, a.dy.cols, places, stride};
    product.weight = x_t;
    product.epilogue = LinearEpilogue::kContinue;
    product.y[0] = a.dweight;
    linear_forward(product);
}

void backward_bias(const LinearBackwardArgs& a) {
    dispatch_dtype(a.dy.dtype, [&]<typename S>(S*) {
        parallel_rows(a.dy.cols, kColumnsPerTask, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; n += 16) {
                const int64_t count = end - n < 16 ? end - n : 16;
                float* out = ptr<float>(a.dbias) + n;
                vec16 total = read(out, count);
                for (int64_t t = 0; t < a.dy.rows; ++t) {
                    total = total + read(row_ptr<S>(a.dy, t) + n, count);
                }
                write(out, total, count);
            }
        });
    });
}

// s = sigmoid(g): d silu(g) / dg = s (1 + g (1 - s))
struct SiluGate {
    PE_INLINE static void backward(vec dy, vec gate, vec up, vec* dgate, vec* dup) {
        const vec s = times_sigmoid(broadcast(1.0f), max(broadcast(-150.0f), gate));
        *dup = dy * (gate * s);
        *dgate = (dy * up) * (s * fma(gate, broadcast(1.0f) - s, broadcast(1.0f)));
    }
};

// gelu_tanh(x) = x s(z), z = x (a + b x^2): its slope is s + x s (1 - s) (a + 3 b x^2)
PE_INLINE vec gelu_backward(vec dy, vec x) {
    x = max(broadcast(-15.0f), min(broadcast(15.0f), x));  // beyond, the slope is 0 or 1
    const vec square = x * x;
    const vec z = x * fma(square, broadcast(0.07135481627f), broadcast(1.5957691216f));
    const vec s = times_sigmoid(broadcast(1.0f), max(broadcast(-150.0f), z));
    const vec slope = fma(square, broadcast(0.21406444881f), broadcast(1.5957691216f));
    return dy * fma(x * s * (broadcast(1.0f) - s), slope, s);
}

template <typename Y, typename V, typename X>
void activation_rows(const LinearActivationBackwardArgs& a, int64_t begin, int64_t end) {
    const int64_t N = a.dy.cols;
    const bool gated = bool(a.kept[1]);
    for (int64_t t = begin; t < end; ++t) {
        X* dx = row_ptr<X>(a.dx, t);
        for_each_16(N, [&](int64_t n, int64_t count) {
            const vec16 dy = read(row_ptr<Y>(a.dy, t) + n, count);
            const vec16 first = read(row_ptr<V>(a.kept[0], t) + n, count);
            vec16 d0, d1;
            if (!gated) {
                for (int i = 0; i < vec16::kParts; ++i) {
                    d0.part[i] = gelu_backward(dy.part[i], first.part[i]);
                }
                return write(dx + n, d0, count);
            }
            const vec16 up = read(row_ptr<V>(a.kept[1], t) + n, count);
            for (int i = 0; i < vec16::kParts; ++i) {
                SiluGate::backward(dy.part[i], first.part[i], up.part[i], &d0.part[i], &d1.part[i]);
            }
            write(dx + n, d0, count);
            write(dx + N + n, d1, count);
        });
    }
}

}  // namespace

void linear_backward(const LinearBackwardArgs& a) {
    if (a.dweight) {
        dispatch_dtype(a.x.dtype, [&]<typename X>(X*) { backward_weight<X>(a); });
    }
    if (a.dbias) backward_bias(a);
}

void linear_activation_backward(const LinearActivationBackwardArgs& a) {
    dispatch_dtype(a.dy.dtype, [&]<typename Y>(Y*) {
        dispatch_dtype(a.kept[0].dtype, [&]<typename V>(V*) {
            dispatch_dtype(a.dx.dtype, [&]<typename X>(X*) {
                parallel_rows(a.dy.rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
                    activation_rows<Y, V, X>(a, begin, end);
                });
            });
        });
    });
}

}  // namespace pe::cpu::PE_ISA
