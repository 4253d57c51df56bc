// The logits of linear_kl's two sides, whatever each multiplies. Compiled once per instruction set, inside pe::cpu::PE_ISA.
#pragma once

#include "pyengine/linear_logprob_head.h"
#include "pyengine/ops/linear_kl_workspace.h"

namespace pe::cpu::PE_ISA {
namespace {

template <typename F>
inline void with_element(PackedKind kind, const F& f) {
    if (kind == PackedKind::kF32) {
        f(static_cast<float*>(nullptr));
    } else {
        f(static_cast<bf16*>(nullptr));
    }
}

// Some words of a head, packed as rows.
struct KlWords {
    PackedMatrix rows;
    int64_t first = 0;  // the word that stands first
};

// Where words [first, first + words) are, or are to be packed.
inline KlWords place_words(const LinearKlSide& s, const KlSide& side, int64_t first, int64_t words,
                           void* scratch) {
    if (side.packed) return {s.packed, 0};
    return {{scratch, side.kind, words, side.D, nullptr}, first};
}

// Packs words [begin, end) of those that `to` holds; begin is a multiple of 32.
inline void pack_into(const LinearKlSide& s, const KlWords& to, int64_t begin, int64_t end) {
    if (s.packed.data != nullptr) return;
    with_element(to.rows.kind, [&]<typename X>(X*) {
        for (int64_t i = begin; i < end; i += kPanel) {
            const char* panel = to.rows.panel(i / kPanel);
            pack_words(s.weight, to.first + i, reinterpret_cast<X*>(const_cast<char*>(panel)));
        }
    });
}

// Both sides' logits of rows [begin, begin + rows) and up to kVocabBlock words, in the thread's scratch.
struct KlLogits {
    const float *p, *q;

    template <typename Args>
    KlLogits(const Args& a, const KlWorkspace& w, int thread, const KlWords (&heads)[2],
             int64_t begin, int64_t rows, int64_t word, int64_t words) {
        const LinearKlSide* sides[2] = {&a.p, &a.q};
        float* out[2];
        for (int i = 0; i < 2; ++i) {
            out[i] = w.of_thread<float>(thread, w.logits[i]);
            with_element(w.side[i].kind, [&]<typename X>(X*) {
                HeadPart<X> part;
                part.rows = heads[i].rows;
                part.first_row = heads[i].first;
                X* copy = w.of_thread<X>(thread, w.hidden[i]);
                const Rows<X> x = rows_as(sides[i]->hidden, begin, rows, copy, w.side[i].padded_D);
                block_logits(part, x, rows, word, words, a.inverse_temperature, out[i], nullptr);
            });
        }
        p = out[0];
        q = out[1];
    }
};

// x where p is above 0 (or NaN), 0 where it is 0: a word of no probability adds nothing, whatever q says.
PE_INLINE vec16 where_likely(const vec16& p, const vec16& x) {
    vec16 r;
    const vec zero = broadcast(0.0f);
    for (int i = 0; i < vec16::kParts; ++i) r.part[i] = p.part[i] == zero ? zero : x.part[i];
    return r;
}

// use(offset, 16 of c[t,v] * scale * temperature, how many count) for n words of a row.
template <typename F>
PE_INLINE void coefficients(const float* x, const float* y, int64_t n, const float* lse, float kl,
                            float scale, bool reverse, const F& use) {
    const vec16 largest = broadcast16(lse[0]), log_total = broadcast16(lse[1]);
    const vec16 largest2 = broadcast16(lse[2]), log_total2 = broadcast16(lse[3]);
    for_each_16(n, [&](int64_t i, int64_t count) {
        const vec16 log_p = (read(x + i, count) - largest) - log_total;
        const vec16 log_q = (read(y + i, count) - largest2) - log_total2;
        const vec16 p = exp(log_p);
        if (reverse) return use(i, (p - exp(log_q)) * broadcast16(scale), count);
        const vec16 apart = where_likely(p, (log_p - log_q) - broadcast16(kl));
        use(i, p * apart * broadcast16(scale), count);
    });
}

}  // namespace
}  // namespace pe::cpu::PE_ISA
