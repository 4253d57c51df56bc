// The backward of linear on every instruction set and on CUDA's host twin, in memory of exactly the stated sizes: against double,
// and the same bits however groups are cut into calls, for any threads and every instruction set with FMA.
#include "check.h"
#include "cuda_runtime.h"
#include "pyengine/ops/linear.h"

namespace native {
namespace {

using pe::DType;

using Groups = std::vector<int64_t>;  // rows of each

struct Case {
    DType dy, x;
    Groups groups;
    int64_t N, K;
    bool apart = true;  // elements between rows, so that rows start anywhere

    int64_t T() const {
        int64_t rows = 0;
        for (const int64_t n : groups) rows += n;
        return rows;
    }
    std::string text() const {
        return "linear_backward T " + std::to_string(T()) + " N " + std::to_string(N) + " K " +
               std::to_string(K) + " dtypes " + std::to_string(static_cast<int>(dy)) +
               std::to_string(static_cast<int>(x));
    }
};

Memory boundaries(const Groups& groups) {
    Memory memory(static_cast<int64_t>(groups.size() + 1) * 8);
    auto* first = static_cast<int64_t*>(memory.data());
    first[0] = 0;
    for (size_t g = 0; g < groups.size(); ++g) first[g + 1] = first[g] + groups[g];
    return memory;
}

// One device: the active instruction set, or CUDA on the host.
struct Device {
    bool is_cuda;

    void pack(const pe::LinearPackArgs& a) const {
        is_cuda ? ended(pe::cuda::linear_pack(a, nullptr)) : pe::cpu::linear_pack(a);
    }
    void pack_columns(const pe::LinearPackColumnsArgs& a) const {
        is_cuda ? ended(pe::cuda::linear_pack_columns(a, nullptr))
                : pe::cpu::linear_pack_columns(a);
    }
    void transpose(const pe::LinearTransposeArgs& a) const {
        is_cuda ? ended(pe::cuda::linear_transpose(a, nullptr)) : pe::cpu::linear_transpose(a);
    }
    void forward(const pe::LinearForwardArgs& a) const {
        is_cuda ? ended(pe::cuda::linear_forward(a, nullptr)) : pe::cpu::linear_forward(a);
    }
    void activation_backward(const pe::LinearActivationBackwardArgs& a) const {
        is_cuda ? ended(pe::cuda::linear_activation_backward(a, nullptr))
                : pe::cpu::linear_activation_backward(a);
    }
    // From an odd address on the CPU: what aligning it takes is counted in.
    void backward(pe::LinearBackwardArgs a) const {
        const int64_t G = a.groups.size - 1, N = a.dy.cols, K = a.x.cols;
        const int64_t bytes =
            is_cuda ? pe::cuda::linear_backward_workspace_bytes(a.x.rows, N, K, G, a.x.dtype)
                    : pe::cpu::linear_backward_workspace_bytes(a.x.rows, N, K, G, a.x.dtype) + 1;
        const Memory workspace(bytes);
        a.workspace = static_cast<char*>(workspace.data()) + (is_cuda ? 0 : 1);
        is_cuda ? ended(pe::cuda::linear_backward(a, nullptr)) : pe::cpu::linear_backward(a);
    }

  private:
    static void ended(int status) { CHECK(status == cudaSuccess, "launch"); }
};

constexpr Device kCpu{false}, kCuda{true};

// Goes on with the gradients of rows [begin, ...), which `groups` are.
void call(const Device& device, const Case& c, const Matrix& dy, const Matrix& x, int64_t begin,
          const Groups& groups, const Matrix& dweight, const Matrix& dbias) {
    const auto G = static_cast<int64_t>(groups.size());
    int64_t rows = 0;
    for (const int64_t n : groups) rows += n;
    const Memory first = boundaries(groups);
    device.backward({.dy = dy.rows(begin, rows),
                     .x = x.rows(begin, rows),
                     .groups = {first.data(), DType::kI64, G + 1},
                     .dweight = dweight.view(),
                     .dbias = dbias.vector()});
    CHECK(dweight.padding_is_intact(), c.text() + " writes between rows");
}

struct Gradients {
    Matrix dweight, dbias;
    explicit Gradients(const Case& c)
        : dweight(DType::kF32, c.N, c.K, 3), dbias(DType::kF32, 1, c.N) {
        Rng rng(7);
        dweight.fill_normal(rng), dbias.fill_normal(rng);
    }
    bool same_bits(const Gradients& other) const {
        return dweight.same_bits(other.dweight) && dbias.same_bits(other.dbias);
    }
};

// `cut` groups in a first call, the others in a second one.
Gradients run(const Case& c, const Matrix& dy, const Matrix& x, size_t cut, int threads,
              const Device& device = kCpu) {
    Gradients g(c);
    pe::set_num_threads(threads);
    const auto middle = c.groups.begin() + static_cast<int64_t>(cut);
    const Groups head(c.groups.begin(), middle), tail(middle, c.groups.end());
    int64_t rows = 0;
    for (const int64_t n : head) rows += n;
    if (cut > 0) call(device, c, dy, x, 0, head, g.dweight, g.dbias);
    call(device, c, dy, x, rows, tail, g.dweight, g.dbias);
    pe::set_num_threads(1);
    return g;
}

double check_values(const Case& c, const Matrix& dy, const Matrix& x, const Gradients& g) {
    const Gradients before(c);
    const double steps = (static_cast<double>(c.T()) + 2) * kUnit;
    double worst = 0;
    for (int64_t n = 0; n < c.N; ++n) {
        double bias = before.dbias.get(0, n), bias_size = std::fabs(bias);
        for (int64_t t = 0; t < c.T(); ++t) {
            bias += dy.get(t, n), bias_size += std::fabs(dy.get(t, n));
        }
        worst = std::max(worst, SHARE(g.dbias.get(0, n), bias, steps * bias_size, c.text()));
        for (int64_t k = 0; k < c.K; ++k) {
            double sum = before.dweight.get(n, k), size = std::fabs(sum);
            for (int64_t t = 0; t < c.T(); ++t) {
                const float d = dy.get(t, n);
                const double rounded = c.x == DType::kBF16 ? pe::to_float(pe::to_bf16(d)) : d;
                sum += rounded * x.get(t, k), size += std::fabs(rounded * x.get(t, k));
            }
            worst = std::max(worst, SHARE(g.dweight.get(n, k), sum, 2 * steps * size, c.text()));
        }
    }
    return worst;
}

double check_case(const Case& c, const Options& options) {
    Rng rng(static_cast<uint64_t>(c.T() * 1000003 + c.N * 1009 + c.K));
    Matrix dy(c.dy, c.T(), c.N, c.apart ? 1 : 0), x(c.x, c.T(), c.K, c.apart ? 5 : 0);
    dy.fill_normal(rng), x.fill_normal(rng);
    double worst = 0;
    std::vector<Gradients> fma;
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        Gradients g = run(c, dy, x, 0, 1);
        worst = std::max(worst, check_values(c, dy, x, g));
        for (size_t cut = 0; cut <= c.groups.size(); ++cut) {
            for (const int threads : {1, 2})
                CHECK(run(c, dy, x, cut, threads).same_bits(g), c.text() + " in two calls");
        }
        if (!has_fma(isa)) continue;
        if (!fma.empty()) CHECK(g.same_bits(fma[0]), c.text() + " against the first with FMA");
        fma.push_back(std::move(g));
    }
    if (!options.cuda) return worst;
    const Gradients g = run(c, dy, x, 0, 1, kCuda);
    if (c.x == DType::kF32 && !fma.empty()) CHECK(g.same_bits(fma[0]), c.text() + " on CUDA");
    for (size_t cut = 1; cut <= c.groups.size(); ++cut)
        CHECK(run(c, dy, x, cut, 1, kCuda).same_bits(g), c.text() + " in two calls on CUDA");
    cuda_on_host::set_reversed(true);
    CHECK(run(c, dy, x, 0, 1, kCuda).same_bits(g), c.text() + " with threads in another order");
    cuda_on_host::set_reversed(false);
    return std::max(worst, check_values(c, dy, x, g));
}

pe::PackedMatrix packed(pe::PackedKind kind, int64_t N, int64_t K) {
    return {nullptr, kind, N, K, nullptr};
}

// The transpose of parts of odd heights has the bytes of the transpose packed by rows; so after other values.
void check_columns(pe::PackedKind kind, DType dtype, const Options& options) {
    const int64_t N = 45, parts[] = {3, 1, 33}, K = 37;
    Rng rng(3);
    Matrix weight(dtype, K, N, 2), transpose(dtype, N, K);
    for (int round = 0; round < 2; ++round) {
        weight.fill_normal(rng);
        for (int64_t n = 0; n < N; ++n) {
            for (int64_t k = 0; k < K; ++k) transpose.set(n, k, weight.get(k, n));
        }
    }
    const pe::PackedMatrix shape = packed(kind, N, K);
    const int64_t bytes = shape.panels() * shape.panel_bytes();
    const auto check = [&](const Device& device) {
        const Memory columns(bytes), rows(bytes);
        memset(columns.data(), 0, columns.bytes()), memset(rows.data(), 0, rows.bytes());
        pe::PackedMatrix to = shape;
        to.data = rows.data();
        pe::cpu::linear_pack({transpose.view(), to, 0, false});
        to.data = columns.data();
        Matrix other(dtype, K, N);
        other.fill(1.0f);
        for (const Matrix* m : {&other, &weight}) {
            int64_t first = 0;
            for (const int64_t n : parts) {
                device.pack_columns({m->rows(first, n), to, first});
                first += n;
            }
        }
        CHECK(memcmp(columns.data(), rows.data(), columns.bytes()) == 0, "packed columns");
        // And from the matrix when it is packed itself.
        pe::PackedMatrix from = packed(kind, K, N);
        const Memory by_rows(from.panels() * from.panel_bytes()), transposed(bytes);
        memset(by_rows.data(), 0, by_rows.bytes());
        memset(transposed.data(), 255, transposed.bytes());
        from.data = by_rows.data();
        device.pack({weight.view(), from, 0, false});
        to.data = transposed.data();
        device.transpose({from, to, false});
        CHECK(memcmp(transposed.data(), rows.data(), rows.bytes()) == 0, "transposed");
    };
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        for (const int threads : {1, 2}) {
            pe::set_num_threads(threads);
            check(kCpu);
        }
    }
    if (options.cuda) check(kCuda);
    pe::set_num_threads(1);
}

// CUDA packs the bytes that the CPU packs: a matrix by its parts, a gated pair, and so its transpose.
void check_packing_on_cuda(pe::PackedKind kind, DType dtype) {
    const int64_t N = 90, K = 69;
    Rng rng(4);
    Matrix weight(dtype, N, K, 3);
    weight.fill_normal(rng);
    for (const bool gated : {false, true}) {
        pe::PackedMatrix shape = packed(kind, N, K);
        const pe::PackedMatrix back = packed(kind, K, N);
        std::vector<Memory> made;
        for (const Device& device : {kCpu, kCuda}) {
            made.emplace_back(shape.panels() * shape.panel_bytes());
            made.emplace_back(shape.panels() * pe::kPanel * 4);
            made.emplace_back(back.panels() * back.panel_bytes());
            Memory* of_device = &made[made.size() - 3];
            for (int i = 0; i < 2; ++i) memset(of_device[i].data(), 0, of_device[i].bytes());
            shape.data = of_device[0].data();
            shape.scale = static_cast<float*>(of_device[1].data());
            const int64_t cut = gated ? N / 2 : 37;
            device.pack({weight.rows(0, cut), shape, 0, gated});
            device.pack({weight.rows(cut, N - cut), shape, gated ? 16 : cut, gated});
            if (kind == pe::PackedKind::kI8) continue;
            pe::PackedMatrix to = back;
            to.data = of_device[2].data();
            device.transpose({shape, to, gated});
        }
        for (size_t i = 0; i < 3; ++i) {
            CHECK(memcmp(made[i].data(), made[i + 3].data(), made[i].bytes()) == 0,
                  "what CUDA packs, part " + std::to_string(i));
        }
    }
}

// What the activation took is kept, y is as without, and the backward is near its derivative in double.
double check_activation(pe::LinearEpilogue epilogue, DType kept_dtype, int64_t columns,
                        const Options& options) {
    const bool gated = epilogue == pe::LinearEpilogue::kSiluGate;
    const int64_t T = 7, K = 19, N = gated ? 2 * columns : columns;
    const auto kind = pe::PackedKind::kF32;
    Rng rng(5);
    Matrix x(DType::kF32, T, K), weight(DType::kF32, N, K), bias = floats(N);
    x.fill_normal(rng), weight.fill_normal(rng), bias.fill_normal(rng);
    Matrix dy(DType::kF32, T, columns, 1);
    dy.fill_normal(rng);
    const pe::PackedMatrix shape = packed(kind, N, K);
    double worst = 0;
    std::vector<Matrix> fma;
    const auto check = [&](const Device& device, bool has_same_bits) {
        const Memory data(shape.panels() * shape.panel_bytes());
        memset(data.data(), 0, data.bytes());
        pe::PackedMatrix w = shape;
        w.data = data.data();
        device.pack({weight.rows(0, columns), w, 0, gated});
        if (gated) device.pack({weight.rows(columns, columns), w, 16, true});
        Matrix y(DType::kF32, T, columns, 1), plain(DType::kF32, T, columns, 1);
        Matrix first(kept_dtype, T, columns, 1), second(kept_dtype, T, columns, 1);
        pe::LinearForwardArgs args{.x = x.view(),
                                   .weight = w,
                                   .bias = bias.vector(),
                                   .epilogue = epilogue,
                                   .y = {plain.view()}};
        device.forward(args);
        args.y[0] = y.view();
        args.kept[0] = first.view();
        if (gated) args.kept[1] = second.view();
        device.forward(args);
        CHECK(y.same_bits(plain), "y does not change when values are kept");
        CHECK(first.padding_is_intact() && second.padding_is_intact(), "kept writes between rows");
        Matrix dx(DType::kF32, T, N, 2), again(kept_dtype, T, columns, 1);
        device.activation_backward({dy.view(),
                                    {first.view(), gated ? second.view() : pe::MatrixView{}},
                                    dx.view(),
                                    again.view()});
        CHECK(dx.padding_is_intact() && again.padding_is_intact(),
              "the activation's backward writes between rows");
        CHECK(kept_dtype != DType::kF32 || again.same_bits(y), "what was activated comes again");
        for (int64_t t = 0; t < T; ++t) {
            for (int64_t n = 0; n < columns; ++n) {
                const double v = first.get(t, n), d = dy.get(t, n);
                const double z = gated ? v : 1.5957691216057308 * (v + 0.044715 * v * v * v);
                const double s = 1 / (1 + std::exp(-z));
                const double dz = gated ? 1 : 1.5957691216057308 * (1 + 3 * 0.044715 * v * v);
                const double slope = s + v * s * (1 - s) * dz, unit = 40 * kUnit * std::fabs(d);
                const double up = gated ? second.get(t, n) : 1.0;
                worst = std::max(worst, SHARE(dx.get(t, n), d * up * slope,
                                              unit * std::fabs(up) * (1 + std::fabs(z)), "dx"));
                if (!gated) continue;
                worst = std::max(
                    worst, SHARE(dx.get(t, columns + n), d * v * s, unit * std::fabs(v), "dup"));
            }
        }
        if (!has_same_bits) return;
        CHECK(fma.empty() || dx.same_bits(fma[0]), "the activation's backward: its bits");
        if (fma.empty()) fma.push_back(dx.copy());
    };
    for (const auto isa : isas(options)) {
        pe::cpu::set_active_isa(isa);
        check(kCpu, has_fma(isa));
    }
    if (options.cuda) check(kCuda, true);
    return worst;
}

}  // namespace

void test_linear_backward(const Options& options) {
    double worst = 0;
    int cases = 0;
    for (const DType x : {DType::kF32, DType::kBF16}) {
        for (const DType dy : {DType::kF32, DType::kBF16}) {
            for (const Case& c : std::vector<Case>{{dy, x, {}, 40, 70},
                                                   {dy, x, {0, 0}, 40, 70},
                                                   {dy, x, {1}, 1, 1},
                                                   {dy, x, {1, 1, 0, 3}, 31, 33},
                                                   {dy, x, {33}, 5, 100},
                                                   {dy, x, {65, 2, 64}, 17, 32},
                                                   {dy, x, {7, 8}, 200, 35},
                                                   {dy, x, {150, 1, 0, 17}, 72, 136, false}}) {
                worst = std::max(worst, check_case(c, options));
                ++cases;
            }
        }
    }
    double activation = 0;
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
        for (const auto kind : {pe::PackedKind::kF32, pe::PackedKind::kBF16})
            check_columns(kind, dtype, options);
        for (const auto kind : {pe::PackedKind::kF32, pe::PackedKind::kBF16, pe::PackedKind::kI8}) {
            if (options.cuda) check_packing_on_cuda(kind, dtype);
        }
        for (const int64_t columns : {1, 16, 45, 64}) {
            for (const auto e : {pe::LinearEpilogue::kSiluGate, pe::LinearEpilogue::kGelu})
                activation = std::max(activation, check_activation(e, dtype, columns, options));
        }
    }
    printf("  linear_backward %d cases, largest error / bound %.3f; activations %.3f\n", cases,
           worst, activation);
}

}  // namespace native
