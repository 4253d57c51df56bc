#include "pyengine/ops/linear_kl.h"

#include "pyengine/linear_kl_logits.h"
#include "pyengine/log_softmax.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

// A block's part of a row. u = z - largest.
struct KlLink {
    float largest, total;    // of p: total = sum exp(u)
    float largest2, total2;  // of q
    float weighted;          // sum exp(u) (u - u2)
};
static_assert(sizeof(KlLink) == kKlLink * sizeof(float));

KlLink block_link(const float* x, const float* y, int64_t n) {
    KlLink link;
    link.largest = block_max(x, n);
    block_max_sum(y, n, &link.largest2, &link.total2);
    const vec16 shift2 = broadcast16(link.largest2 == -kInfinity ? 0.0f : link.largest2);
    const vec16 shift = broadcast16(link.largest == -kInfinity ? 0.0f : link.largest);
    vec16 weighted = broadcast16(0.0f);
    link.total = block_sum(x, n, link.largest, [&](int64_t i, const vec16& e, int64_t count) {
        const vec16 u = read(x + i, count, -kInfinity) - shift, u2 = read(y + i, count) - shift2;
        weighted = fma(e, where_likely(e, u - u2), weighted);
    });
    link.weighted = sum(weighted);
    return link;
}

// sum exp(u) (u - u2) after the largest logits have risen.
float risen(float weighted, float total, float rise, float rise2) {
    const float f = exp_of(-rise);
    return f == 0.0f || total == 0.0f ? 0.0f : f * (weighted + total * (rise2 - rise));
}

struct KlChain {
    LogSumExp p, q;
    float weighted = 0.0f;

    void absorb(const KlLink& k) {
        const float top = k.largest > p.largest ? k.largest : p.largest;
        const float top2 = k.largest2 > q.largest ? k.largest2 : q.largest;
        const auto rise = [](float from, float to) { return from == to ? 0.0f : to - from; };
        weighted = risen(weighted, p.total, rise(p.largest, top), rise(q.largest, top2)) +
                   risen(k.weighted, k.total, rise(k.largest, top), rise(k.largest2, top2));
        p.absorb(k.largest, k.total);
        q.absorb(k.largest2, k.total2);
    }
    // The largest logits cancel exactly: only the logs of the totals round.
    float finish(float* lse) const {
        const float log_total = log_of(p.total), log_total2 = log_of(q.total);
        lse[0] = p.largest, lse[1] = log_total;
        lse[2] = q.largest, lse[3] = log_total2;
        const float kl = weighted / p.total - (log_total - log_total2);
        return kl < 0.0f ? 0.0f : kl;
    }
};

// All rows of a wave against each block of words: a task's words stay in cache.
void wave(const LinearKlForwardArgs& a, const KlWorkspace& w, int64_t begin, int64_t rows) {
    KlLink* table = w.shared<KlLink>(w.table);
    parallel_tasks(w.blocks, a.threads, [&](int64_t block) {
        const int64_t first = block * kVocabBlock, words = min_of(kVocabBlock, w.V - first);
        const int thread = thread_index();
        const auto take = [&](const LinearKlSide& s, int i) {
            void* scratch = w.of_thread<char>(thread, w.head[i]);
            const KlWords head = place_words(s, w.side[i], first, words, scratch);
            pack_into(s, head, 0, words);
            return head;
        };
        const KlWords heads[2] = {take(a.p, 0), take(a.q, 1)};
        for (int64_t slab = 0; slab < rows; slab += w.slab) {
            const int64_t n = min_of(w.slab, rows - slab);
            const KlLogits z(a, w, thread, heads, begin + slab, n, first, words);
            for (int64_t i = 0; i < n; ++i) {
                table[(slab + i) * w.blocks + block] =
                    block_link(z.p + i * kVocabBlock, z.q + i * kVocabBlock, words);
            }
        }
    });
    parallel_rows(rows, 16, [&](int64_t from, int64_t end) {
        for (int64_t i = from; i < end; ++i) {
            KlChain chain;
            for (int64_t block = 0; block < w.blocks; ++block) {
                chain.absorb(table[i * w.blocks + block]);
            }
            ptr<float>(a.kl)[begin + i] = chain.finish(row_ptr<float>(a.lse, begin + i));
        }
    });
}

}  // namespace

void linear_kl_forward(const LinearKlForwardArgs& a) {
    const KlWorkspace w(a, KlPass::kForward, 0, a.workspace);
    for (int64_t begin = 0; begin < w.T; begin += w.wave) {
        wave(a, w, begin, min_of(w.wave, w.T - begin));
    }
}

}  // namespace pe::cpu::PE_ISA
