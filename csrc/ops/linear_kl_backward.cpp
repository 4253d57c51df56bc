// The gradients of linear_kl: both sides' logits again, then one product with p's head or p's hidden states.
#include <cstring>
#include <type_traits>

#include "pyengine/linear_kl_logits.h"
#include "pyengine/ops/linear_kl.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

// Columns [0, N) of sums (rows, N), at sums.row, continued with x (rows, K) . panels; panel(p) is panel p of the right K.
template <typename X, typename Panel>
void continue_product(const Rows<X>& x, int64_t rows, int64_t K, int64_t N, float* sums,
                      int64_t sums_stride, const Panel& panel) {
    const int64_t panels = (N + kPanel - 1) / kPanel;
    const auto bytes = K * kPanel * static_cast<int64_t>(sizeof(X));
    for (int64_t i = 0; i < panels; ++i) {
        const void* next = i + 1 < panels ? panel(i + 1) : nullptr;
        multiply_panel(x, rows, panel(i), K, {sums + i * kPanel, sums_stride, true},
                       min_of(kPanel, N - i * kPanel), next, bytes);
    }
}

// A chunk of the vocabulary: rows of both heads, and columns of p's.
struct Chunk {
    KlWords heads[2];
    PackedMatrix columns;
    int64_t first, words;
};

// Words [32 panel, ...) of a packed head, as rows of `out`.
template <typename X>
void unpack_panel(const PackedMatrix& packed, int64_t panel, X* out, int64_t stride) {
    const X* from = reinterpret_cast<const X*>(packed.panel(panel));
    constexpr int64_t kWide = sizeof(X) == 4 ? 1 : 2;  // elements of a lane
    for (int64_t k = 0; k < packed.K; k += kWide) {
        for (int64_t lane = 0; lane < kPanel; ++lane) {
            for (int64_t i = 0; i < kWide; ++i) {  // past an odd K it is zero
                out[lane * stride + k + i] = from[k * kPanel + lane * kWide + i];
            }
        }
    }
}

template <typename X>
void pack_columns(const LinearKlBackwardArgs& a, const KlWorkspace& w, const Chunk& c,
                  int64_t begin, int64_t end) {
    const auto pack = [&](const auto& row_of) {
        using T = std::remove_cv_t<std::remove_pointer_t<decltype(row_of(begin))>>;
        pack_pairs_of_rows<T>(
            c.columns, begin, end - begin,
            [&](int64_t i) -> const T* { return i < c.words ? row_of(i) : nullptr; }, true);
    };
    if (w.side[0].packed) {
        X* rows = w.of_thread<X>(thread_index(), w.unpacked);
        const int64_t stride = w.side[0].padded_D;
        unpack_panel(a.p.packed, (c.first + begin) / kPanel, rows, stride);
        return pack([&](int64_t i) -> const X* { return rows + (i - begin) * stride; });
    }
    dispatch_dtype(a.p.weight.dtype, [&]<typename T>(T*) {
        pack([&](int64_t i) -> const T* { return row_ptr<T>(a.p.weight, c.first + i); });
    });
}

template <typename X>
Chunk take_chunk(const LinearKlBackwardArgs& a, const KlWorkspace& w, int64_t first,
                 int64_t words) {
    const auto place = [&](const LinearKlSide& s, int i) {
        return place_words(s, w.side[i], first, words, w.shared<char>(w.head[i]));
    };
    const Chunk c{{place(a.p, 0), place(a.q, 1)},
                  {w.shared<X>(w.columns), w.side[0].kind, w.side[0].D, words, nullptr},
                  first,
                  words};
    parallel_tasks((words + kPanel - 1) / kPanel, a.threads, [&](int64_t panel) {
        const int64_t begin = panel * kPanel, end = min_of(begin + kPanel, words);
        pack_into(a.p, c.heads[0], begin, end);
        pack_into(a.q, c.heads[1], begin, end);
        pack_columns<X>(a, w, c, begin, end);
    });
    return c;
}

// dhidden[t,:] += c[t,v] weight[v,:] over the chunk, for a slab of rows.
template <typename X>
void walk_chunk(const LinearKlBackwardArgs& a, const KlWorkspace& w, const Chunk& c, int64_t begin,
                int64_t rows) {
    const MatrixView& out = a.dhidden;
    X* coefficient = w.of_thread<X>(thread_index(), w.coefficients);
    for (int64_t word = 0; word < c.words; word += kVocabBlock) {
        const int64_t words = min_of(kVocabBlock, c.words - word);
        const KlLogits z(a, w, thread_index(), c.heads, begin, rows, c.first + word, words);
        for (int64_t i = 0; i < rows; ++i) {
            coefficients(z.p + i * kVocabBlock, z.q + i * kVocabBlock, words,
                         row_ptr<float>(a.lse, begin + i), ptr<float>(a.kl)[begin + i], 1.0f,
                         a.reverse, [&](int64_t v, const vec16& x, int64_t n) {
                             write(coefficient + i * kVocabBlock + v, x, n);
                         });
        }
        continue_product<X>({coefficient, kVocabBlock}, rows, words, out.cols,
                            row_ptr<float>(out, begin), out.row_stride, [&](int64_t p) {
                                return reinterpret_cast<const X*>(c.columns.panel(p)) +
                                       word * kPanel;
                            });
    }
}

void scale_rows(const LinearKlBackwardArgs& a, int64_t begin, int64_t rows) {
    for (int64_t t = begin; t < begin + rows; ++t) {
        const vec16 scale = broadcast16(ptr<float>(a.dkl)[t] * a.inverse_temperature);
        float* out = row_ptr<float>(a.dhidden, t);
        for_each_16(a.dhidden.cols,
                    [&](int64_t d, int64_t n) { write(out + d, read(out + d, n) * scale, n); });
    }
}

template <typename X>
void backward_hidden(const LinearKlBackwardArgs& a, const KlWorkspace& w) {
    for (int64_t first = 0; first < w.V; first += w.chunk) {
        const Chunk c = take_chunk<X>(a, w, first, min_of(w.chunk, w.V - first));
        parallel_tasks(w.slabs, a.threads, [&](int64_t task) {
            const int64_t begin = w.T * task / w.slabs;
            const int64_t rows = w.T * (task + 1) / w.slabs - begin;
            for (int64_t t = begin; first == 0 && t < begin + rows; ++t) {
                memset(row_ptr<float>(a.dhidden, t), 0,
                       static_cast<size_t>(a.dhidden.cols) * sizeof(float));
            }
            walk_chunk<X>(a, w, c, begin, rows);
            if (first + c.words == w.V) scale_rows(a, begin, rows);
        });
    }
}

// Places along the chain of tokens: rows in order, in bf16 with a gap after a group of an odd number of rows.
int64_t fill_places(const LinearKlBackwardArgs& a, int32_t* row_at, bool in_pairs) {
    const int64_t whole[2] = {0, a.p.hidden.rows};
    const int64_t* first = a.groups ? ptr<int64_t>(a.groups) : whole;
    const int64_t groups = a.groups ? a.groups.size - 1 : 1;
    int64_t count = 0;
    for (int64_t g = 0; g < groups; ++g) {
        for (int64_t t = first[g]; t < first[g + 1]; ++t) row_at[count++] = static_cast<int32_t>(t);
        if (in_pairs && count % 2 != 0) row_at[count++] = -1;
    }
    return count;
}

// A task owns words: it makes their logits again, all tokens in order, and goes on with their rows of dweight.
template <typename X>
class WordsTask {
  public:
    WordsTask(const LinearKlBackwardArgs& a, const KlWorkspace& w, const PackedMatrix& chain,
              int64_t first)
        : a_(a),
          w_(w),
          chain_(chain),
          row_at_(w.shared<int32_t>(w.row_at)),
          first_(first),
          words_(min_of(kTaskWords, w.V - first)),
          c_(w.of_thread<X>(thread_index(), w.coefficients)),
          heads_{take(a.p, 0), take(a.q, 1)} {}

    void run() const {
        for (int64_t place = 0; place < chain_.K; place += w_.step) {
            const int64_t n = min_of(w_.step, chain_.K - place);
            // Rows follow each other; a gap is at a step's end or between two of them.
            int64_t i = 0;
            while (i < n) {
                if (row_at_[place + i] < 0) {
                    for (int64_t v = 0; v < words_; ++v) store_float(c_ + v * w_.step + i, 0.0f);
                    ++i;
                    continue;
                }
                int64_t rows = 1;
                while (rows < w_.slab && i + rows < n && row_at_[place + i + rows] >= 0) ++rows;
                fill(row_at_[place + i], rows, i);
                i += rows;
            }
            const MatrixView& out = a_.dweight;
            continue_product<X>({c_, w_.step}, words_, n, out.cols, row_ptr<float>(out, first_),
                                out.row_stride, [&](int64_t p) {
                                    return reinterpret_cast<const X*>(chain_.panel(p)) +
                                           place * kPanel;
                                });
        }
    }

  private:
    KlWords take(const LinearKlSide& s, int i) const {
        void* scratch = w_.of_thread<char>(thread_index(), w_.head[i]);
        const KlWords head = place_words(s, w_.side[i], first_, words_, scratch);
        pack_into(s, head, 0, words_);
        return head;
    }
    // Columns [column, column + rows) of c (words, step), for rows from `begin` on.
    void fill(int64_t begin, int64_t rows, int64_t column) const {
        const KlLogits z(a_, w_, thread_index(), heads_, begin, rows, first_, words_);
        for (int64_t i = 0; i < rows; ++i) {
            const float scale = ptr<float>(a_.dkl)[begin + i] * a_.inverse_temperature;
            alignas(64) float row[kTaskWords];
            coefficients(z.p + i * kVocabBlock, z.q + i * kVocabBlock, words_,
                         row_ptr<float>(a_.lse, begin + i), ptr<float>(a_.kl)[begin + i], scale,
                         a_.reverse,
                         [&](int64_t v, const vec16& x, int64_t) { store16(row + v, x); });
            for (int64_t v = 0; v < words_; ++v) {
                store_float(c_ + v * w_.step + column + i, row[v]);
            }
        }
    }

    const LinearKlBackwardArgs& a_;
    const KlWorkspace& w_;
    const PackedMatrix& chain_;
    const int32_t* row_at_;
    int64_t first_, words_;
    X* c_;
    KlWords heads_[2];
};

template <typename X>
void backward_weight(const LinearKlBackwardArgs& a, const KlWorkspace& w) {
    int32_t* row_at = w.shared<int32_t>(w.row_at);
    const int64_t count = fill_places(a, row_at, sizeof(X) == 2);
    const PackedMatrix chain{w.shared<X>(w.chain), w.side[0].kind, w.side[0].D, count, nullptr};
    dispatch_dtype(a.p.hidden.dtype, [&]<typename T>(T*) {
        parallel_rows(count, kPanel, [&](int64_t begin, int64_t end) {
            const auto row = [&](int64_t i) -> const T* {
                return i < count && row_at[i] >= 0 ? row_ptr<T>(a.p.hidden, row_at[i]) : nullptr;
            };
            pack_pairs_of_rows<T>(chain, begin, end - begin, row, true);
        });
    });
    parallel_tasks((w.V + kTaskWords - 1) / kTaskWords, a.threads,
                   [&](int64_t task) { WordsTask<X>(a, w, chain, task * kTaskWords).run(); });
}

}  // namespace

void linear_kl_backward(const LinearKlBackwardArgs& a) {
    const int64_t groups = a.groups ? a.groups.size - 1 : 1;
    if (a.dhidden) {
        const KlWorkspace w(a, KlPass::kHidden, groups, a.workspace);
        with_element(w.side[0].kind, [&]<typename X>(X*) { backward_hidden<X>(a, w); });
    }
    if (a.dweight) {
        const KlWorkspace w(a, KlPass::kWeight, groups, a.workspace);
        with_element(w.side[0].kind, [&]<typename X>(X*) { backward_weight<X>(a, w); });
    }
}

}  // namespace pe::cpu::PE_ISA
