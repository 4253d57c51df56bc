// The forward pass that also sums p times the head, or tells more of p: rows walk the vocabulary, and what they carry along is
// rescaled where the largest logit rises.
#include <initializer_list>

#include "pyengine/linear_logprob_head.h"
#include "pyengine/log_softmax.h"
#include "pyengine/ops/linear_logprob.h"
#include "pyengine/ops/linear_logprob_workspace.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

// What a row carries from block to block, (T,) each.
struct State {
    float *largest, *total, *picked;
    float* weighted;  // sum of exp(z - largest) (z - largest)
    float* squares;   // sum of exp(z - largest)^2

    State(float* base, int64_t T)
        : largest(base),
          total(base + T),
          picked(base + 2 * T),
          weighted(base + 3 * T),
          squares(base + 4 * T) {}
    void start(int64_t row) const {
        largest[row] = -kInfinity;
        total[row] = picked[row] = weighted[row] = squares[row] = 0.0f;
    }
};

// Takes in sums over a block that are relative to its own largest logit.
void absorb_extra(const State& s, int64_t row, const float* x, int64_t n, float block_max) {
    const vec16 shift = broadcast16(block_max == -kInfinity ? 0.0f : block_max);
    vec16 weighted = broadcast16(0.0f), squares = weighted, total = weighted;
    for_each_16(x, n, -kInfinity, [&](int64_t, const vec16& v, int64_t) {
        // exp is 0 from -104 down, where the product must not be 0 times infinity.
        const vec16 z = max(v - shift, broadcast16(-120.0f)), e = exp(z);
        total = total + e;
        weighted = fma(e, z, weighted);
        squares = fma(e, e, squares);
    });
    float w = sum(weighted), q = sum(squares);
    if (s.largest[row] == -kInfinity) {
        s.weighted[row] = w;
        s.squares[row] = q;
        return;
    }
    const float rise = block_max - s.largest[row];
    if (rise > 0.0f) {
        const float f = exp_of(-rise);
        if (f > 0.0f) {
            w += f * (s.weighted[row] - s.total[row] * rise);
            q += f * f * s.squares[row];
        }
        s.weighted[row] = w;
        s.squares[row] = q;
    } else {
        const float f = exp_of(rise);
        if (f > 0.0f) s.weighted[row] += f * (w + sum(total) * rise);
        s.squares[row] += f * f * q;
    }
}

// The K best of the words so far, best first; of equal logits the one that came first.
void absorb_top(const LinearLogprobExtra& extra, int64_t row, const float* x, int64_t first,
                int64_t n, float block_max) {
    const int64_t K = extra.top_ids.cols;
    float* best = row_ptr<float>(extra.top_logprobs, row);
    int64_t* ids = row_ptr<int64_t>(extra.top_ids, row);
    if (K == 0 || (first >= K && !(block_max > best[K - 1]))) return;
    for (int64_t v = 0; v < n; ++v) {
        int64_t place = min_of(first + v, K);
        if (place == K && !(x[v] > best[K - 1])) continue;
        if (place == K) --place;
        for (; place > 0 && x[v] > best[place - 1]; --place) {
            best[place] = best[place - 1];
            ids[place] = ids[place - 1];
        }
        best[place] = x[v];
        ids[place] = first + v;
    }
}

void pick(const LinearLogprobForwardArgs& a, const State& s, int64_t row, const float* x,
          int64_t first, int64_t words) {
    const int64_t target = ptr<int64_t>(a.targets)[row] - first;
    if (target >= 0 && target < words) s.picked[row] = x[target];
    if (!a.extra.ids) return;
    const int64_t* ids = row_ptr<int64_t>(a.extra.ids, row);
    for (int64_t k = 0; k < a.extra.ids.cols; ++k) {
        const int64_t v = ids[k] - first;
        if (v >= 0 && v < words) row_ptr<float>(a.extra.id_logprobs, row)[k] = x[v];
    }
}

void scale_row(float* row, int64_t D, float factor) {
    for_each_16(D, [&](int64_t d, int64_t n) {
        write(row + d, read(row + d, n) * broadcast16(factor), n);
    });
}

// A block of a row's logits joins its chain; exp(z - largest) goes to `probs`, relative to the largest logit so far.
template <typename X>
void absorb(const LinearLogprobForwardArgs& a, const State& s, int64_t row, const float* x,
            int64_t first, int64_t words, X* probs) {
    pick(a, s, row, x, first, words);
    const float largest = block_max(x, words);
    if (a.extra.entropy || a.extra.sum_squares) absorb_extra(s, row, x, words, largest);
    if (a.extra.top_ids) absorb_top(a.extra, row, x, first, words, largest);
    LogSumExp chain{s.largest[row], s.total[row]};
    float total;
    if (a.direction) {
        float factor = 1.0f;
        if (largest > chain.largest) {
            const float fall = exp_of(chain.largest - largest);
            scale_row(row_ptr<float>(a.direction, row), a.direction.cols, fall);
        } else if (largest != -kInfinity) {
            factor = exp_of(largest - chain.largest);
        }
        const vec16 scale = broadcast16(factor);
        total = block_sum(x, words, largest, [&](int64_t i, const vec16& e, int64_t n) {
            write(probs + i, e * scale, n);
        });
    } else {
        total = block_sum(x, words, largest, [](int64_t, const vec16&, int64_t) {});
    }
    chain.absorb(largest, total);
    s.largest[row] = chain.largest;
    s.total[row] = chain.total;
}

void finish_direction(const LinearLogprobForwardArgs& a, int64_t row, float total) {
    float* direction = row_ptr<float>(a.direction, row);
    const int64_t target = ptr<int64_t>(a.targets)[row];
    const float inverse = 1.0f / total;
    for (int64_t d = 0; d < a.direction.cols; ++d) {
        const float mean = direction[d] * inverse;
        direction[d] = (head_element(a.weight, a.packed, target, d) - mean) * a.inverse_temperature;
    }
}

void finish_row(const LinearLogprobForwardArgs& a, const State& s, int64_t row) {
    const LogSumExp chain{s.largest[row], s.total[row]};
    const float lse = chain.value();
    ptr<float>(a.lse)[row] = lse;
    ptr<float>(a.logprob)[row] = s.picked[row] - lse;
    if (a.direction) finish_direction(a, row, chain.total);
    const LinearLogprobExtra& e = a.extra;
    if (e.entropy) {
        const float entropy = log_of(chain.total) - s.weighted[row] / chain.total;
        ptr<float>(e.entropy)[row] = entropy;
    }
    if (e.sum_squares) {
        ptr<float>(e.sum_squares)[row] = s.squares[row] / chain.total / chain.total;
    }
    for (const MatrixView& m : {e.top_logprobs, e.id_logprobs}) {
        for (int64_t k = 0; m && k < m.cols; ++k) row_ptr<float>(m, row)[k] -= lse;
    }
}

// Words [first, first + words) packed by all threads, or where they stand packed.
template <typename X>
HeadPart<X> take_chunk(const LinearLogprobForwardArgs& a, const LogprobWorkspace& w, int64_t first,
                       int64_t words) {
    HeadPart<X> part{a.packed, a.packed_columns};
    if (a.packed.data != nullptr) return part;
    const int64_t D = a.hidden.cols;
    part = {{w.shared<X>(w.rows_pack), kKindOf<X>, words, D, nullptr},
            {w.shared<X>(w.columns_pack), kKindOf<X>, D, words, nullptr},
            first,
            first};
    parallel_rows(words, kPanel, [&](int64_t begin, int64_t end) {
        pack_words(a.weight, first + begin, const_cast<X*>(part.row_panel(first + begin)));
        if (!a.direction) return;
        dispatch_dtype(a.weight.dtype, [&]<typename T>(T*) {
            const auto row_at = [&](int64_t k) -> const T* {
                return k < words ? row_ptr<T>(a.weight, first + k) : nullptr;
            };
            pack_pairs_of_rows<T>(part.columns, begin, end - begin, row_at, true);
        });
    });
    return part;
}

// A slab of rows goes over words [first, end).
template <typename X>
class Slab {
  public:
    Slab(const LinearLogprobForwardArgs& a, const LogprobWorkspace& w, int64_t begin, int64_t rows)
        : a_(a),
          w_(w),
          state_(w.shared<float>(w.state), w.size.T),
          begin_(begin),
          rows_(rows),
          logits_(w.of_thread<float>(thread_index(), w.logits)) {
        if constexpr (sizeof(X) == 4) {
            probs_ = logits_;
        } else {
            probs_ = w.of_thread<X>(thread_index(), w.probs);
        }
        X* copy = w.of_thread<X>(thread_index(), w.hidden);
        hidden_ = rows_as(a.hidden, begin, rows, copy, w.padded_D);
    }

    void start() const {
        for (int64_t i = begin_; i < begin_ + rows_; ++i) {
            state_.start(i);
            if (!a_.direction) continue;
            memset(row_ptr<float>(a_.direction, i), 0,
                   static_cast<size_t>(a_.direction.cols) * sizeof(float));
        }
    }
    void walk(const HeadPart<X>& head, int64_t first, int64_t end) const {
        for (int64_t word = first; word < end; word += kVocabBlock) {
            const int64_t words = min_of(kVocabBlock, end - word);
            const void* later = word + words < end ? head.row_panel(word + words) : nullptr;
            const void* after = a_.direction ? head.column_panel(0, word) : later;
            block_logits(head, hidden_, rows_, word, words, a_.inverse_temperature, logits_, after);
            for (int64_t i = 0; i < rows_; ++i) {
                absorb(a_, state_, begin_ + i, logits_ + i * kVocabBlock, word, words,
                       probs_ + i * kVocabBlock);
            }
            if (a_.direction) add_product(head, word, words, later);
        }
    }
    void finish() const {
        for (int64_t i = begin_; i < begin_ + rows_; ++i) finish_row(a_, state_, i);
    }

  private:
    // direction += probs . head, word after word
    void add_product(const HeadPart<X>& head, int64_t word, int64_t words,
                     const void* later) const {
        const MatrixView& out = a_.direction;
        const int64_t panels = head.columns.panels();
        const auto bytes = words * kPanel * static_cast<int64_t>(sizeof(X));
        for (int64_t p = 0; p < panels; ++p) {
            const void* next = p + 1 < panels ? head.column_panel(p + 1, word) : later;
            multiply_panel(Rows<X>{probs_, kVocabBlock}, rows_, head.column_panel(p, word), words,
                           {row_ptr<float>(out, begin_) + p * kPanel, out.row_stride, true},
                           min_of(kPanel, out.cols - p * kPanel), next, bytes);
        }
    }

    const LinearLogprobForwardArgs& a_;
    const LogprobWorkspace& w_;
    State state_;
    int64_t begin_, rows_;
    float* logits_;
    X* probs_;
    Rows<X> hidden_;
};

template <typename X>
void all_rows(const LinearLogprobForwardArgs& a, const LogprobWorkspace& w) {
    const int64_t T = w.size.T, V = w.size.V;
    for (int64_t first = 0; first < V; first += w.chunk) {
        const int64_t end = min_of(V, first + w.chunk);
        const HeadPart<X> part = take_chunk<X>(a, w, first, end - first);
        parallel_tasks(w.slabs, a.threads, [&](int64_t task) {
            const int64_t begin = T * task / w.slabs, rows = T * (task + 1) / w.slabs - begin;
            const Slab<X> slab(a, w, begin, rows);
            if (first == 0) slab.start();
            slab.walk(part, first, end);
            if (end == V) slab.finish();
        });
    }
}

}  // namespace

void linear_logprob_direction(const LinearLogprobForwardArgs& a) {
    const LogprobWorkspace w(logprob_size(a), a.workspace);
    w.size.kind == PackedKind::kF32 ? all_rows<float>(a, w) : all_rows<bf16>(a, w);
}

}  // namespace pe::cpu::PE_ISA
