#include "cuda_trainer.h"

namespace native {

using pe::DType;
using pe::LinearEpilogue;
using pe::MatrixView;

namespace {

constexpr float kEps = 1e-5f;

Matrix zeros(DType dtype, int64_t rows, int64_t cols) {
    Matrix m(dtype, rows, cols);
    m.fill(0.0f);
    return m;
}

Matrix rounded(const Matrix& x, DType dtype) {
    Matrix y(dtype, x.rows(), x.cols());
    for (int64_t i = 0; i < x.rows(); ++i) {
        for (int64_t j = 0; j < x.cols(); ++j) y.set(i, j, x.get(i, j));
    }
    return y;
}

void add_to(Matrix& x, const Matrix& y) {
    for (int64_t i = 0; i < x.rows(); ++i) {
        for (int64_t j = 0; j < x.cols(); ++j) x.set(i, j, x.get(i, j) + y.get(i, j));
    }
}

void multiply(const Matrix& x, const pe::PackedMatrix& w, LinearEpilogue epilogue,
              std::initializer_list<MatrixView> outputs, const MatrixView& gate = {},
              const MatrixView& up = {}) {
    pe::LinearForwardArgs a;
    a.x = x.view();
    a.weight = w;
    a.epilogue = epilogue;
    a.outputs = 0;
    for (const MatrixView& y : outputs) a.y[a.outputs++] = y;
    a.kept[0] = gate, a.kept[1] = up;
    on_cuda(pe::cuda::linear_forward(a, nullptr), "linear");
}

Matrix product(const Matrix& x, const pe::PackedMatrix& w, DType dtype) {
    Matrix y(dtype, x.rows(), w.N);
    multiply(x, w, LinearEpilogue::kStore, {y.view()});
    return y;
}

Matrix normed(const Matrix& x, const Matrix& weight, DType dtype, Matrix* rstd) {
    Matrix y(dtype, x.rows(), x.cols());
    on_cuda(pe::cuda::rms_norm_forward({x.view(), weight.vector(), kEps, y.view(),
                                        rstd == nullptr ? pe::VectorView{} : rstd->vector()},
                                       nullptr),
            "rms_norm");
    return y;
}

// The gradient of x; that of the weight is added to.
Matrix norm_backward(const Matrix& dy, const Matrix& x, const TrainedMatrix& w,
                     const Matrix& rstd) {
    Matrix dx(DType::kF32, x.rows(), x.cols());
    on_cuda(pe::cuda::rms_norm_backward(
                {dy.view(), x.view(), w.master.vector(), rstd.vector(), dx.view(), w.grad.vector()},
                nullptr),
            "rms_norm_backward");
    return dx;
}

}  // namespace

TrainedMatrix::TrainedMatrix(Rng& rng, pe::PackedKind kind, int64_t N, int64_t K, float size,
                             bool gated)
    : master(DType::kF32, N, K),
      grad(zeros(DType::kF32, N, K)),
      kind_(kind),
      gated_(gated),
      rows_(bytes(kind, N, K)),
      columns_(bytes(kind, K, N)),
      exp_avg_(zeros(DType::kF32, N, K)),
      exp_avg_sq_(zeros(DType::kF32, N, K)) {
    N == 1 ? master.fill(1.0f) : master.fill_normal(rng, size / std::sqrt(static_cast<float>(K)));
    pack();
}

void TrainedMatrix::pack() {
    const int64_t N = master.rows();
    if (N == 1) return;  // of a norm
    for (const Memory* m : {&rows_, &columns_}) memset(m->data(), 0, m->bytes());
    const auto rows = [&](int64_t begin, int64_t n, int64_t first) {
        on_cuda(pe::cuda::linear_pack({master.rows(begin, n), packed(), first, gated_}, nullptr),
                "linear_pack");
    };
    if (gated_) {
        rows(0, N / 2, 0);
        rows(N / 2, N / 2, 16);
    } else {
        rows(0, N, 0);
    }
    on_cuda(pe::cuda::linear_pack_columns({master.view(), columns(), 0}, nullptr), "columns");
}

void TrainedMatrix::step(const pe::AdamWScalars& scalars) {
    on_cuda(pe::cuda::adamw_step(
                {master.vector(), grad.vector(), exp_avg_.vector(), exp_avg_sq_.vector(), scalars},
                nullptr),
            "adamw");
    pack();
}

// Rows of a call: of each tree its prompt, then its responses.
struct CudaTrainer::Batch {
    const TrainedShape& s;
    std::vector<int32_t> tokens, cu = {0}, prefix, first, tables;
    std::vector<int64_t> positions, targets, groups = {0};
    std::vector<int64_t> source;  // rows whose hidden states are asked for
    std::vector<int64_t> head_groups = {0};
    int64_t width = 0, pages = 0;
    struct Part {
        int64_t rows, count, page;  // rows of the call, written from a page on
        int64_t position;
    };
    std::vector<Part> writes;  // of keys and values: prompts once for each sequence that sees them

    Batch(const TrainedShape& shape, const std::vector<TrainedTree>& trees) : s(shape) {
        for (const TrainedTree& tree : trees) {
            size_t longest = 0;
            for (const auto& r : tree.responses) longest = std::max(longest, r.size());
            const auto most = static_cast<int64_t>(tree.prompt.size() + longest);
            width = std::max(width, (most + s.page_tokens - 1) / s.page_tokens);
        }
        for (const TrainedTree& tree : trees) add(tree);
        for (int64_t i = 0; i < static_cast<int64_t>(prefix.size()) * width; ++i)
            tables.push_back(static_cast<int32_t>(i));
        pages = static_cast<int64_t>(tables.size());
    }

    int64_t rows() const { return cu.back(); }
    int64_t sequences() const { return static_cast<int64_t>(prefix.size()); }

    void add(const TrainedTree& tree) {
        const auto P = static_cast<int64_t>(tree.prompt.size());
        const int64_t start = rows();
        const auto sequence = [&](const std::vector<int32_t>& of, int64_t position) {
            const int64_t row = rows(), page = sequences() * width;
            if (position > 0) writes.push_back({start, position, page, 0});
            writes.push_back({row, static_cast<int64_t>(of.size()), page, position});
            for (size_t i = 0; i < of.size(); ++i) {
                tokens.push_back(of[i]);
                positions.push_back(position + static_cast<int64_t>(i));
            }
            cu.push_back(static_cast<int32_t>(tokens.size()));
            prefix.push_back(static_cast<int32_t>(position));
            first.push_back(static_cast<int32_t>(position));
        };
        sequence(tree.prompt, 0);
        for (const auto& response : tree.responses) {
            const int64_t row = rows();
            sequence(response, P);
            for (size_t i = 0; i < response.size(); ++i) {
                source.push_back(i == 0 ? start + P - 1 : row + static_cast<int64_t>(i) - 1);
                targets.push_back(response[i]);
            }
        }
        groups.push_back(rows());
        head_groups.push_back(static_cast<int64_t>(source.size()));
    }
};

struct CudaTrainer::Saved {
    Matrix x, rstd, normed, q, k, v, out, lse;
    Matrix middle, rstd2, normed2, gate, up, inner;
};

CudaTrainer::CudaTrainer(const TrainedShape& s, uint64_t seed)
    : s_(s),
      embed_([&] {
          Rng rng(seed);
          return TrainedMatrix(rng, s.kind, s.vocab, s.hidden, 8.0f);
      }()),
      head_([&] {
          Rng rng(seed + 1);
          return TrainedMatrix(rng, s.kind, s.vocab, s.hidden, 2.0f);
      }()),
      final_norm_([&] {
          Rng rng(seed);
          return TrainedMatrix(rng, s.kind, 1, s.hidden, 1.0f);
      }()),
      cos_(DType::kF32, s.positions, s.head_dim / 2),
      sin_(DType::kF32, s.positions, s.head_dim / 2) {
    Rng rng(seed + 2);
    const int64_t D = s.hidden, A = s.heads * s.head_dim;
    for (int64_t i = 0; i < s.layers; ++i) {
        const auto make = [&](int64_t N, int64_t K, float size, bool gated = false) {
            return TrainedMatrix(rng, s.kind, N, K, size, gated);
        };
        layers_.push_back({make(1, D, 1), make((s.heads + 2 * s.kv_heads) * s.head_dim, D, 1.5f),
                           make(D, A, 1), make(1, D, 1), make(2 * s.inner, D, 1, true),
                           make(D, s.inner, 1)});
    }
    for (int64_t p = 0; p < s.positions; ++p) {
        for (int64_t i = 0; i < s.head_dim / 2; ++i) {
            const double angle =
                static_cast<double>(p) *
                std::pow(1e-4, 2.0 * static_cast<double>(i) / static_cast<double>(s.head_dim));
            cos_.set(p, i, static_cast<float>(std::cos(angle)));
            sin_.set(p, i, static_cast<float>(std::sin(angle)));
        }
    }
}

pe::runtime::DecoderWeights CudaTrainer::weights() const {
    pe::runtime::DecoderWeights w;
    w.vocab_size = s_.vocab, w.hidden_size = s_.hidden, w.num_heads = s_.heads;
    w.num_kv_heads = s_.kv_heads, w.head_dim = s_.head_dim, w.intermediate_size = s_.inner;
    w.norm_eps = kEps, w.attention_scale = s_.scale(), w.compute = s_.compute();
    w.embed = embed_.master.view();
    for (const TrainedLayer& l : layers_) {
        w.layers.push_back({.attention_norm = {l.attention_norm.master.vector(), {}},
                            .qkv = {l.qkv.packed(), {}},
                            .q_norm = {},
                            .k_norm = {},
                            .o = {l.o.packed(), {}},
                            .mlp_norm = {l.mlp_norm.master.vector(), {}},
                            .up = {l.up.packed(), {}},
                            .down = {l.down.packed(), {}},
                            .cos = cos_.view(),
                            .sin = sin_.view()});
    }
    w.final_norm = {final_norm_.master.vector(), {}};
    w.head = head_.packed();
    return w;
}

void CudaTrainer::layer(const TrainedLayer& l, Batch& b, Matrix& x,
                        std::vector<Saved>* saved) const {
    const DType dtype = s_.compute();
    const int64_t T = b.rows(), hd = s_.head_dim, A = s_.heads * hd, B = s_.kv_heads * hd;
    Matrix rstd = floats(T), rstd2 = floats(T);
    Matrix n = normed(x, l.attention_norm.master, dtype, &rstd);
    const Matrix q_(DType::kF32, T, A), k_(DType::kF32, T, B);
    Matrix q(dtype, T, A), k(dtype, T, B), v(dtype, T, B);
    multiply(n, l.qkv.packed(), LinearEpilogue::kStore, {q_.view(), k_.view(), v.view()});
    const auto turn = [&](const Matrix& from, const Matrix& to) {
        on_cuda(pe::cuda::rope({.x = from.view(),
                                .head_dim = hd,
                                .cos = cos_.view(),
                                .sin = sin_.view(),
                                .positions = view_of(b.positions, DType::kI64),
                                .y = to.view()},
                               nullptr),
                "rope");
    };
    turn(q_, q), turn(k_, k);
    const PageShape pages{dtype, s_.kv_heads, hd, s_.page_tokens};
    const Pool keys(pages, b.pages), values(pages, b.pages);
    for (const Batch::Part& part : b.writes) {
        std::vector<int32_t> table;
        for (int64_t i = 0; i < b.width; ++i) table.push_back(static_cast<int32_t>(part.page + i));
        std::vector<int64_t> slots = slots_of(table, part.position, part.count, s_.page_tokens);
        on_cuda(pe::cuda::kv_cache_write({.k = k.rows(part.rows, part.count),
                                          .v = v.rows(part.rows, part.count),
                                          .keys = keys.view(),
                                          .values = values.view(),
                                          .slots = view_of(slots, DType::kI64)},
                                         nullptr),
                "kv_cache");
    }
    Matrix out(dtype, T, A), lse(DType::kF32, T, s_.heads);
    on_cuda(pe::cuda::attention_forward(
                {.q = q.view(),
                 .keys = keys.view(),
                 .values = values.view(),
                 .cu_seqlens = view_of(b.cu, DType::kI32),
                 .first_positions = view_of(b.first, DType::kI32),
                 .block_tables = {b.tables.data(), DType::kI32, b.sequences(), b.width, b.width},
                 .num_heads = s_.heads,
                 .scale = s_.scale(),
                 .out = out.view(),
                 .lse = lse.view()},
                nullptr),
            "attention");
    Matrix start = x.copy();
    multiply(out, l.o.packed(), LinearEpilogue::kAdd, {x.view()});
    Matrix middle = x.copy();
    Matrix n2 = normed(x, l.mlp_norm.master, dtype, &rstd2);
    Matrix gate(dtype, T, s_.inner), up(dtype, T, s_.inner), inner(dtype, T, s_.inner);
    multiply(n2, l.up.packed(), LinearEpilogue::kSiluGate, {inner.view()}, gate.view(), up.view());
    multiply(inner, l.down.packed(), LinearEpilogue::kAdd, {x.view()});
    if (saved != nullptr) {
        saved->push_back({std::move(start), std::move(rstd), std::move(n), std::move(q),
                          std::move(k), std::move(v), std::move(out), std::move(lse),
                          std::move(middle), std::move(rstd2), std::move(n2), std::move(gate),
                          std::move(up), std::move(inner)});
    }
}

Matrix CudaTrainer::forward(Batch& b, std::vector<Saved>* saved) const {
    Matrix x(DType::kF32, b.rows(), s_.hidden);
    for (int64_t t = 0; t < b.rows(); ++t) {
        for (int64_t d = 0; d < s_.hidden; ++d) {
            const float e = embed_.master.get(b.tokens[static_cast<size_t>(t)], d);
            x.set(t, d, s_.compute() == DType::kBF16 ? pe::to_float(pe::to_bf16(e)) : e);
        }
    }
    for (const TrainedLayer& l : layers_) layer(l, b, x, saved);
    Matrix asked(DType::kF32, static_cast<int64_t>(b.source.size()), s_.hidden);
    for (int64_t i = 0; i < asked.rows(); ++i) {
        for (int64_t d = 0; d < s_.hidden; ++d)
            asked.set(i, d, x.get(b.source[static_cast<size_t>(i)], d));
    }
    return asked;
}

std::vector<float> CudaTrainer::head(const Batch& b, const Matrix& hidden, Matrix* lse) const {
    const auto R = static_cast<int64_t>(b.source.size());
    std::vector<float> values(b.source.size());
    pe::LinearLogprobForwardArgs a{
        .hidden = hidden.view(),
        .weight = {},
        .targets = {const_cast<int64_t*>(b.targets.data()), DType::kI64, R},
        .logprob = {values.data(), DType::kF32, R},
        .lse = lse->vector(),
        .packed = head_.packed()};
    const Memory workspace(pe::cuda::linear_logprob_forward_bytes(a));
    a.workspace = workspace.data();
    on_cuda(pe::cuda::linear_logprob_forward(a, nullptr), "linear_logprob");
    return values;
}

std::vector<float> CudaTrainer::logprobs(const std::vector<TrainedTree>& trees) const {
    Batch b(s_, trees);
    const Matrix x = forward(b, nullptr);
    Matrix lse = floats(x.rows());
    return head(b, normed(x, final_norm_.master, s_.compute(), nullptr), &lse);
}

std::vector<float> CudaTrainer::backward(const std::vector<TrainedTree>& trees,
                                         const std::vector<float>& dlogprob) {
    Batch b(s_, trees);
    std::vector<Saved> saved;
    const Matrix x = forward(b, &saved);
    const int64_t R = x.rows();
    Matrix rstd = floats(R), lse = floats(R);
    const Matrix hidden = normed(x, final_norm_.master, s_.compute(), &rstd);
    const std::vector<float> values = head(b, hidden, &lse);
    const Matrix dhidden(DType::kF32, R, s_.hidden);
    pe::LinearLogprobBackwardArgs a{
        .dlogprob = {const_cast<float*>(dlogprob.data()), DType::kF32, R},
        .hidden = hidden.view(),
        .weight = {},
        .targets = view_of(b.targets, DType::kI64),
        .lse = lse.vector(),
        .dhidden = dhidden.view(),
        .dweight = head_.grad.view(),
        .packed = head_.packed(),
        .groups = view_of(b.head_groups, DType::kI64)};
    const Memory workspace(pe::cuda::linear_logprob_backward_bytes(a));
    a.workspace = workspace.data();
    on_cuda(pe::cuda::linear_logprob_backward(a, nullptr), "linear_logprob_backward");
    const Matrix dasked = norm_backward(dhidden, x, final_norm_, rstd);
    Matrix dx = zeros(DType::kF32, b.rows(), s_.hidden);
    const auto add_row = [&](Matrix& to, int64_t row, const Matrix& from, int64_t i) {
        for (int64_t d = 0; d < s_.hidden; ++d) to.set(row, d, to.get(row, d) + from.get(i, d));
    };
    for (int64_t i = 0; i < R; ++i) add_row(dx, b.source[static_cast<size_t>(i)], dasked, i);
    for (size_t i = layers_.size(); i-- > 0;) layer_backward(layers_[i], b, saved[i], dx);
    for (int64_t t = 0; t < b.rows(); ++t)
        add_row(embed_.grad, b.tokens[static_cast<size_t>(t)], dx, t);
    return values;
}

void CudaTrainer::layer_backward(TrainedLayer& l, Batch& b, const Saved& saved, Matrix& dx) {
    const DType dtype = s_.compute();
    const int64_t T = b.rows(), hd = s_.head_dim, A = s_.heads * hd, B = s_.kv_heads * hd;
    const auto of_weight = [&](TrainedMatrix& w, const Matrix& dy, const Matrix& x) {
        const auto groups = static_cast<int64_t>(b.groups.size()) - 1;
        const Memory workspace(pe::cuda::linear_backward_workspace_bytes(
            T, w.master.rows(), w.master.cols(), groups, x.dtype()));
        on_cuda(pe::cuda::linear_backward({.dy = dy.view(),
                                           .x = x.view(),
                                           .groups = view_of(b.groups, DType::kI64),
                                           .dweight = w.grad.view(),
                                           .dbias = {},
                                           .workspace = workspace.data()},
                                          nullptr),
                "linear_backward");
    };
    const Matrix dinner = product(rounded(dx, dtype), l.down.columns(), dtype);
    of_weight(l.down, dx, saved.inner);
    const Matrix dkept(dtype, T, 2 * s_.inner);
    on_cuda(
        pe::cuda::linear_activation_backward(
            {.dy = dinner.view(), .kept = {saved.gate.view(), saved.up.view()}, .dx = dkept.view()},
            nullptr),
        "linear_activation_backward");
    of_weight(l.up, dkept, saved.normed2);
    const Matrix dnormed2 = product(dkept, l.up.columns(), DType::kF32);
    add_to(dx, norm_backward(dnormed2, saved.middle, l.mlp_norm, saved.rstd2));

    const Matrix dout = product(rounded(dx, dtype), l.o.columns(), dtype);
    of_weight(l.o, dx, saved.out);
    Matrix dq(DType::kF32, T, A), dk(DType::kF32, T, B), dv(DType::kF32, T, B);
    const Memory workspace(pe::cuda::attention_backward_workspace_bytes(T, s_.heads));
    on_cuda(pe::cuda::attention_backward({.dout = dout.view(),
                                          .q = saved.q.view(),
                                          .k = saved.k.view(),
                                          .v = saved.v.view(),
                                          .out = saved.out.view(),
                                          .lse = saved.lse.view(),
                                          .cu_seqlens = view_of(b.cu, DType::kI32),
                                          .prefix_rows = view_of(b.prefix, DType::kI32),
                                          .num_heads = s_.heads,
                                          .num_kv_heads = s_.kv_heads,
                                          .head_dim = hd,
                                          .scale = s_.scale(),
                                          .dq = dq.view(),
                                          .dk = dk.view(),
                                          .dv = dv.view(),
                                          .workspace = workspace.data()},
                                         nullptr),
            "attention_backward");
    Matrix dqkv(dtype, T, A + 2 * B);
    const auto columns = [&](int64_t first, int64_t n) {
        MatrixView v = dqkv.view();
        v.data = static_cast<char*>(v.data) + first * pe::dtype_bytes(dtype);
        v.cols = n;
        return v;
    };
    const auto turn_back = [&](const Matrix& from, int64_t first) {
        on_cuda(pe::cuda::rope({.x = from.view(),
                                .head_dim = hd,
                                .cos = cos_.view(),
                                .sin = sin_.view(),
                                .positions = view_of(b.positions, DType::kI64),
                                .y = columns(first, from.cols()),
                                .inverse = true},
                               nullptr),
                "rope");
    };
    turn_back(dq, 0), turn_back(dk, A);
    for (int64_t t = 0; t < T; ++t) {
        for (int64_t i = 0; i < B; ++i) dqkv.set(t, A + B + i, dv.get(t, i));
    }
    of_weight(l.qkv, dqkv, saved.normed);
    const Matrix dnormed = product(dqkv, l.qkv.columns(), DType::kF32);
    add_to(dx, norm_backward(dnormed, saved.x, l.attention_norm, saved.rstd));
}

std::vector<TrainedMatrix*> CudaTrainer::all() {
    std::vector<TrainedMatrix*> list = {&embed_, &head_, &final_norm_};
    for (TrainedLayer& l : layers_)
        list.insert(list.end(), {&l.attention_norm, &l.qkv, &l.o, &l.mlp_norm, &l.up, &l.down});
    return list;
}

std::vector<const Matrix*> CudaTrainer::gradients() const {
    std::vector<const Matrix*> list;
    for (const TrainedMatrix* m : const_cast<CudaTrainer*>(this)->all()) list.push_back(&m->grad);
    return list;
}

void CudaTrainer::zero_grad() {
    for (TrainedMatrix* m : all()) m->grad.fill(0.0f);
}

void CudaTrainer::step(int64_t number, float learning_rate) {
    const double t = static_cast<double>(number);
    pe::AdamWScalars s;
    s.beta1 = 0.9f, s.one_minus_beta1 = 0.1f;
    s.beta2 = 0.95f, s.one_minus_beta2 = 0.05f;
    s.step_size = static_cast<float>(learning_rate / (1 - std::pow(0.9, t)));
    s.inverse_root = static_cast<float>(1 / std::sqrt(1 - std::pow(0.95, t)));
    s.eps = 1e-8f;
    for (TrainedMatrix* m : all()) m->step(s);
}

}  // namespace native
