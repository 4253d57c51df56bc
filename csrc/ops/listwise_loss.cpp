#include "pyengine/ops/listwise_loss.h"

#include "pyengine/ops/listwise_loss_lanes.h"
#include "pyengine/ops/listwise_loss_workspace.h"
#include "pyengine/segments.h"

namespace pe::cpu::PE_ISA {
namespace {

constexpr int64_t kPlacesPerTask = 2048;
constexpr int64_t kLeastToShare = 2048;  // below it opening a region costs more than it saves

// A thread's memory, one field after the other; what a, b, c hold is the family's.
struct Scratch {
    double *s, *x, *d;  // scores, values, slopes of the scores
    double *a, *b, *c;
    int64_t* order;

    Scratch(void* base, int64_t thread, int64_t places) {
        const auto address = (reinterpret_cast<uintptr_t>(base) + 63) / 64 * 64;
        auto* p = reinterpret_cast<double*>(address) + thread * kListFields * places;
        double** fields[] = {&s, &x, &d, &a, &b, &c};
        for (double** field : fields) *field = p, p += places;
        order = reinterpret_cast<int64_t*>(p);
    }
};

// Groups [first, last) together; group g's places begin at at(g) of the scratch's fields.
struct Chunk {
    const ListwiseLossArgs& args;
    Scratch w;
    const int64_t* starts;
    int64_t first, last, places;

    PE_INLINE int64_t at(int64_t g) const { return starts[g] - starts[first]; }
    PE_INLINE int64_t size(int64_t g) const { return starts[g + 1] - starts[g]; }
    PE_INLINE double& loss(int64_t g) const { return ptr<double>(args.losses)[g]; }

    // f(g, its first place, its last + 1) for every group that is not empty.
    template <typename F>
    PE_INLINE void each(const F& f) const {
        for (int64_t g = first; g < last; ++g) {
            if (size(g) > 0) f(g, at(g), at(g) + size(g));
        }
    }
};

template <typename T>
PE_INLINE void gather(const T* v, const int64_t* index, int64_t n, double* out) {
    if (index == nullptr) {
        for (int64_t k = 0; k < n; ++k) out[k] = v[k];
    } else {
        for (int64_t k = 0; k < n; ++k) out[k] = v[index[k]];
    }
}

// The chunk's elements of a vector by response.
void gather(const Chunk& c, const VectorView& v, double* out) {
    const int64_t* index = ptr<int64_t>(c.args.index);
    const int64_t begin = c.starts[c.first], skip = index == nullptr ? begin : 0;
    if (index != nullptr) index += begin;
    if (v.dtype == DType::kF64) {
        gather(ptr<double>(v) + skip, index, c.places, out);
    } else {
        gather(ptr<float>(v) + skip, index, c.places, out);
    }
}

void take(const Chunk& c) {
    gather(c, c.args.values, c.w.x);
    gather(c, c.args.policy, c.w.s);
    if (c.args.reference) {
        gather(c, c.args.reference, c.w.a);
        for (int64_t k = 0; k < c.places; ++k) c.w.s[k] -= c.w.a[k];
    }
    for (int64_t k = 0; k < c.places; ++k) c.w.s[k] *= c.args.beta;
}

void give(const Chunk& c) {
    auto* dsums = ptr<double>(c.args.dsums);
    const int64_t* index = ptr<int64_t>(c.args.index);
    c.each([&](int64_t g, int64_t begin, int64_t end) {
        const double weight = c.args.weight ? ptr<double>(c.args.weight)[g] : 1.0;
        const double scale = weight * c.args.beta;
        const int64_t shift = c.starts[c.first];
        for (int64_t k = begin; k < end; ++k) {
            dsums[index == nullptr ? shift + k : index[shift + k]] = scale * c.w.d[k];
        }
    });
}

void rank(const Chunk& c) {
    auto* best_score = row_ptr<double>(c.args.ranking, 0);
    auto* worst_score = row_ptr<double>(c.args.ranking, 1);
    auto* in_order = row_ptr<double>(c.args.ranking, 2);
    for (int64_t g = c.first; g < c.last; ++g) best_score[g] = worst_score[g] = in_order[g] = 0.0;
    const double *s = c.w.s, *x = c.w.x;
    c.each([&](int64_t g, int64_t begin, int64_t end) {
        int64_t best = begin, worst = begin, differ = 0, agree = 0;
        for (int64_t i = begin; i < end; ++i) {
            if (precedes(x, i, best)) best = i;
            if (precedes(x, worst, i)) worst = i;
            for (int64_t j = begin; j < i; ++j) {
                const bool up = x[i] > x[j], down = x[j] > x[i];
                differ += up | down;
                agree += (up & (s[i] > s[j])) | (down & (s[j] > s[i]));
            }
        }
        best_score[g] = s[best], worst_score[g] = s[worst];
        in_order[g] = static_cast<double>(agree) / static_cast<double>(differ > 0 ? differ : 1);
    });
}

PE_INLINE double most_of(const double* v, int64_t begin, int64_t end) {
    double most = v[begin];
    for (int64_t k = begin + 1; k < end; ++k) most = v[k] > most ? v[k] : most;
    return most;
}

PE_INLINE double sum_of(const double* v, int64_t begin, int64_t end) {
    double sum = 0.0;
    for (int64_t k = begin; k < end; ++k) sum += v[k];
    return sum;
}

// x becomes each place's share of its group: x / sum(x), 0 where that is not > 0.
void share_values(const Chunk& c) {
    double* x = c.w.x;
    c.each([&](int64_t, int64_t begin, int64_t end) {
        const double total = sum_of(x, begin, end);
        const bool none = !(total > 0.0) && total == total;
        for (int64_t k = begin; k < end; ++k) x[k] = none ? 0.0 : x[k] / total;
    });
}

// The same of e^(x / temperature), whose sum is at least 1 once the largest is taken off.
void share_exponentials(const Chunk& c) {
    double* x = c.w.x;
    const double temperature = c.args.temperature;
    if (temperature != 1.0) flat(x, x, c.places, [&](dvec v) { return v / temperature; });
    c.each([&](int64_t, int64_t begin, int64_t end) {
        const double most = most_of(x, begin, end);
        for (int64_t k = begin; k < end; ++k) x[k] -= most;
    });
    flat(x, x, c.places, exp_of<dvec>);
    c.each([&](int64_t, int64_t begin, int64_t end) {
        const double inverse = 1.0 / sum_of(x, begin, end);
        for (int64_t k = begin; k < end; ++k) x[k] *= inverse;
    });
}

void make_labels(const Chunk& c) {
    c.args.family == ListFamily::kSoftmax ? share_values(c) : share_exponentials(c);
}

// a: e^(s - its group's most), b at a group's first place: that most, c: sum of a by group, then its log.
void cross_entropy(const Chunk& c) {
    const Scratch& w = c.w;
    make_labels(c);
    c.each([&](int64_t, int64_t begin, int64_t end) {
        const double most = w.b[begin] = most_of(w.s, begin, end);
        for (int64_t k = begin; k < end; ++k) w.a[k] = w.s[k] - most;
    });
    flat(w.a, w.a, c.places, exp_of<dvec>);
    c.each([&](int64_t g, int64_t begin, int64_t end) {
        const double z = w.c[g - c.first] = sum_of(w.a, begin, end);
        const double share = sum_of(w.x, begin, end) / z;
        for (int64_t k = begin; k < end; ++k) w.d[k] = share * w.a[k] - w.x[k];
    });
    flat(w.c, w.c, c.last - c.first, log_of<dvec>);
    c.each([&](int64_t g, int64_t begin, int64_t end) {
        const double lse = w.b[begin] + w.c[g - c.first];
        double loss = 0.0;
        for (int64_t k = begin; k < end; ++k) loss += w.x[k] * (lse - w.s[k]);
        c.loss(g) = loss;
    });
}

// a: log(1 + e^-s), b: 1 / (1 + e^s)
void nca(const Chunk& c) {
    const Scratch& w = c.w;
    make_labels(c);
    for (int64_t k = 0; k < c.places; k += kDoubles) {
        const Softplus<dvec> f = softplus_minus(load(w.s + k));
        store(w.a + k, f.value);
        store(w.b + k, f.minus_slope);
    }
    c.each([&](int64_t g, int64_t begin, int64_t end) {
        const double noise = 1.0 / static_cast<double>(end - begin);
        double loss = 0.0;
        for (int64_t k = begin; k < end; ++k) {
            loss += w.x[k] * w.a[k] + (w.a[k] + w.s[k]) * noise;
            w.d[k] = (1.0 - w.b[k]) * noise - w.x[k] * w.b[k];
        }
        c.loss(g) = loss;
    });
}

// Of the k-th of a group: a its score, b the most of it and of all after it, c e^-|a - b of the next|, x the sum of e^(a -
// b) of it and of all after it.
void plackett_luce(const Chunk& c) {
    const Scratch& w = c.w;
    c.each([&](int64_t, int64_t begin, int64_t end) {
        sort(w.x, begin, end - begin, w.order + begin);
        for (int64_t k = begin; k < end; ++k) w.a[k] = w.s[w.order[k]];
        w.b[end - 1] = w.a[end - 1], w.c[end - 1] = 0.0;
        for (int64_t k = end - 2; k >= begin; --k) {
            const bool leads = w.a[k] > w.b[k + 1];
            w.c[k] = leads ? w.b[k + 1] - w.a[k] : w.a[k] - w.b[k + 1];
            w.b[k] = leads ? w.a[k] : w.b[k + 1];
        }
    });
    flat(w.c, w.c, c.places, exp_of<dvec>);
    c.each([&](int64_t, int64_t begin, int64_t end) {
        double z = w.x[end - 1] = 1.0;
        for (int64_t k = end - 2; k >= begin; --k) {
            z = w.a[k] > w.b[k + 1] ? z * w.c[k] + 1.0 : z + w.c[k];
            w.x[k] = z;
        }
    });
    flat(w.x, w.d, c.places, log_of<dvec>);
    c.each([&](int64_t g, int64_t begin, int64_t end) {
        double loss = 0.0;
        for (int64_t k = begin; k < end; ++k) loss += w.b[k] - w.a[k] + w.d[k];
        c.loss(g) = loss;
        double drawn = 0.0;  // sum over ranks up to k of e^(b[k] - b) / x
        for (int64_t k = begin; k < end; ++k) {
            drawn += 1.0 / w.x[k];
            const bool leads = k + 1 == end || w.a[k] > w.b[k + 1];
            w.d[w.order[k]] = (leads ? drawn : drawn * w.c[k]) - 1.0;
            if (leads) drawn *= w.c[k];
        }
    });
}

// Pairs of any groups of a chunk, as many as make the vectors full.
struct Pairs {
    static constexpr int kMost = 64;
    alignas(64) double gap[kMost], weight[kMost], slope[kMost];
    int64_t better[kMost], worse[kMost], group[kMost];
    int n = 0;

    void flush(const Chunk& c) {
        for (int i = n; i % kDoubles != 0; ++i) gap[i] = 0.0;
        for (int i = 0; i < n; i += kDoubles) {
            const Softplus<dvec> f = softplus_minus(load(gap + i));
            store(gap + i, f.value);
            store(slope + i, f.minus_slope);
        }
        for (int i = 0; i < n; ++i) {
            const double slope_of = weight[i] * slope[i];
            c.loss(group[i]) += weight[i] * gap[i];
            c.w.d[better[i]] -= slope_of;
            c.w.d[worse[i]] += slope_of;
        }
        n = 0;
    }
};

// Pairs with values that differ; weight(i, j) of each. b at a group's first place: how many there are.
template <typename W>
PE_INLINE void over_pairs(const Chunk& c, const W& weight) {
    const double *s = c.w.s, *x = c.w.x;
    Pairs pairs;
    for (int64_t k = 0; k < c.places; ++k) c.w.d[k] = 0.0;
    c.each([&](int64_t g, int64_t begin, int64_t end) {
        int64_t count = 0;
        for (int64_t i = begin; i < end; ++i) {
            for (int64_t j = begin; j < i; ++j) {
                const bool up = x[i] > x[j], counts = up | (x[j] > x[i]);
                const int64_t better = up ? i : j, worse = up ? j : i;
                const double gap = s[i] - s[j];
                pairs.gap[pairs.n] = up ? gap : -gap;
                pairs.weight[pairs.n] = weight(i, j);
                pairs.better[pairs.n] = better, pairs.worse[pairs.n] = worse;
                pairs.group[pairs.n] = g;
                pairs.n += counts, count += counts;
                if (pairs.n == Pairs::kMost) pairs.flush(c);
            }
        }
        c.w.b[begin] = static_cast<double>(count > 0 ? count : 1);
    });
    pairs.flush(c);
    if (!c.args.mean) return;
    c.each([&](int64_t g, int64_t begin, int64_t end) {
        const double count = c.w.b[begin];
        c.loss(g) /= count;
        for (int64_t k = begin; k < end; ++k) c.w.d[k] /= count;
    });
}

// a: gains, b: discounts of the places' ranks, c: 1 / log(1 + rank) of the `known` first ranks.
void lambda_pairs(const Chunk& c, int64_t* known) {
    const Scratch& w = c.w;
    flat(w.x, w.a, c.places, gain_of<dvec>);
    c.each([&](int64_t, int64_t begin, int64_t end) {
        for (; *known < end - begin; ++*known) w.c[*known] = discount_of(*known);
        sort(w.s, begin, end - begin, w.order + begin);
        for (int64_t k = begin; k < end; ++k) w.b[w.order[k]] = w.c[k - begin];
    });
    over_pairs(c, [&](int64_t i, int64_t j) {
        return distance(w.a[i], w.a[j]) * distance(w.b[i], w.b[j]);
    });
}

void compute(const Chunk& c, int64_t* known) {
    for (int64_t g = c.first; g < c.last; ++g) c.loss(g) = 0.0;
    take(c);
    if (c.args.ranking) rank(c);
    switch (c.args.family) {
        case ListFamily::kPlackettLuce: plackett_luce(c); break;
        case ListFamily::kSoftmax:
        case ListFamily::kInfoNca: cross_entropy(c); break;
        case ListFamily::kNca: nca(c); break;
        case ListFamily::kPairs: over_pairs(c, [](int64_t, int64_t) { return 1.0; }); break;
        case ListFamily::kLambdaPairs: lambda_pairs(c, known); break;
    }
    give(c);
}

}  // namespace

void listwise_loss(const ListwiseLossArgs& a) {
    const auto* starts = ptr<int64_t>(a.groups);
    const int64_t places = list_places(a);
    for_each_range(a.groups, kPlacesPerTask, kLeastToShare, [&](int64_t begin, int64_t end) {
        const Scratch scratch(a.workspace, thread_index(), places);
        int64_t known = 0;
        for (int64_t g = begin; g < end;) {
            int64_t last = g + 1;
            while (last < end && last - g < kListPlaces &&
                   starts[last + 1] - starts[g] <= kListPlaces) {
                ++last;
            }
            compute({a, scratch, starts, g, last, starts[last] - starts[g]}, &known);
            g = last;
        }
    });
}

}  // namespace pe::cpu::PE_ISA
