#include "pyengine/ops/linear_logprob.h"

#include "pyengine/linear_logprob_head.h"
#include "pyengine/log_softmax.h"
#include "pyengine/ops/linear_logprob_workspace.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

// The block's words: where they are packed, or packed now.
template <typename X>
HeadPart<X> take_block(const LinearLogprobForwardArgs& a, int64_t first, int64_t words,
                       X* scratch) {
    HeadPart<X> part;
    part.rows = a.packed;
    if (a.packed.data != nullptr) return part;
    part.rows = {scratch, kKindOf<X>, words, a.hidden.cols, nullptr};
    part.first_row = first;
    for (int64_t i = 0; i < words; i += kPanel) {
        pack_words(a.weight, first + i, const_cast<X*>(part.row_panel(first + i)));
    }
    return part;
}

// All rows of a wave against each block of words: a task's words stay in cache.
template <typename X>
void wave(const LinearLogprobForwardArgs& a, const LogprobWorkspace& w, int64_t begin,
          int64_t rows) {
    const int64_t V = w.size.V, blocks = w.blocks;
    X* copy = w.shared<X>(w.hidden);
    Rows<X> hidden{row_ptr<X>(a.hidden, begin), a.hidden.row_stride};
    if ((a.hidden.dtype == DType::kF32) != (sizeof(X) == 4)) {
        hidden = {copy, w.padded_D};
        parallel_rows(rows, 16, [&](int64_t first, int64_t last) {
            rows_as(a.hidden, begin + first, last - first, copy + first * w.padded_D, w.padded_D);
        });
    }
    const int64_t* targets = ptr<int64_t>(a.targets) + begin;
    float *table = w.shared<float>(w.table), *picked = w.shared<float>(w.picked);
    parallel_tasks(blocks, a.threads, [&](int64_t block) {
        const int64_t first = block * kVocabBlock, words = min_of(kVocabBlock, V - first);
        const int thread = thread_index();
        const HeadPart<X> part = take_block(a, first, words, w.of_thread<X>(thread, w.pack));
        float* logits = w.of_thread<float>(thread, w.logits);
        for (int64_t slab = 0; slab < rows; slab += w.slab) {
            const int64_t n = min_of(w.slab, rows - slab);
            block_logits(part, {hidden.data + slab * hidden.stride, hidden.stride}, n, first, words,
                         a.inverse_temperature, logits, nullptr);
            for (int64_t i = 0; i < n; ++i) {
                const float* x = logits + i * kVocabBlock;
                float* link = table + 2 * ((slab + i) * blocks + block);
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
                const float* link = table + 2 * (i * blocks + block);
                chain.absorb(link[0], link[1]);
            }
            const float lse = chain.value();
            ptr<float>(a.lse)[begin + i] = lse;
            ptr<float>(a.logprob)[begin + i] = picked[i] - lse;
        }
    });
}

void backward_hidden(const LinearLogprobBackwardArgs& a) {
    parallel_rows(a.hidden.rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const vec16 scale = broadcast16(ptr<float>(a.dlogprob)[t]);
            const float* direction = row_ptr<float>(a.direction, t);
            float* out = row_ptr<float>(a.dhidden, t);
            for_each_16(a.hidden.cols, [&](int64_t d, int64_t n) {
                write(out + d, read(direction + d, n) * scale, n);
            });
        }
    });
}

}  // namespace

void linear_logprob_forward(const LinearLogprobForwardArgs& a) {
    if (a.direction || a.extra) return linear_logprob_direction(a);
    const LogprobWorkspace w(logprob_size(a), a.workspace);
    for (int64_t begin = 0; begin < w.size.T; begin += w.wave) {
        const int64_t rows = min_of(w.wave, w.size.T - begin);
        w.size.kind == PackedKind::kF32 ? wave<float>(a, w, begin, rows)
                                        : wave<bf16>(a, w, begin, rows);
    }
}

void linear_logprob_backward(const LinearLogprobBackwardArgs& a) {
    if (a.dhidden) backward_hidden(a);
    if (a.dweight) linear_logprob_dweight(a);
}

}  // namespace pe::cpu::PE_ISA
