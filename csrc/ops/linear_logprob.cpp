#include "pyengine/ops/linear_logprob.h"

#include "pyengine/gemm_tile.h"
#include "pyengine/log_softmax.h"
#include "pyengine/ops/linear_logprob_workspace.h"
#include "pyengine/packed_tile.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

void to_f32_row(const MatrixView& m, int64_t row, int64_t begin, int64_t end, float* out) {
    dispatch_dtype(m.dtype, [&]<typename T>(T*) {
        const T* p = row_ptr<T>(m, row);
        for (int64_t i = begin; i < end; ++i) out[i - begin] = to_float(p[i]);
    });
}

// Rows of hidden as f32: where they are, or a copy in the workspace.
struct HiddenRows {
    const float* data;
    int64_t stride;
};

// bf16 by bf16 takes the register tile of pairs (packed_tile.h), anything else that of f32.
bool in_pairs(const MatrixView& hidden, const MatrixView& weight) {
    return hidden.dtype == DType::kBF16 && weight.dtype == DType::kBF16;
}

HiddenRows hidden_f32(const MatrixView& hidden, int64_t begin, int64_t rows, float* copy,
                      int64_t padded_D) {
    if (hidden.dtype == DType::kF32) return {row_ptr<float>(hidden, begin), hidden.row_stride};
    parallel_rows(rows, 16, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            to_f32_row(hidden, begin + i, 0, hidden.cols, copy + i * padded_D);
        }
    });
    return {copy, padded_D};
}

// Words [first, first + words) as panels [kVocabBlock / kTileCols][D][kTileCols], absent words zero.
void pack_block(const MatrixView& weight, int64_t first, int64_t words, float* pack) {
    const int64_t D = weight.cols;
    dispatch_dtype(weight.dtype, [&]<typename T>(T*) {
        for (int64_t panel = 0; panel < words; panel += kTileCols) {
            float* out = pack + panel * D;
            const T* rows[kTileCols];
            const int64_t n = min_of(words - panel, kTileCols);
            for (int64_t j = 0; j < n; ++j) rows[j] = row_ptr<T>(weight, first + panel + j);
            for (int64_t d = 0; d < D; ++d) {
                for (int64_t j = 0; j < n; ++j) out[d * kTileCols + j] = to_float(rows[j][d]);
                for (int64_t j = n; j < kTileCols; ++j) out[d * kTileCols + j] = 0.0f;
            }
        }
    });
}

// The same as panels of bf16 pairs: [kVocabBlock / kPanel][ceil(D / 2)][kPanel][2].
void pack_block_pairs(const MatrixView& weight, int64_t first, int64_t words, uint32_t* pack) {
    const int64_t D = weight.cols, panel_pairs = (D + 1) / 2 * kPanel;
    for (int64_t word = 0; word < (words + kPanel - 1) / kPanel * kPanel; word += 16) {
        const int count = static_cast<int>(min_of(16, words > word ? words - word : 0));
        const bf16* rows[16];
        for (int i = 0; i < count; ++i) rows[i] = row_ptr<bf16>(weight, first + word + i);
        pack_pairs(rows, count, D, pack + word / kPanel * panel_pairs + word % kPanel);
    }
}

void block_logits_pairs(const MatrixView& hidden, int64_t row, int64_t rows, const uint32_t* pack,
                        int64_t words, float* logits) {
    const int64_t D = hidden.cols, panel_pairs = (D + 1) / 2 * kPanel;
    for (int64_t word = 0; word < words; word += kPanel) {
        const bf16* panel = reinterpret_cast<const bf16*>(pack + word / kPanel * panel_pairs);
        for_each_tile(rows, [&](int64_t first, int64_t n) {
            packed_panel(row_ptr<bf16>(hidden, row + first), hidden.row_stride, panel, D, n,
                         {logits + first * kVocabBlock + word, kVocabBlock});
        });
    }
}

void block_logits_f32(const HiddenRows& hidden, int64_t row, int64_t rows, const float* pack,
                      int64_t D, int64_t words, float* logits) {
    for (int64_t panel = 0; panel < words; panel += kTileCols) {
        gemm({.a = hidden.data + row * hidden.stride,
              .a_row = hidden.stride,
              .a_k = 1,
              .b = pack + panel * D,
              .b_k = kTileCols,
              .c = logits + panel,
              .c_row = kVocabBlock,
              .K = D,
              .accumulate = false},
             rows, kTileCols);
    }
}

// The logits of a block of words: the one place that makes them, forward and backward.
class BlockLogits {
  public:
    // `f32` holds the rows of hidden from `begin` on; without it in pairs.
    BlockLogits(const MatrixView& hidden, const HiddenRows& f32, int64_t begin,
                const MatrixView& weight, float* pack)
        : hidden_(hidden), f32_(f32), begin_(begin), weight_(weight), pack_(pack) {}

    void take(int64_t first, int64_t words) {
        words_ = words;
        if (in_pairs(hidden_, weight_)) {
            pack_block_pairs(weight_, first, words, reinterpret_cast<uint32_t*>(pack_));
        } else {
            pack_block(weight_, first, words, pack_);
        }
    }
    // logits (rows, kVocabBlock) of the words taken
    void make(int64_t row, int64_t rows, float* logits) const {
        if (in_pairs(hidden_, weight_)) {
            block_logits_pairs(hidden_, begin_ + row, rows, reinterpret_cast<uint32_t*>(pack_),
                               words_, logits);
        } else {
            block_logits_f32(f32_, row, rows, pack_, hidden_.cols, words_, logits);
        }
    }

  private:
    const MatrixView& hidden_;
    HiddenRows f32_;
    int64_t begin_;
    const MatrixView& weight_;
    float* pack_;
    int64_t words_ = 0;
};

struct Workspace {
    LogprobWorkspace size;
    float *hidden, *table, *threads;

    Workspace(const LogprobWorkspace& s, void* base) : size(s) {
        hidden = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(base) + 63) / 64 * 64);
        table = hidden + s.hidden_floats();
        threads = table + s.table_floats();
    }
    float* pack() const { return threads + thread_index() * size.thread_floats(); }
    float* logits() const { return pack() + size.pack_floats(); }
};

void forward_wave(const LinearLogprobForwardArgs& a, const Workspace& w, int64_t begin,
                  int64_t rows) {
    const int64_t V = a.weight.rows, blocks = w.size.blocks;
    HiddenRows hidden{};
    if (!in_pairs(a.hidden, a.weight)) {
        hidden = hidden_f32(a.hidden, begin, rows, w.hidden, w.size.padded_D());
    }
    const int64_t* targets = ptr<int64_t>(a.targets) + begin;
    float* picked = w.table + 2 * blocks * w.size.wave;
    parallel_tasks(blocks, a.threads, [&](int64_t block) {
        const int64_t first = block * kVocabBlock, words = min_of(kVocabBlock, V - first);
        BlockLogits block_logits(a.hidden, hidden, begin, a.weight, w.pack());
        block_logits.take(first, words);
        for (int64_t slab = 0; slab < rows; slab += kSlabRows) {
            const int64_t n = min_of(kSlabRows, rows - slab);
            float* logits = w.logits();
            block_logits.make(slab, n, logits);
            for (int64_t i = 0; i < n; ++i) {
                const float* x = logits + i * kVocabBlock;
                float* link = w.table + 2 * ((slab + i) * blocks + block);
                block_max_sum(x, words, link, link + 1);
                const int64_t target = targets[slab + i] - first;
                if (target >= 0 && target < words) picked[slab + i] = x[target];
            }
        }
    });
    parallel_rows(rows, 16, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            LogSumExp chain;
            for (int64_t block = 0; block < blocks; ++block) {
                const float* link = w.table + 2 * (i * blocks + block);
                chain.absorb(link[0], link[1]);
            }
            const float lse = chain.value();
            ptr<float>(a.lse)[begin + i] = lse;
            ptr<float>(a.logprob)[begin + i] = picked[i] - lse;
        }
    });
}

// c[t,v] = dlogprob[t] * (1[v == target] - exp(logit - lse)), in place of the logits.
void coefficients(float* x, int64_t words, float dlogprob, float lse, int64_t target) {
    const vec16 scale = broadcast16(-dlogprob), shift = broadcast16(lse);
    for_each_16(x, words, 0.0f, [&](int64_t i, const vec16& v, int64_t n) {
        const vec16 c = exp(v - shift) * scale;
        if (n == 16) {
            store16(x + i, c);
        } else {
            store16_partial(x + i, c, n);
        }
    });
    if (target >= 0 && target < words) x[target] += dlogprob;
}

void backward_wave(const LinearLogprobBackwardArgs& a, const Workspace& w, int64_t begin,
                   int64_t rows) {
    const int64_t D = a.hidden.cols, V = a.weight.rows, blocks = w.size.blocks;
    const HiddenRows hidden = hidden_f32(a.hidden, begin, rows, w.hidden, w.size.padded_D());
    const float* dlogprob = ptr<float>(a.dlogprob) + begin;
    const float* lse = ptr<float>(a.lse) + begin;
    const int64_t* targets = ptr<int64_t>(a.targets) + begin;
    const int64_t block_floats = w.size.wave * kVocabBlock;

    // A task owns a block of words: its coefficients, and with them its rows of dweight, tokens in order.
    parallel_tasks(blocks, a.threads, [&](int64_t block) {
        const int64_t first = block * kVocabBlock, words = min_of(kVocabBlock, V - first);
        float* c = w.table + block * block_floats;
        BlockLogits block_logits(a.hidden, hidden, begin, a.weight, w.pack());
        block_logits.take(first, words);
        for (int64_t slab = 0; slab < rows; slab += kSlabRows) {
            const int64_t n = min_of(kSlabRows, rows - slab);
            block_logits.make(slab, n, c + slab * kVocabBlock);
            for (int64_t i = slab; i < slab + n; ++i) {
                coefficients(c + i * kVocabBlock, words, dlogprob[i], lse[i], targets[i] - first);
            }
        }
        if (!a.dweight) return;
        gemm({.a = c,
              .a_row = 1,
              .a_k = kVocabBlock,
              .b = hidden.data,
              .b_k = hidden.stride,
              .c = row_ptr<float>(a.dweight, first),
              .c_row = a.dweight.row_stride,
              .K = rows,
              .accumulate = true},
             words, D);
    });
    if (!a.dhidden) return;

    // A task owns columns of dhidden and walks the words in order.
    const int64_t strip = ((D + a.threads - 1) / a.threads + kTileCols - 1) / kTileCols * kTileCols;
    parallel_tasks((D + strip - 1) / strip, a.threads, [&](int64_t task) {
        const int64_t d = task * strip, cols = min_of(strip, D - d);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = block * kVocabBlock, words = min_of(kVocabBlock, V - first);
            const float* b = row_ptr<float>(a.weight, first) + d;
            int64_t b_k = a.weight.row_stride;
            if (a.weight.dtype != DType::kF32) {
                b_k = w.size.padded_D();
                for (int64_t v = 0; v < words; ++v) {
                    to_f32_row(a.weight, first + v, d, d + cols, w.pack() + v * b_k);
                }
                b = w.pack();
            }
            gemm({.a = w.table + block * block_floats,
                  .a_row = kVocabBlock,
                  .a_k = 1,
                  .b = b,
                  .b_k = b_k,
                  .c = row_ptr<float>(a.dhidden, begin) + d,
                  .c_row = a.dhidden.row_stride,
                  .K = words,
                  .accumulate = block > 0},
                 rows, cols);
        }
    });
}

}  // namespace

void linear_logprob_forward(const LinearLogprobForwardArgs& a) {
    const int64_t T = a.hidden.rows;
    const Workspace w(LogprobWorkspace(T, a.hidden.cols, a.weight.rows, false, a.threads),
                      a.workspace);
    for (int64_t begin = 0; begin < T; begin += w.size.wave) {
        forward_wave(a, w, begin, min_of(w.size.wave, T - begin));
    }
}

void linear_logprob_backward(const LinearLogprobBackwardArgs& a) {
    const int64_t T = a.hidden.rows;
    const Workspace w(LogprobWorkspace(T, a.hidden.cols, a.weight.rows, true, a.threads),
                      a.workspace);
    for (int64_t begin = 0; begin < T; begin += w.size.wave) {
        backward_wave(a, w, begin, min_of(w.size.wave, T - begin));
    }
}

}  // namespace pe::cpu::PE_ISA
