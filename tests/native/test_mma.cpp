// The tensor cores' functions on the host twin: products of matrices that are no squares, in both
// layouts, from accumulators that are not zero; and that copies come no earlier than they must.
#include "check.h"
#include "mma_probe.h"

namespace native {
namespace {

void check_product(int K, bool transposed) {
    Rng rng(static_cast<uint64_t>(K));
    Matrix a(pe::DType::kBF16, 16, K), b(pe::DType::kBF16, 8, K), c(pe::DType::kF32, 16, 8);
    a.fill_normal(rng), b.fill_normal(rng), c.fill_normal(rng);
    const Matrix before = c.copy();
    Matrix a_down(pe::DType::kBF16, K, 16), b_down(pe::DType::kBF16, K, 8);
    for (int k = 0; k < K; ++k) {
        for (int i = 0; i < 16; ++i) a_down.set(k, i, a.get(i, k));
        for (int j = 0; j < 8; ++j) b_down.set(k, j, b.get(j, k));
    }
    const auto bits = [](const Matrix& m) { return static_cast<const uint16_t*>(m.view().data); };
    pe::cuda::mma_probe({.a = bits(transposed ? a_down : a),
                         .b = bits(transposed ? b_down : b),
                         .c = static_cast<float*>(c.view().data),
                         .K = K,
                         .transposed = transposed,
                         .forget = false});
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 8; ++j) {
            float want = before.get(i, j);
            for (int step = 0; step < K; step += 16) {
                double sum = want;
                for (int k = step; k < step + 16; ++k)
                    sum += static_cast<double>(a.get(i, k)) * b.get(j, k);
                want = static_cast<float>(sum);
            }
            CHECK(c.get(i, j) == want, "mma of depth " + std::to_string(K) + " at " +
                                           std::to_string(i) + ", " + std::to_string(j));
        }
    }
}

// Who does not wait for a copy finds NaN.
void check_copies_are_late() {
    Matrix a(pe::DType::kBF16, 16, 16), b(pe::DType::kBF16, 8, 16), c(pe::DType::kF32, 16, 8);
    a.fill(1.0f), b.fill(1.0f), c.fill(0.0f);
    pe::cuda::mma_probe({.a = static_cast<const uint16_t*>(a.view().data),
                         .b = static_cast<const uint16_t*>(b.view().data),
                         .c = static_cast<float*>(c.view().data),
                         .K = 16,
                         .transposed = false,
                         .forget = true});
    CHECK(std::isnan(c.get(0, 0)) && std::isnan(c.get(15, 7)), "a copy came before it was awaited");
}

// Lanes that read other words of one bank would wait for each other.
void check_banks(pe::cuda::SharedRead read, int steps, int lanes, int words_of_a_lane) {
    for (int step = 0; step < steps; ++step) {
        int words[32];
        pe::cuda::shared_read(read, step, words);
        for (int first = 0; first < 32; first += lanes) {
            int word_in[32];
            std::fill(word_in, word_in + 32, -1);
            for (int i = 0; i < lanes * words_of_a_lane; ++i) {
                const int word = words[first + i / words_of_a_lane] + i % words_of_a_lane;
                CHECK(word_in[word % 32] == -1 || word_in[word % 32] == word,
                      "two words of bank " + std::to_string(word % 32));
                word_in[word % 32] = word;
            }
        }
    }
}

}  // namespace

void test_mma(const Options& options) {
    if (!options.cuda) return;
    for (const int K : {16, 32, 64}) {
        check_product(K, false);
        check_product(K, true);
    }
    check_copies_are_late();
    check_banks(pe::cuda::SharedRead::kRowsOfX, 4, 8, 4);
    check_banks(pe::cuda::SharedRead::kPanelBf16, 16, 32, 1);
    check_banks(pe::cuda::SharedRead::kPanelInt8, 16, 32, 1);
    check_banks(pe::cuda::SharedRead::kRowsOfQ, 4, 8, 4);
    check_banks(pe::cuda::SharedRead::kWordRows, 16, 32, 1);
    printf("  mma 6 products on the host twin\n");
}

}  // namespace native
