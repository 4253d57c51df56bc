#include "pyengine/ops/linear.h"
#include "pyengine/ops/linear_backward_workspace.h"
#include "pyengine/pack_columns.h"
#include "pyengine/packed_tile.h"
#include "pyengine/parallel.h"
#include "pyengine/row16.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kColumnsPerTask = 64;
constexpr int64_t kRowsPerTask = 8;
constexpr int64_t kTasks = 16;  // at least, to even out

// Products of f32 read dy in tiles (Left), those of bf16 pairs as it is packed.
template <typename X>
constexpr bool kInTiles = std::is_same_v<X, float> || kIsWidened<X>;

// Of dy: with kPlaces, what stays in the second-level cache.
template <typename X>
constexpr int64_t kPanelsPerTask = kInTiles<X> ? 3 : 6;
template <typename X>
constexpr int64_t kPlaces = kInTiles<X> ? 256 : 512;

int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

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

// Rows of `m` at their places, packed so that lanes are its columns.
template <typename T>
void pack_places(const MatrixView& m, const PackedMatrix& packed, const int32_t* row_at) {
    parallel_rows(packed.K / 2, kRowsPerTask, [&](int64_t begin, int64_t end) {
        const auto row = [&](int64_t place) -> const T* {
            return row_at[place] < 0 ? nullptr : row_ptr<T>(m, row_at[place]);
        };
        pack_pairs_of_rows<T>(packed, 2 * begin, 2 * (end - begin), row, true);
    });
}

// Where `rows` rows of dweight from n on, and the columns of panel k of x, go on: product(their sums), 32 columns wide.
template <typename F>
void add_tile(const LinearBackwardArgs& a, int64_t n, int64_t rows, int64_t panel_k,
              const F& product) {
    const int64_t k = panel_k * kPanel, cols = min_of(kPanel, a.x.cols - k);
    // The sums of the tile that is likely next come from memory meanwhile.
    const int64_t end = min_of(n + rows + kPackedRows, a.dy.cols);
    for (int64_t row = n + rows; row < end; ++row) {
        const float* sums = row_ptr<float>(a.dweight, row) + k;
        __builtin_prefetch(sums, 1);
        __builtin_prefetch(sums + cols - 1, 1);
    }
    float* out = row_ptr<float>(a.dweight, n) + k;
    if (cols == kPanel) return product(Sums{out, a.dweight.row_stride, true});
    alignas(64) float sums[kPackedRows * kPanel];
    const auto bytes = static_cast<size_t>(cols) * sizeof(float);
    for (int64_t i = 0; i < rows; ++i) {
        memcpy(sums + i * kPanel, out + i * a.dweight.row_stride, bytes);
    }
    product(Sums{sums, kPanel, true});
    for (int64_t i = 0; i < rows; ++i) {
        memcpy(out + i * a.dweight.row_stride, sums + i * kPanel, bytes);
    }
}

// f(the panel as products take it)
template <typename X, typename F>
void as_factors(const X* panel, int64_t places, const F& f) {
    static_assert(kPlaces<X> <= kWideDepth);
    if constexpr (kIsWidened<X>) {
        const FlushDenormals flush;
        for_each_wide_stretch(panel, places, [&](const Wide* wide, int64_t, int64_t) { f(wide); });
    } else {
        f(panel);
    }
}

// Rows of dy^T for a stretch of places, each tile of them by itself: what a tile reads then stands side by side, a quarter of
// the lines of a panel.
class Left {
  public:
    explicit Left(int64_t rows) : rows_(rows) {}

    // Rows [begin, end), a panel's.
    void take(int64_t begin, int64_t end, const float* panel, int64_t places) {
        for_each_tile(rows_, [&](int64_t first, int64_t count) {
            const int64_t from = max_of(first, begin), n = min_of(first + count, end) - from;
            if (n <= 0) return;
            float* to = data_ + at(first) + from - first;
            const float* lanes = panel + from - begin;
            // More than the tile's rows where they are there: a copy of a known size is an instruction or two.
            if (n == count && from + kTileWidth <= begin + kPanel) {
                return copy(lanes, places, to, std::integral_constant<int64_t, kTileWidth>());
            }
            copy(lanes, places, to, n);
        });
    }
    const float* tile(int64_t first) const { return data_ + at(first); }

  private:
    template <typename Count>
    static void copy(const float* lanes, int64_t places, float* to, Count count) {
        for (int64_t place = 0; place < places; ++place, lanes += kPanel, to += kTileWidth) {
            for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
        }
    }

    static constexpr int64_t kTiles =
        (kPanelsPerTask<float> * kPanel + kPackedRows - 1) / kPackedRows;
    static constexpr int64_t kTileSize = kPlaces<float> * kTileWidth;

    // Tile i begins more than i - 1 and at most i times kPackedRows rows after the first.
    static int64_t at(int64_t first) { return (first + kPackedRows - 1) / kPackedRows * kTileSize; }

    int64_t rows_;
    alignas(64) float data_[kTiles * kTileSize];
};

// Panels [n0, n1) of dy against panels [k0, k1) of x, both over places [begin, begin + count).
struct Block {
    int64_t n0, n1, k0, k1, begin, count;

    template <typename X>
    const X* at(const PackedMatrix& m, int64_t panel) const {
        return reinterpret_cast<const X*>(m.panel(panel)) + begin * kPanel;
    }
};

template <typename X>
void add_block(const LinearBackwardArgs& a, const PackedMatrix& dy, const PackedMatrix& x,
               const Block& b) {
    const int64_t first_row = b.n0 * kPanel, rows = min_of(b.n1 * kPanel, a.dy.cols) - first_row;
    if constexpr (kInTiles<X>) {
        Left left(rows);
        for (int64_t n = 0; n < rows; n += kPanel) {
            as_factors(b.at<X>(dy, b.n0 + n / kPanel), b.count, [&](const float* panel) {
                left.take(n, min_of(n + kPanel, rows), panel, b.count);
            });
        }
        for (int64_t k = b.k0; k < b.k1; ++k) {
            as_factors(b.at<X>(x, k), b.count, [&](const float* right) {
                for_each_tile(rows, [&](int64_t n, int64_t count) {
                    add_tile(a, first_row + n, count, k, [&](const Sums& sums) {
                        tile_by_panel(left.tile(n), right, b.count, count, sums);
                    });
                });
            });
        }
    } else {
        for (int64_t k = b.k0; k < b.k1; ++k) {
            for (int64_t n = 0; n < rows; n += kPanel) {
                const X* panel = b.at<X>(dy, b.n0 + n / kPanel);
                for_each_tile(min_of(kPanel, rows - n), [&](int64_t first, int64_t count) {
                    add_tile(a, first_row + n + first, count, k, [&](const Sums& sums) {
                        panel_by_panel(panel + 2 * first, b.at<X>(x, k), b.count, count, sums);
                    });
                });
            }
        }
    }
}

// dweight goes on with dy^T x, both packed along tokens. A task owns rows of it, whose part of dy stays in cache for a stretch of
// places while panels of x pass by.
template <typename X>
void backward_weight(const LinearBackwardArgs& a) {
    const LinearBackwardWorkspace size(a.x.rows, a.dy.cols, a.x.cols, a.groups.size - 1, a.x.dtype);
    auto* base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(a.workspace) + 63) / 64 * 64);
    auto* row_at = reinterpret_cast<int32_t*>(base + size.dy_bytes() + size.x_bytes());
    const int64_t places = lay_out(a.groups, row_at);
    if (places == 0) return;
    const PackedMatrix dy{base, size.kind(), a.dy.cols, places, nullptr};
    const PackedMatrix x{base + size.dy_bytes(), size.kind(), a.x.cols, places, nullptr};
    pack_places<X>(a.x, x, row_at);
    dispatch_dtype(a.dy.dtype, [&]<typename S>(S*) { pack_places<S>(a.dy, dy, row_at); });
    const int64_t blocks = (dy.panels() + kPanelsPerTask<X> - 1) / kPanelsPerTask<X>;
    const int64_t parts = min_of(x.panels(), (kTasks + blocks - 1) / blocks);
    parallel_tasks(blocks * parts, num_threads(), [&](int64_t task) {
        const int64_t n = task / parts * kPanelsPerTask<X>, part = task % parts;
        Block block{n,
                    min_of(n + kPanelsPerTask<X>, dy.panels()),
                    x.panels() * part / parts,
                    x.panels() * (part + 1) / parts,
                    0,
                    0};
        for (; block.begin < places; block.begin += kPlaces<X>) {
            block.count = min_of(kPlaces<X>, places - block.begin);
            add_block<X>(a, dy, x, block);
        }
    });
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
PE_INLINE void silu_gate_backward(vec dy, vec gate, vec up, vec* dgate, vec* dup) {
    const vec s = times_sigmoid(broadcast(1.0f), max(broadcast(-150.0f), gate));
    *dup = dy * (gate * s);
    *dgate = (dy * up) * (s * fma(gate, broadcast(1.0f) - s, broadcast(1.0f)));
}

// gelu_tanh(x) = x s(z), z = x (a + b x^2): its slope is s + x s (1 - s) (a + 3 b x^2)
PE_INLINE vec gelu_tanh_backward(vec dy, vec x) {
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
                if (a.y) write(row_ptr<V>(a.y, t) + n, gelu_tanh(first), count);
                for (int i = 0; i < vec16::kParts; ++i) {
                    d0.part[i] = gelu_tanh_backward(dy.part[i], first.part[i]);
                }
                return write(dx + n, d0, count);
            }
            const vec16 up = read(row_ptr<V>(a.kept[1], t) + n, count);
            if (a.y) write(row_ptr<V>(a.y, t) + n, silu(first) * up, count);
            for (int i = 0; i < vec16::kParts; ++i) {
                silu_gate_backward(dy.part[i], first.part[i], up.part[i], &d0.part[i], &d1.part[i]);
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
