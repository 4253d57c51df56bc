// The head's gradient: a task owns words, makes their logits again, a word's along tokens, and goes on with their rows.
#include "pyengine/linear_logprob_head.h"
#include "pyengine/ops/linear_logprob.h"
#include "pyengine/ops/linear_logprob_workspace.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

// What a place along the chain of tokens holds.
struct Places {
    int32_t *row, *target;  // -1: none, a pair's other half
    float *lse, *scale;     // scale: dlogprob, 0 where there is no row
    int64_t count = 0;

    Places(const LogprobWorkspace& w)
        : row(w.shared<int32_t>(w.row_at)),
          target(w.shared<int32_t>(w.target_at)),
          lse(w.shared<float>(w.lse_at)),
          scale(w.shared<float>(w.scale_at)) {}

    void fill(const LinearLogprobBackwardArgs& a, bool in_pairs) {
        const int64_t whole[2] = {0, a.hidden.rows};
        const int64_t* first = a.groups ? ptr<int64_t>(a.groups) : whole;
        const int64_t groups = a.groups ? a.groups.size - 1 : 1;
        for (int64_t g = 0; g < groups; ++g) {
            for (int64_t t = first[g]; t < first[g + 1]; ++t) put(a, static_cast<int32_t>(t));
            if (in_pairs && count % 2 != 0) put(a, -1);
        }
        for (int64_t i = count; i % kPanel != 0; ++i) clear(i);
    }

  private:
    void clear(int64_t place) {
        row[place] = target[place] = -1;
        lse[place] = scale[place] = 0.0f;
    }
    void put(const LinearLogprobBackwardArgs& a, int32_t t) {
        if (t < 0) return clear(count++);
        row[count] = t;
        target[count] = static_cast<int32_t>(ptr<int64_t>(a.targets)[t]);
        lse[count] = ptr<float>(a.lse)[t];
        scale[count++] = ptr<float>(a.dlogprob)[t];
    }
};

// Rows of hidden twice: tokens in lanes, D along the chain, and the other way round.
template <typename X>
struct Tokens {
    PackedMatrix lanes, chain;

    Tokens(const LogprobWorkspace& w, int64_t places)
        : lanes{w.shared<X>(w.token_lanes), kKindOf<X>, places, w.size.D, nullptr},
          chain{w.shared<X>(w.token_chain), kKindOf<X>, w.size.D, places, nullptr} {}

    void pack(const MatrixView& hidden, const Places& places) const {
        dispatch_dtype(hidden.dtype, [&]<typename T>(T*) {
            const auto row_at = [&](int64_t place) -> const T* {
                const bool here = place < places.count && places.row[place] >= 0;
                return here ? row_ptr<T>(hidden, places.row[place]) : nullptr;
            };
            parallel_rows(places.count, kPanel, [&](int64_t begin, int64_t end) {
                pack_pairs_of_rows<T>(chain, begin, end - begin, row_at, true);
                // A place without a row gets a neighbour's: its scale is 0.
                const T* rows[kPanel];
                for (int64_t i = begin; i < end; ++i) {
                    rows[i - begin] = row_at(places.row[i] >= 0 ? i : i - 1);
                }
                pack_panel(rows, end - begin, hidden.cols,
                           reinterpret_cast<X*>(const_cast<char*>(lanes.panel(begin / kPanel))));
            });
        });
    }
};

// sums (ROWS, 2 kLanes): words of one panel by tokens of another, along D; the bits of packed_tile.
template <int ROWS>
[[gnu::noinline]] void crossed_tile(const float* words, const float* tokens, int64_t D,
                                    const Sums& sums) {
    Accumulators<ROWS> acc(sums);
    for (int64_t d = 0; d < D; ++d) {
        const vec t0 = load(tokens), t1 = load(tokens + kLanes);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            const vec w = broadcast(words[i]);
            acc.v[i][0] = fma(w, t0, acc.v[i][0]);
            acc.v[i][1] = fma(w, t1, acc.v[i][1]);
        }
        words += kPanel;
        tokens += kPanel;
    }
    acc.store_to(sums);
}

template <int ROWS>
[[gnu::noinline]] void crossed_tile(const bf16* words, const bf16* tokens, int64_t D,
                                    const Sums& sums) {
    [[maybe_unused]] const FlushOutsideInstruction flush;
    Accumulators<ROWS> acc(sums);
    for (int64_t d = 0; d < D; d += 2) {
        const Pairs t0 = load_pairs(tokens), t1 = load_pairs(tokens + 2 * kLanes);
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            const Pairs w = broadcast_pair(pair_at(words + 2 * i));
            acc.v[i][0] = dot_pairs(w, t0, acc.v[i][0]);
            acc.v[i][1] = dot_pairs(w, t1, acc.v[i][1]);
        }
        words += 2 * kPanel;
        tokens += 2 * kPanel;
    }
    acc.store_to(sums);
}

template <typename X>
void crossed_rows(const X* words, const X* tokens, int64_t D, int64_t rows, const Sums& sums) {
    switch (rows) {
        case 1: return crossed_tile<1>(words, tokens, D, sums);
        case 2: return crossed_tile<2>(words, tokens, D, sums);
        case 3: return crossed_tile<3>(words, tokens, D, sums);
        case 4: return crossed_tile<4>(words, tokens, D, sums);
        case 5: return crossed_tile<5>(words, tokens, D, sums);
        case 6: return crossed_tile<6>(words, tokens, D, sums);
#if defined(__AVX512F__)
        case 7: return crossed_tile<7>(words, tokens, D, sums);
        case 8: return crossed_tile<8>(words, tokens, D, sums);
        case 9: return crossed_tile<9>(words, tokens, D, sums);
        case 10: return crossed_tile<10>(words, tokens, D, sums);
        case 11: return crossed_tile<11>(words, tokens, D, sums);
        case 12: return crossed_tile<12>(words, tokens, D, sums);
#endif
        default: return;
    }
}

template <typename X>
class WordsTask {
  public:
    WordsTask(const LinearLogprobBackwardArgs& a, const LogprobWorkspace& w, const Places& places,
              const Tokens<X>& tokens, int64_t first)
        : a_(a),
          places_(places),
          tokens_(tokens),
          first_(first),
          words_(min_of(kTaskWords, w.size.V - first)),
          step_(w.step),
          c_(w.of_thread<X>(thread_index(), w.coefficients)) {
        head_.rows = a.packed;
        if (a.packed.data != nullptr) return;
        X* scratch = w.of_thread<X>(thread_index(), w.pack);
        head_.rows = {scratch, kKindOf<X>, words_, w.size.D, nullptr};
        head_.first_row = first;
        for (int64_t i = 0; i < words_; i += kPanel) {
            pack_words(a.weight, first + i, const_cast<X*>(head_.row_panel(first + i)));
        }
    }

    void run() const {
        for (int64_t place = 0; place < places_.count; place += step_) {
            const int64_t n = min_of(step_, places_.count - place);
            for (int64_t i = 0; i < n; i += kPanel) coefficients(place + i, c_ + i);
            add_product(place, n);
        }
    }

  private:
    // c (words, up to 32) of one panel of tokens
    void coefficients(int64_t place, X* out) const {
        const X* tokens = reinterpret_cast<const X*>(tokens_.lanes.panel(place / kPanel));
        constexpr int64_t kWide = sizeof(X) == 4 ? 1 : 2;  // elements of a lane
        for (int64_t panel = 0; panel < words_; panel += kPanel) {
            const X* words = head_.row_panel(first_ + panel);
            for_each_tile(min_of(kPanel, words_ - panel), [&](int64_t i, int64_t rows) {
                alignas(64) float sums[kPackedRows * kPanel];
                for (int64_t column = 0; column < kPanel; column += 2 * kLanes) {
                    crossed_rows(words + i * kWide, tokens + column * kWide, a_.hidden.cols, rows,
                                 {sums + column, kPanel});
                }
                finish(place, first_ + panel + i, rows, sums, out + (panel + i) * step_);
            });
        }
    }
    // c = dlogprob (1[word is the target] - exp(logit - lse)) / temperature
    void finish(int64_t place, int64_t word, int64_t rows, float* sums, X* out) const {
        const vec16 temper = broadcast16(a_.inverse_temperature);
        for (int64_t half = 0; half < kPanel; half += 16) {
            const vec16 scale = load16(places_.scale + place + half) * broadcast16(-1.0f);
            const vec16 lse = load16(places_.lse + place + half);
            for (int64_t i = 0; i < rows; ++i) {
                float* z = sums + i * kPanel + half;
                store16(z, exp(load16(z) * temper - lse) * scale);
            }
        }
        for (int64_t lane = 0; lane < kPanel; ++lane) {
            const int64_t row = places_.target[place + lane] - word;
            if (row >= 0 && row < rows) sums[row * kPanel + lane] += places_.scale[place + lane];
        }
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t half = 0; half < kPanel; half += 16) {
                store16(out + i * step_ + half, load16(sums + i * kPanel + half) * temper);
            }
        }
    }
    // dweight += c . hidden over n places
    void add_product(int64_t place, int64_t n) const {
        const MatrixView& out = a_.dweight;
        const auto bytes = n * kPanel * static_cast<int64_t>(sizeof(X));
        const auto panel = [&](int64_t p) {
            return reinterpret_cast<const X*>(tokens_.chain.panel(p)) + place * kPanel;
        };
        for (int64_t p = 0; p < tokens_.chain.panels(); ++p) {
            const void* next = p + 1 < tokens_.chain.panels() ? panel(p + 1) : nullptr;
            multiply_panel(Rows<X>{c_, step_}, words_, panel(p), n,
                           {row_ptr<float>(out, first_) + p * kPanel, out.row_stride, true},
                           min_of(kPanel, out.cols - p * kPanel), next, bytes);
        }
    }

    const LinearLogprobBackwardArgs& a_;
    const Places& places_;
    const Tokens<X>& tokens_;
    int64_t first_, words_, step_;
    X* c_;
    HeadPart<X> head_;
};

template <typename X>
void backward_weight(const LinearLogprobBackwardArgs& a) {
    const LogprobWorkspace w(logprob_size(a), a.workspace);
    Places places(w);
    places.fill(a, sizeof(X) == 2);
    if (places.count == 0) return;
    const Tokens<X> tokens(w, places.count);
    tokens.pack(a.hidden, places);
    parallel_tasks((w.size.V + kTaskWords - 1) / kTaskWords, a.threads, [&](int64_t task) {
        WordsTask<X>(a, w, places, tokens, task * kTaskWords).run();
    });
}

}  // namespace

void linear_logprob_dweight(const LinearLogprobBackwardArgs& a) {
    product_kind(a) == PackedKind::kF32 ? backward_weight<float>(a) : backward_weight<bf16>(a);
}

}  // namespace pe::cpu::PE_ISA
