#include "pyengine/ops/sample.h"

#include "pyengine/ops/sample_truncate.h"
#include "pyengine/parallel.h"

namespace pe::cpu::PE_ISA {
namespace {

float row_max(const float* z, int64_t n) {
    vec16 m = broadcast16(-kInfinity);
    for_each_16(z, n, -kInfinity, [&](int64_t, const vec16& v, int64_t) { m = max(v, m); });
    return max(m);
}

// z = sum_m c_m z_m.
void mix(const SampleArgs& a, int64_t row, int64_t V, float* z) {
    for (int64_t m = 0; m < a.models; ++m) {
        const vec16 c = broadcast16(a.coefficients[m]);
        for_each_16(row_ptr<float>(a.logits[m], row), V, 0.0f,
                    [&](int64_t i, const vec16& v, int64_t n) {
                        vec16 sum = c * v;
                        if (m > 0)
                            sum = (n == 16 ? load16(z + i) : load16_partial(z + i, n, 0.0f)) + sum;
                        if (n == 16) {
                            store16(z + i, sum);
                        } else {
                            store16_partial(z + i, sum, n);
                        }
                    });
    }
}

void adjust(const LogitAdjust* begin, const LogitAdjust* end, float* z) {
    for (const LogitAdjust* change = begin; change != end; ++change) {
        z[change->id] = adjusted_logit(z[change->id], *change);
    }
}

// What a token is drawn from: made once for all draws that share row and parameters.
struct Distribution {
    const float* z = nullptr;
    Links links{};
    Boundary boundary;
    int64_t greedy = -1;  // the token, where there is no choice
    float lse = 0.0f, kept_mass = 1.0f;
    bool finite = false;

    float logprob(int64_t token) const {
        if (greedy >= 0) return token == greedy ? 0.0f : -kInfinity;
        return boundary.keeps(z[token], token) ? z[token] - lse : -kInfinity;
    }
};

int64_t first_of(const float* z, int64_t V, const Links& links, float value) {
    for (int64_t b = 0; b * kVocabBlock < V; ++b) {
        if (links.largest[b] != value) continue;
        for (int64_t i = b * kVocabBlock; i < V; ++i) {
            if (z[i] == value) return i;
        }
    }
    return -1;
}

// `raw` is the chain of logits[0], whose links are in s.raw.
Distribution make_distribution(const SampleArgs& a, const SampleParams& p, const LogSumExp& raw,
                               const Scratch& s) {
    const int64_t V = a.logits[0].cols, blocks = (V + kVocabBlock - 1) / kVocabBlock;
    Row row{row_ptr<float>(a.logits[0], p.row), V, s.raw, raw.largest, 0.0};
    LogSumExp chain = raw;
    const bool mixed = a.models > 1 || a.coefficients[0] != 1.0f;
    const bool adjusted = p.adjust_begin < p.adjust_end;
    const bool tempered = p.temperature != 0.0 && p.temperature != 1.0;
    if (mixed || adjusted) {
        if (mixed) {
            mix(a, p.row, V, s.z);
        } else {
            memcpy(s.z, row.z, static_cast<size_t>(V) * sizeof(float));
        }
        adjust(a.adjust + p.adjust_begin, a.adjust + p.adjust_end, s.z);
        row.z = s.z;
    }
    if (tempered) {
        const float largest = mixed || adjusted ? row_max(row.z, V) : raw.largest;
        const auto T = static_cast<float>(p.temperature);
        const float* from = row.z;
        for (int64_t i = 0; i < V; ++i) s.z[i] = (from[i] - largest) / T;
        row.z = s.z;
    }
    if (row.z == s.z) {
        row.links = s.changed;
        chain = link_row(s.z, V, s.changed);
        row.largest = chain.largest;
    }
    Distribution d;
    d.z = row.z;
    d.links = row.links;
    d.lse = chain.value();
    d.finite = __builtin_isfinite(d.lse);
    if (!d.finite) return d;
    if (p.temperature == 0.0) {
        d.greedy = first_of(row.z, V, row.links, row.largest);
        return d;
    }
    row.total = accumulate(row.links, blocks, row.largest, s.cumulative);
    d.boundary = truncate(row, p, s);
    if (d.boundary.all()) return d;
    chain = link_kept(row.z, V, row.links, d.boundary, s.kept);
    d.links = s.kept;
    d.lse = chain.value();
    const double share = accumulate(s.kept, blocks, row.largest, s.cumulative) / row.total;
    d.kept_mass = static_cast<float>(share < 1.0 ? share : 1.0);
    return d;
}

// The first word whose cumulative probability exceeds `uniform` of the whole: its block, then the word in it.
int64_t draw_word(const Distribution& d, int64_t V, const double* cumulative, double uniform) {
    const int64_t blocks = (V + kVocabBlock - 1) / kVocabBlock;
    const double target = uniform * cumulative[blocks - 1];
    int64_t low = 0, high = blocks - 1;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (cumulative[middle] > target) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    const int64_t first = low * kVocabBlock, n = min_of(kVocabBlock, V - first);
    alignas(64) float p[kVocabBlock];
    keep(d.z, first, n, d.boundary, p);
    const vec16 shift = broadcast16(d.links.largest[low]);
    for_each_16(p, n, -kInfinity, [&](int64_t i, const vec16& v, int64_t m) {
        if (m == 16) {
            store16(p + i, exp(v - shift));
        } else {
            store16_partial(p + i, exp(v - shift), m);
        }
    });
    double total = 0.0;
    for (int64_t i = 0; i < n; ++i) total += static_cast<double>(p[i]);
    const double before = low > 0 ? cumulative[low - 1] : 0.0;
    const double goal = (target - before) / (cumulative[low] - before) * total;
    double running = 0.0;
    int64_t last = 0;
    for (int64_t i = 0; i < n && running <= goal; ++i) {
        running += static_cast<double>(p[i]);
        if (p[i] > 0.0f) last = i;  // a sum may waver in its last bit: nothing past a likely word
    }
    return first + last;
}

// Entropy of softmax(z) from the row's links: log S - sum_b e^(m_b - m) (A_b + (m_b - m) S_b) / S with block b's largest m_b,
// S_b = sum e^(z - m_b) and A_b = sum e^(z - m_b) (z - m_b).
float entropy_of(const Row& row) {
    double total = 0.0, moment = 0.0;
    for_each_block(row.V, [&](int64_t b, int64_t first, int64_t n) {
        const float largest = row.links.largest[b];
        if (largest == -kInfinity) return;
        const vec16 shift = broadcast16(largest), least = broadcast16(-104.0f);
        vec16 sums = broadcast16(0.0f);
        for_each_16(row.z + first, n, -kInfinity, [&](int64_t, const vec16& v, int64_t) {
            const vec16 below = max(v - shift, least);  // e^-104 is 0; -inf must not become NaN
            sums = sums + exp(below) * below;
        });
        const double apart = static_cast<double>(largest) - static_cast<double>(row.largest);
        const auto scale = static_cast<double>(exp_of(largest - row.largest));
        const auto block = static_cast<double>(row.links.total[b]);
        total += scale * block;
        moment += scale * (static_cast<double>(sum(sums)) + (scale > 0.0 ? apart * block : 0.0));
    });
    const double entropy = log64(total) - moment / total;
    return static_cast<float>(entropy > 0.0 ? entropy : 0.0);
}

// Draws [begin, end) one after the other, keeping what consecutive ones share.
class Drawer {
  public:
    Drawer(const SampleArgs& a, const Scratch& s) : a_(a), s_(s), V_(a.logits[0].cols) {}

    void run(int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const SampleParams& p = a_.params[b];
            const bool same_row = b > begin && p.row == a_.params[b - 1].row;
            if (same_row) {
                copy_row_outputs(b);
            } else {
                enter_row(p.row);
                write_row_outputs(b);
            }
            if (finite_ && !(same_row && same_distribution(p, a_.params[b - 1]))) {
                distribution_ = make_distribution(a_, p, chains_[0], s_);
            }
            write_draw(b, p);
        }
    }

  private:
    void enter_row(int64_t row) {
        finite_ = true;
        for (int64_t m = a_.models - 1; m >= 0; --m) {  // s.raw ends with the links of logits[0]
            chains_[m] = link_row(row_ptr<float>(a_.logits[m], row), V_, s_.raw);
            lse_[m] = chains_[m].value();
            finite_ = finite_ && __builtin_isfinite(lse_[m]);
        }
        raw_ = {row_ptr<float>(a_.logits[0], row), V_, s_.raw, chains_[0].largest, 0.0};
    }

    static bool same_distribution(const SampleParams& p, const SampleParams& q) {
        return p.temperature == q.temperature && p.top_k == q.top_k && p.top_p == q.top_p &&
               p.min_p == q.min_p && p.adjust_begin == p.adjust_end &&
               q.adjust_begin == q.adjust_end;
    }

    // Of the row alone: entropy and the most likely words.
    void write_row_outputs(int64_t b) {
        const float nan = __builtin_nanf("");
        if (a_.entropy) ptr<float>(a_.entropy)[b] = finite_ ? entropy_of(raw_) : nan;
        if (!a_.top_ids) return;
        const int64_t k = a_.top_ids.cols;
        int64_t* ids = row_ptr<int64_t>(a_.top_ids, b);
        float* logprobs = row_ptr<float>(a_.top_logprobs, b);
        if (finite_) sort_keys(s_.keys, collect_prefix(raw_, top_k_cut(raw_, k, s_), s_.keys));
        for (int64_t i = 0; i < k; ++i) {
            ids[i] = finite_ ? id_of(s_.keys[i]) : -1;
            logprobs[i] = finite_ ? logit_of(s_.keys[i]) - lse_[0] : nan;
        }
    }

    void copy_row_outputs(int64_t b) {
        if (a_.entropy) ptr<float>(a_.entropy)[b] = ptr<float>(a_.entropy)[b - 1];
        if (!a_.top_ids) return;
        for (int64_t i = 0; i < a_.top_ids.cols; ++i) {
            row_ptr<int64_t>(a_.top_ids, b)[i] = row_ptr<int64_t>(a_.top_ids, b - 1)[i];
            row_ptr<float>(a_.top_logprobs, b)[i] = row_ptr<float>(a_.top_logprobs, b - 1)[i];
        }
    }

    void write_draw(int64_t b, const SampleParams& p) {
        const float nan = __builtin_nanf("");
        const Distribution& d = distribution_;
        const bool fine = finite_ && d.finite;
        int64_t token = -1;
        if (fine) token = p.forced >= 0 ? p.forced : drawn(d, p.uniform);
        ptr<int32_t>(a_.status)[b] = fine ? 0 : 1;
        ptr<int64_t>(a_.token_ids)[b] = token;
        ptr<float>(a_.kept_mass)[b] = fine ? d.kept_mass : nan;
        for (int64_t m = 0; m < a_.models; ++m) {
            const float* z = row_ptr<float>(a_.logits[m], p.row);
            row_ptr<float>(a_.logprobs, b)[m] = fine ? z[token] - lse_[m] : nan;
        }
        ptr<float>(a_.sampling_logprobs)[b] = fine ? d.logprob(token) : nan;
    }

    int64_t drawn(const Distribution& d, double uniform) const {
        return d.greedy >= 0 ? d.greedy : draw_word(d, V_, s_.cumulative, uniform);
    }

    const SampleArgs& a_;
    const Scratch& s_;
    const int64_t V_;
    LogSumExp chains_[kMaxSampledModels];
    float lse_[kMaxSampledModels] = {};
    bool finite_ = false;
    Row raw_{};
    Distribution distribution_;
};

}  // namespace

void sample(const SampleArgs& a) {
    const SampleWorkspace size(a.logits[0].cols);
    const bool in_task = parallel_scope() == ParallelScope::kTask;
    // Long enough to share rows, short enough to spread over the threads.
    const int64_t wanted = a.draws / (8 * a.threads);
    const int64_t chunk = wanted < 1 ? 1 : min_of(wanted, 1024);
    parallel_tasks((a.draws + chunk - 1) / chunk, a.threads, [&](int64_t task) {
        const Scratch scratch(a.workspace, in_task ? 0 : thread_index(), size);
        Drawer(a, scratch).run(task * chunk, min_of((task + 1) * chunk, a.draws));
    });
}

}  // namespace pe::cpu::PE_ISA
