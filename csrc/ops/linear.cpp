#include "pyengine/ops/linear.h"

#include "pyengine/packed_tile.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kRowsPerTask = 192;      // rows of x that stay in the second-level cache
constexpr int64_t kTasksPerThread = 16;    // enough to even out, few enough to stream panels
constexpr int64_t kMaxPanelsPerTask = 16;  // about half a megabyte of bf16 weights

int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename T>
PE_INLINE void put(T* y, const vec16& v, int64_t n) {
    n == 16 ? store16(y, v) : store16_partial(y, v, n);
}

// Up to 16 finished values of row t from column n on: to the output, or outputs, that hold them.
void write(const LinearForwardArgs& a, int64_t t, int64_t n, int64_t count, const vec16& v) {
    int64_t first = 0;
    int out = 0;
    while (n >= first + a.y[out].cols) first += a.y[out++].cols;
    if (n + count <= first + a.y[out].cols) {
        const MatrixView& y = a.y[out];
        dispatch_dtype(y.dtype, [&]<typename T>(T*) {
            T* p = row_ptr<T>(y, t) + n - first;
            if (a.epilogue != LinearEpilogue::kAdd) return put(p, v, count);
            put(p, (count == 16 ? load16(p) : load16_partial(p, count, 0.0f)) + v, count);
        });
        return;
    }
    alignas(64) float values[16];
    store16(values, v);
    for (int64_t i = 0; i < count; ++i) {  // a boundary between outputs within the 16
        while (n + i >= first + a.y[out].cols) first += a.y[out++].cols;
        const MatrixView& y = a.y[out];
        dispatch_dtype(y.dtype, [&]<typename T>(T*) {
            T* p = row_ptr<T>(y, t) + n + i - first;
            const float old = a.epilogue == LinearEpilogue::kAdd ? to_float(*p) : 0.0f;
            store_float(p, a.epilogue == LinearEpilogue::kAdd ? old + values[i] : values[i]);
        });
    }
}

vec16 with_bias(const LinearForwardArgs& a, int64_t n, int64_t count, const vec16& v) {
    if (!a.bias || count <= 0) return v;
    const float* bias = ptr<float>(a.bias) + n;
    return v + (count == 16 ? load16(bias) : load16_partial(bias, count, 0.0f));
}

// Where a panel goes if a single output takes all of it.
struct Whole {
    int output = 0;
    int64_t column = 0, width = 0;              // of the output
    int64_t first = 0;                          // the same column, counted over all outputs
    const float* scale = nullptr;               // of the panel; null: none
    const float* bias[2] = {nullptr, nullptr};  // of its halves; null: none
};

bool whole_panel(const LinearForwardArgs& a, int64_t panel, Whole* whole) {
    const PackedMatrix& w = a.weight;
    const bool gated = a.epilogue == LinearEpilogue::kSiluGate;
    const int64_t width = gated ? kPanel / 2 : kPanel, second = gated ? w.N / 2 : width / 2;
    whole->column = whole->first = panel * width;
    whole->width = width;
    if (w.scale != nullptr) whole->scale = w.scale + panel * kPanel;
    if (a.bias) {
        whole->bias[0] = ptr<float>(a.bias) + whole->column;
        whole->bias[1] = whole->bias[0] + second;
    }
    for (whole->output = 0; whole->output < a.outputs; ++whole->output) {
        const int64_t cols = a.y[whole->output].cols;
        if (whole->column < cols) return whole->column + width <= cols;
        whole->column -= cols;
    }
    return false;
}

// For the backward: 16 values that an activation takes, from column n on.
PE_INLINE void keep(const MatrixView& kept, int64_t t, int64_t n, int64_t count, const vec16& v) {
    dispatch_dtype(kept.dtype, [&]<typename T>(T*) { put(row_ptr<T>(kept, t) + n, v, count); });
}

// The 32 sums of a panel, or the 16 of a gated one, where a single output takes them all: as finish_each does, without looking
// for a place of each.
template <LinearEpilogue E, typename T>
[[gnu::noinline]] void finish_whole_as(const LinearForwardArgs& a, const Whole& w, int64_t row,
                                       int64_t rows, const float* sums) {
    for (int64_t i = 0; i < rows; ++i, sums += kPanel) {
        vec16 half[2];
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            half[h] = load16(sums + 16 * h);
            if (w.scale != nullptr) half[h] = half[h] * load16(w.scale + 16 * h);
            if (w.bias[h] != nullptr) half[h] = half[h] + load16(w.bias[h]);
        }
        T* y = row_ptr<T>(a.y[w.output], row + i) + w.column;
        if constexpr (E == LinearEpilogue::kSiluGate) {
            store16(y, silu(half[0]) * half[1]);
            if (!a.kept[0]) continue;
            for (int h = 0; h < 2; ++h) keep(a.kept[h], row + i, w.first, 16, half[h]);
        } else {
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                vec16 v = half[h];
                if constexpr (E == LinearEpilogue::kGelu) {
                    if (a.kept[0]) keep(a.kept[0], row + i, w.first + 16 * h, 16, v);
                    v = gelu_tanh(v);
                }
                if constexpr (E == LinearEpilogue::kAdd) v = load16(y + 16 * h) + v;
                store16(y + 16 * h, v);
            }
        }
    }
}

// Output by output: the end of a matrix, and panels that several outputs share.
void finish_each(const LinearForwardArgs& a, int64_t panel, int64_t row, int64_t rows,
                 const float* sums) {
    const PackedMatrix& w = a.weight;
    const float* scale = w.scale == nullptr ? nullptr : w.scale + panel * kPanel;
    const bool gated = a.epilogue == LinearEpilogue::kSiluGate;
    for (int64_t i = 0; i < rows; ++i) {
        vec16 half[2];
        for (int h = 0; h < 2; ++h) {
            half[h] = load16(sums + i * kPanel + 16 * h);
            if (scale != nullptr) half[h] = half[h] * load16(scale + 16 * h);
        }
        if (gated) {
            // Bias of the gate first, then that of up.
            const int64_t n = panel * 16, count = min_of(16, w.N / 2 - n);
            const vec16 gate = with_bias(a, n, count, half[0]);
            const vec16 up = with_bias(a, w.N / 2 + n, count, half[1]);
            write(a, row + i, n, count, silu(gate) * up);
            if (!a.kept[0]) continue;
            keep(a.kept[0], row + i, n, count, gate);
            keep(a.kept[1], row + i, n, count, up);
            continue;
        }
        for (int h = 0; h < 2; ++h) {
            const int64_t n = panel * kPanel + 16 * h, count = min_of(16, w.N - n);
            if (count <= 0) break;
            const vec16 v = with_bias(a, n, count, half[h]);
            const bool gelu = a.epilogue == LinearEpilogue::kGelu;
            if (gelu && a.kept[0]) keep(a.kept[0], row + i, n, count, v);
            write(a, row + i, n, count, gelu ? gelu_tanh(v) : v);
        }
    }
}

// The sums of a tile become outputs: scale, bias, activation, destination.
void finish_whole(const LinearForwardArgs& a, const Whole& whole, int64_t row, int64_t rows,
                  const float* sums) {
    dispatch_dtype(a.y[whole.output].dtype, [&]<typename T>(T*) {
        switch (a.epilogue) {
            case LinearEpilogue::kStore:
                return finish_whole_as<LinearEpilogue::kStore, T>(a, whole, row, rows, sums);
            case LinearEpilogue::kAdd:
                return finish_whole_as<LinearEpilogue::kAdd, T>(a, whole, row, rows, sums);
            case LinearEpilogue::kSiluGate:
                return finish_whole_as<LinearEpilogue::kSiluGate, T>(a, whole, row, rows, sums);
            case LinearEpilogue::kGelu:
                return finish_whole_as<LinearEpilogue::kGelu, T>(a, whole, row, rows, sums);
        }
    });
}

// Asks for the places that a tile's outputs go to, so that they are there when its sums are.
PE_INLINE void fetch_outputs(const LinearForwardArgs& a, const Whole& whole, int64_t row,
                             int64_t rows) {
    const MatrixView& y = a.y[whole.output];
    const int64_t size = dtype_bytes(y.dtype);
    const char* p = static_cast<const char*>(y.data) + (row * y.row_stride + whole.column) * size;
    for (int64_t i = 0; i < rows; ++i, p += y.row_stride * size) {
        __builtin_prefetch(p, 1);
        __builtin_prefetch(p + whole.width * size - 1, 1);
    }
}

// Where the sums of a panel go.
class Destination {
  public:
    Destination(const LinearForwardArgs& a, int64_t panel)
        : a_(a), panel_(panel), is_whole_(whole_panel(a, panel, &whole_)) {}

    void fetch(int64_t row, int64_t rows) const {
        if (is_whole_) fetch_outputs(a_, whole_, row, rows);
    }
    void finish(int64_t row, int64_t rows, const float* sums) const {
        is_whole_ ? finish_whole(a_, whole_, row, rows, sums)
                  : finish_each(a_, panel_, row, rows, sums);
    }

  private:
    const LinearForwardArgs& a_;
    int64_t panel_;
    Whole whole_;
    bool is_whole_;
};

// The panel that a thread likely multiplies after this one: nothing to fetch where its bytes are 0.
struct Following {
    const char* at;
    int64_t bytes;

    // Each of so many tiles of so many steps along K fetches its part.
    Ahead ahead(int64_t tiles, int64_t steps) const { return {at, bytes, tiles, steps}; }
};

template <typename X, typename W>
void multiply(const LinearForwardArgs& a, int64_t panel, const Following& next, int64_t begin,
              int64_t rows) {
    const W* w = reinterpret_cast<const W*>(a.weight.panel(panel));
    const int64_t steps = sizeof(X) == 4 ? a.weight.K : (a.weight.K + 1) / 2;
    Ahead ahead = next.ahead(num_tiles(rows), steps);
    const Destination to(a, panel);
    for_each_tile(rows, [&](int64_t first, int64_t n) {
        alignas(64) float sums[kPackedRows * kPanel];
        const int64_t row = begin + first;
        to.fetch(row, n);
        packed_panel(row_ptr<X>(a.x, row), a.x.row_stride, w, a.weight.K, n, {sums, kPanel},
                     &ahead);
        to.finish(row, n, sums);
    });
}

// A panel for several tiles: widened once for all of them, a stretch of K at a time.
template <typename W>
void multiply_widened(const LinearForwardArgs& a, int64_t panel, const Following& next,
                      int64_t begin, int64_t rows) {
    alignas(64) float sums[kRowsPerTask * kPanel];
    const W* w = reinterpret_cast<const W*>(a.weight.panel(panel));
    const int64_t K = a.weight.K;
    Ahead ahead = next.ahead(num_tiles(rows), wide_steps(K));
    const Destination to(a, panel);
    for_each_wide_stretch(w, K, [&](const Wide* wide, int64_t k, int64_t depth) {
        const bool is_last = k + depth == K;
        for_each_tile(rows, [&](int64_t first, int64_t n) {
            float* tile = sums + first * kPanel;
            const int64_t row = begin + first;
            if (is_last) to.fetch(row, n);
            wide_panel(row_ptr<bf16>(a.x, row) + k, a.x.row_stride, wide, depth, n,
                       {tile, kPanel, k > 0}, &ahead);
            if (is_last) to.finish(row, n, tile);
        });
    });
}

// For a single tile taking pairs apart costs less than widening them for it.
template <typename W>
void multiply_pairs(const LinearForwardArgs& a, int64_t panel, const Following& next, int64_t begin,
                    int64_t rows) {
    if constexpr (kIsWidened<W>) {
        if (num_tiles(rows) > 1) return multiply_widened<W>(a, panel, next, begin, rows);
    }
    multiply<bf16, W>(a, panel, next, begin, rows);
}

// A product's tasks: the same panels for all blocks of rows follow each other.
struct Tasks {
    int64_t group, blocks, count;  // panels of a task; blocks of rows; tasks

    Tasks(int64_t panels, int64_t rows, int64_t threads)
        : group(max_of(1, min_of(kMaxPanelsPerTask, panels / (threads * kTasksPerThread)))),
          blocks((rows + kRowsPerTask - 1) / kRowsPerTask),
          count((panels + group - 1) / group * blocks) {}

    int64_t first_panel(int64_t task) const { return task / blocks * group; }
};

// After the last panel of a task: a thread goes on with its own next task, the last of which the next product follows.
Following after_task(const LinearForwardArgs& a, const Tasks& tasks, int64_t task) {
    if (task + 1 != own_tasks(tasks.count).end) {
        const int64_t panel = tasks.first_panel(task + 1);
        return panel < a.weight.panels() ? Following{a.weight.panel(panel), a.weight.panel_bytes()}
                                         : Following{a.weight.panel(0), 0};
    }
    if (a.then.data == nullptr) return {a.weight.panel(0), 0};
    const Tasks then(a.then.panels(), a.x.rows, num_threads());
    const int64_t panel = then.first_panel(own_tasks(then.count).begin);
    return {a.then.panel(panel), a.then.panel_bytes()};
}

}  // namespace

void linear_forward(const LinearForwardArgs& a) {
    const int64_t T = a.x.rows, panels = a.weight.panels(), threads = num_threads();
    const Tasks tasks(panels, T, threads);
    parallel_tasks(tasks.count, static_cast<int>(threads), [&](int64_t task) {
        const int64_t begin = task % tasks.blocks * kRowsPerTask;
        const int64_t rows = min_of(kRowsPerTask, T - begin);
        const int64_t first = tasks.first_panel(task), last = min_of(first + tasks.group, panels);
        for (int64_t panel = first; panel < last; ++panel) {
            const Following next =
                panel + 1 < last ? Following{a.weight.panel(panel + 1), a.weight.panel_bytes()}
                                 : after_task(a, tasks, task);
            switch (a.weight.kind) {
                case PackedKind::kF32: multiply<float, float>(a, panel, next, begin, rows); break;
                case PackedKind::kBF16: multiply_pairs<bf16>(a, panel, next, begin, rows); break;
                case PackedKind::kI8: multiply_pairs<int8_t>(a, panel, next, begin, rows); break;
            }
        }
    });
}

}  // namespace pe::cpu::PE_ISA
